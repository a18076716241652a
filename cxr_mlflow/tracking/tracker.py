"""The verbs that log to a run, and the way of logging that waits for MLflow's answer."""

from __future__ import annotations

import io
import json
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.time import get_current_time_millis
from PIL import Image

from cxr_mlflow.errors import InputError

METRICS_PER_CALL = 1000  # MLflow's own limit of a batch
PARAMS_PER_CALL = 100


class Log(ABC):
    """The verbs that log to a run, made of a few that each way of logging has of its own."""

    @abstractmethod
    def log_params(self, params: Mapping[str, str]) -> None:
        """Log what the run was made with."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Log numbers under "split/name" keys; what was not measured (nan) is left out."""

    @abstractmethod
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; old values are replaced."""

    @abstractmethod
    def log_bytes(self, content: bytes, path: str) -> None:
        """Log a file of the given content."""

    @abstractmethod
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is."""

    @abstractmethod
    def log_image(self, png: bytes, key: str, step: int) -> None:
        """Log a picture under a key, so that the UI shows it beside other runs' pictures."""

    @abstractmethod
    def log_dataset(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log a table of images as an MLflow dataset input of the run.

        Parameters
        ----------
        table : DataFrame
            A row for each image, with a column `class_name`.
        name : str
        digest : str
            Of the data set; its first 36 characters are kept.
        context : str
            What the images are for: "training", "validation" or "testing".
        """

    def log_text(self, text: str, path: str) -> None:
        """Log a text file."""
        self.log_bytes(text.encode(), path)

    def log_json(self, value: object, path: str) -> None:
        """Log a JSON file; nan is not JSON and must be null already."""
        self.log_text(json.dumps(value, indent=2, allow_nan=False) + "\n", path)

    def log_csv(self, table: pd.DataFrame, path: str) -> None:
        """Log a table as CSV, which the UI shows as a table."""
        self.log_text(table.to_csv(index=False), path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Log a figure as a PNG among the run's artifacts."""
        self.log_bytes(as_png(figure), path)

    def log_comparable(self, figure: Figure, key: str, *, step: int = 0) -> None:
        """Log a figure under a key, so that the UI shows it beside other runs' figures."""
        self.log_image(as_png(figure), key, step)


def as_png(figure: Figure) -> bytes:
    """Draw a figure, once: a run shows the same one as a file, in a comparison and on its card."""
    if figure not in _drawn:
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png", pil_kwargs={"compress_level": 3})
        _drawn[figure] = buffer.getvalue()
    return _drawn[figure]


_drawn: WeakKeyDictionary[Figure, bytes] = WeakKeyDictionary()


class Tracker(Log):
    """Logs to one run, open or finished, and waits for the answer."""

    def __init__(self, run_id: str, experiment_id: str) -> None:
        self.run_id, self.experiment_id = run_id, experiment_id
        self.client = mlflow.MlflowClient()

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log what is not on the run yet.

        `mlflow run` has already logged the MLproject parameters, as the text it was given
        ("1e-3"), and MLflow refuses to log another text ("0.001") for the same name.

        Raises
        ------
        InputError
            If a value on the run and the value in `params` mean different things.
        """
        logged = self.client.get_run(self.run_id).data.params
        for name in sorted(params.keys() & logged.keys()):
            if _meaning(params[name]) != _meaning(logged[name]):
                raise InputError(
                    f"the run says {name}={logged[name]}, the command line {params[name]}"
                )
        new = [Param(name, value) for name, value in params.items() if name not in logged]
        for start in range(0, len(new), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])

    def log_metrics(
        self, metrics: Mapping[str, float], *, step: int | None = None, time: int | None = None
    ) -> None:
        """Log finite numbers, as measured at `time` (milliseconds since 1970; now by default)."""
        at = get_current_time_millis() if time is None else time
        told = [
            Metric(name, float(v), at, step or 0) for name, v in metrics.items() if np.isfinite(v)
        ]
        for start in range(0, len(told), METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=told[start : start + METRICS_PER_CALL])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; old values are replaced."""
        told = [RunTag(name, value) for name, value in tags.items()]
        for start in range(0, len(told), PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, tags=told[start : start + PARAMS_PER_CALL])

    def log_bytes(self, content: bytes, path: str) -> None:
        """Log a file of the given content."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_bytes(content)
            self.log_file(file, str(Path(path).parent))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is."""
        self.client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

    def log_image(self, png: bytes, key: str, step: int, *, time: int | None = None) -> None:
        """Log a picture unless the run has one of that key and step: told twice, it is there once.

        MLflow keeps it as two files of a random name; where only one of them arrived, both are
        logged again.
        """
        begin = f"images/{key}+step+{step}+"
        if len([path for path in self.files("images") if path.startswith(begin)]) < 2:
            with Image.open(io.BytesIO(png)) as picture:
                self.client.log_image(
                    self.run_id, picture.convert("RGB"), key=key, step=step, timestamp=time
                )

    def metrics(self) -> dict[str, float]:
        """Newest value of each number of the run."""
        return dict(self.client.get_run(self.run_id).data.metrics)

    def files(self, folder: str) -> list[str]:
        """Paths of the artifacts in a folder of the run."""
        return [str(f.path) for f in self.client.list_artifacts(self.run_id, folder)]

    def next_step(self, key: str) -> int:
        """Step after the last one at which there is a picture of a key: 0 if there is none."""
        begin = f"images/{key}+step+"
        told = [
            path.removeprefix(begin).split("+")[0]
            for path in self.files("images")
            if path.startswith(begin)
        ]
        return max((int(step) for step in told if step.isdecimal()), default=-1) + 1

    def forget(
        self, *, tags: Iterable[str] = (), metrics: Iterable[str] = (), step: int = 0
    ) -> None:
        """Take back tags, and metrics: MLflow keeps a number for ever, so they become nan.

        Parameters
        ----------
        tags, metrics : iterable of str
            Names; a tag that the run does not have is passed over.
        step : int
            Of the nan.
        """
        known = self.client.get_run(self.run_id).data.tags
        for name in tags:
            if name in known:
                self.client.delete_tag(self.run_id, name)
        at = get_current_time_millis()
        gone = [Metric(name, math.nan, at, step) for name in metrics]
        if gone:
            self.client.log_batch(self.run_id, metrics=gone)

    def log_dataset(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log a table of images as an MLflow dataset input of the run."""
        self.log_input(describe_dataset(table, name=name, digest=digest), context)

    def log_input(self, dataset: Mapping[str, str], context: str) -> None:
        """Log a dataset as `describe_dataset` puts it."""
        told = DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        self.client.log_inputs(self.run_id, [told])

    def artifact_uri(self) -> str:
        """Where the run's files are."""
        return str(self.client.get_run(self.run_id).info.artifact_uri)


def describe_dataset(table: pd.DataFrame, *, name: str, digest: str) -> dict[str, str]:
    """Put a table of images into the texts that MLflow keeps of a dataset."""
    source = mlflow.data.code_dataset_source.CodeDatasetSource({"name": name})
    dataset = mlflow.data.from_pandas(
        table, source=source, name=name, digest=digest[:36], targets="class_name"
    )
    return dict(dataset._to_mlflow_entity())


def _meaning(text: str) -> object:
    text = text.strip("'")  # `mlflow run` logs "two words" with its shell quotes
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return json.loads(text.lower())
    except ValueError:
        return text
