"""Load and memory of the machine while a run goes on, told to its journal like all else."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.tracker import Log

SECONDS = 10.0
LAST_SECONDS = 5.0
"""Longest wait for a measurement that is under way in the end: a driver may hang."""
PREFIX = "system/"


class SystemMetrics:
    """Measures with MLflow's own monitors, every ten seconds, in a thread.

    MLflow's thread asks the server each time whether the run still goes on, and ends for good when
    it does not answer once.
    """

    def __init__(self, log: Log, *, first_step: int) -> None:
        self.log, self.step = log, first_step
        self._stop, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="system-metrics")

    def __enter__(self) -> SystemMetrics:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(LAST_SECONDS)
        self._given_up.set()

    def _run(self) -> None:
        monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(Exception):  # no nvidia-ml-py, no driver, no GPU: each its own
            monitors.append(GPUMonitor())
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
            if self._given_up.is_set():
                return
            found = {k: v for m in monitors for k, v in m.aggregate_metrics().items()}
            try:
                self.log.log_metrics({f"{PREFIX}{k}": v for k, v in found.items()}, step=self.step)
            except InputError:  # the disk is full: the training itself says so at its next word
                return
            for monitor in monitors:
                monitor.clear_metrics()
            self.step += 1
            if self._stop.wait(SECONDS):
                return
