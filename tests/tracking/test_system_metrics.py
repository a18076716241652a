"""Load and memory are told; a driver that hangs does not keep a run from ending."""

from __future__ import annotations

import threading
import time

from cxr_mlflow.tracking import system_metrics
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import JournaledLog


def test_a_measurement_that_hangs_is_not_waited_for_and_tells_nothing_later(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "LAST_SECONDS", 0.2)
    hangs = threading.Event()
    monkeypatch.setattr(system_metrics.CPUMonitor, "collect_metrics", lambda self: hangs.wait(60))
    journal = Journal(tmp_path)
    metrics = system_metrics.SystemMetrics(JournaledLog(journal), first_step=0)
    begin = time.monotonic()
    with metrics:
        pass
    assert time.monotonic() - begin < 20
    hangs.set()
    metrics._thread.join(20)
    assert len(journal) == 0, "the run has told its end before"
