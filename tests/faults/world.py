"""A folder with a store of its own, where a command is typed in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Run

DIE = Path(__file__).with_name("die.py")
HEARS_CTRL_C = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "runpy.run_module('cxr_mlflow', run_name='__main__', alter_sys=True)"
)
"""As `-m cxr_mlflow`. A shell makes its background jobs deaf to SIGINT, and this may be one."""
OPTIONS = {
    "model": "cnn",
    "epochs": "3",
    "image-size": "32",
    "batch-size": "16",
    "bootstrap-samples": "100",
    "device": "cpu",
    "checkpoint-minutes": "0",
}
"""A training of seconds that keeps a checkpoint after every step."""
CLOCK = ("train/seconds", "train/images_per_second", "system/")
"""Metrics that tell the time, which no two attempts share."""


class World:
    """A store, a folder of interrupted runs, and a data set.

    Parameters
    ----------
    folder : Path
        Where commands are typed.
    data, cache : Path
    store : Path, optional
        A migrated, empty sqlite store to begin with.
    uri : str, optional
        Tracking URI; `folder`/mlflow.db by default.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        cache: Path,
        *,
        store: Path | None = None,
        uri: str | None = None,
    ) -> None:
        self.folder = folder
        if store:
            (folder / "mlflow.db").write_bytes(store.read_bytes())
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.args = ["--data-dir", str(data), "--cache-dir", str(cache)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of its processes."""
        return {
            **os.environ,
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_REGISTRY_URI": self.uri,
            "CXR_STATE_DIR": str(self.folder / "state"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(DIE.parents[2]),
        }

    def words(self, options: Mapping[str, str]) -> list[str]:
        """`cxr train` as it is typed."""
        told = [w for k, v in {**OPTIONS, **options}.items() for w in (f"--{k}", v)]
        return ["train", *self.args, *told]

    def type(
        self, moment: str | None = None, signals: str = "SIGKILL", **options: str
    ) -> subprocess.CompletedProcess[str]:
        """Type the training; with a moment (see `die.py`), it gets signals there."""
        start = [str(DIE), signals, moment] if moment else ["-m", "cxr_mlflow"]
        return self.run([*start, *self.words(options)])

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run Python with some words, and wait."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            env=self.environment,
            check=False,
            start_new_session=True,  # a signal to the group is for it alone
        )

    def start(self, **options: str) -> subprocess.Popen[str]:
        """Type the training and do not wait."""
        return subprocess.Popen(
            [sys.executable, "-c", HEARS_CTRL_C, *self.words(options)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    @property
    def client(self) -> mlflow.MlflowClient:
        """Client of the store."""
        mlflow.set_tracking_uri(self.uri)
        return mlflow.MlflowClient()

    def runs(self) -> list[Run]:
        """All runs there are."""
        experiment = self.client.get_experiment_by_name("chest-xray")
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []

    def history(self, run: Run) -> dict[str, list[tuple[int, float]]]:
        """Every metric but those of the clock: steps and values."""
        return {
            key: [(m.step, m.value) for m in self.client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
            if not key.startswith(CLOCK)
        }
