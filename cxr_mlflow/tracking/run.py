"""The one door to MLflow tracking: opening or joining a run, and the verbs that log to it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import filelock
import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import RunStatus
from numpy.typing import NDArray

from cxr_mlflow.errors import InputError

DEFAULT_URI = "sqlite:///mlflow.db"
FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
METRICS_PER_CALL = 1000  # MLflow's own limit of a batch
PARAMS_PER_CALL = 100


def use_tracking_uri() -> str:
    """Point MLflow at `MLFLOW_TRACKING_URI`, or at mlflow.db in this folder; return which.

    MLflow's own default depends on left-over folders, so it is never relied upon.
    """
    for name in ("mlflow", "alembic"):  # their news of every step would drown ours
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    mlflow.set_tracking_uri(uri)
    with _first_start_lock(uri), _impatient():
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
        except mlflow.exceptions.MlflowException as error:
            raise InputError(
                f"MLFLOW_TRACKING_URI={uri}: the tracking store does not answer ({error.message})"
            ) from error
    return uri


@contextmanager
def _impatient() -> Iterator[None]:
    """Let MLflow give up on a dead server after seconds; by itself it tries for minutes."""
    before = {name: os.environ.get(name) for name in FIRST_CONTACT}
    os.environ.update({k: v for k, v in FIRST_CONTACT.items() if before[k] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


@contextmanager
def _first_start_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create an sqlite store: two at once crash one of them."""
    if not uri.startswith("sqlite"):
        yield
        return
    name = hashlib.sha256(f"{Path.cwd()}|{uri}".encode()).hexdigest()[:16]
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"cxr-mlflow-{name}.lock"):
        yield


class Tracker:
    """Logs to one run, open or finished."""

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
        new = [(name, value) for name, value in params.items() if name not in logged]
        for start in range(0, len(new), PARAMS_PER_CALL):
            mlflow.log_params(dict(new[start : start + PARAMS_PER_CALL]), run_id=self.run_id)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Log numbers under "split/name" keys; what was not measured (nan) is left out."""
        measured = [(name, float(v)) for name, v in metrics.items() if np.isfinite(v)]
        for start in range(0, len(measured), METRICS_PER_CALL):
            some = dict(measured[start : start + METRICS_PER_CALL])
            mlflow.log_metrics(some, step=step, run_id=self.run_id)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; old values are replaced."""
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, value)

    def log_text(self, text: str, path: str) -> None:
        """Log a text file."""
        self.client.log_text(self.run_id, text, path)

    def log_json(self, value: object, path: str) -> None:
        """Log a JSON file; nan is not JSON and must be null already."""
        self.log_text(json.dumps(value, indent=2, allow_nan=False) + "\n", path)

    def log_csv(self, table: pd.DataFrame, path: str) -> None:
        """Log a table as CSV, which the UI shows as a table."""
        self.log_text(table.to_csv(index=False), path)

    def log_figure(self, figure: Figure, path: str) -> None:
        """Log a figure as a PNG among the run's artifacts."""
        self.client.log_figure(self.run_id, figure, path, save_kwargs={"dpi": 110})

    def log_comparable(self, figure: Figure, key: str, *, step: int = 0) -> None:
        """Log a figure under a key, so that the UI shows it beside other runs' figures."""
        figure.set_dpi(110)
        figure.canvas.draw()
        pixels: NDArray[np.uint8] = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        self.client.log_image(self.run_id, np.ascontiguousarray(pixels), key=key, step=step)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def artifact_uri(self) -> str:
        """Where the run's files are."""
        return str(self.client.get_run(self.run_id).info.artifact_uri)

    def log_dataset(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log a table of images as an MLflow dataset input of the run."""
        source = mlflow.data.code_dataset_source.CodeDatasetSource({"name": name})
        dataset = mlflow.data.from_pandas(
            table, source=source, name=name, digest=digest[:36], targets="class_name"
        )
        mlflow.log_input(dataset, context=context)


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


def joined_run() -> str | None:
    """Id of the run that `mlflow run` opened for this command; None if it was not used."""
    return os.environ.get("MLFLOW_RUN_ID") or None


@contextmanager
def open_run(
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    *,
    run_id: str | None = None,
    system_metrics: bool = True,
) -> Iterator[Tracker]:
    """Open a run, or join the one that `mlflow run` opened.

    It ends as FINISHED, as FAILED with the tag `failure` if an error leaves the block, or as
    KILLED at Ctrl-C, SIGTERM and `Stopped`.

    Parameters
    ----------
    experiment, name : str
        Of a new run.
    tags : mapping
    run_id : str, optional
        A run that is there already, to go on with.
    system_metrics : bool
        Whether load and memory of the machine are logged beside.
    """
    use_tracking_uri()
    joined = run_id or joined_run()
    if joined:  # the experiment is already decided, and no other may be active
        home = mlflow.MlflowClient().get_run(joined).info.experiment_id
        mlflow.set_experiment(experiment_id=home)
    else:
        mlflow.set_experiment(experiment)
    with _sigterm_raises():
        run = mlflow.start_run(
            run_id=joined, run_name=None if joined else name, log_system_metrics=system_metrics
        )
        status = RunStatus.FAILED
        try:
            mlflow.set_tags({**tags, **({"mlflow.runName": name} if joined else {})})
            if "failure" in run.data.tags:  # of an earlier attempt
                mlflow.delete_tag("failure")
            yield Tracker(run.info.run_id, run.info.experiment_id)
            status = RunStatus.FINISHED
        except (KeyboardInterrupt, Terminated, Stopped) as error:
            status = RunStatus.KILLED
            told = str(error) if isinstance(error, Stopped) else type(error).__name__
            mlflow.set_tag("failure", told[:500])
            raise
        except BaseException as error:
            mlflow.set_tag("failure", f"{type(error).__name__}: {error}"[:500])
            raise
        finally:
            mlflow.end_run(RunStatus.to_string(status))


class Stopped(Exception):
    """The run was stopped on purpose before its end; the message says why."""


class Terminated(SystemExit):
    """SIGTERM, as an exception: the run is closed as KILLED on the way out."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
