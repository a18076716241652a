"""The one door to MLflow tracking: opening or joining a run, and the verbs that log to it."""

from __future__ import annotations

import hashlib
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
from mlflow.entities import RunStatus

from cxr_mlflow.environment import unless_set
from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.processes import end_with_parent, own_process
from cxr_mlflow.tracking.tracker import Tracker
from cxr_mlflow.tracking.views import offer_view

DEFAULT_URI = "sqlite:///mlflow.db"
FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow would try a dead server for minutes by itself."""


def use_tracking_uri() -> str:
    """Point MLflow at `MLFLOW_TRACKING_URI`, or at mlflow.db in this folder; return which.

    MLflow's own default depends on left-over folders, so it is never relied upon.

    Raises
    ------
    InputError
        If the store does not answer.
    """
    uri = set_tracking_uri()
    with _first_start_lock(uri), unless_set(FIRST_CONTACT):
        try:
            mlflow.MlflowClient().search_experiments(max_results=1)
        except mlflow.exceptions.MlflowException as error:
            raise InputError(
                f"MLFLOW_TRACKING_URI={uri}: the tracking store does not answer ({error.message})"
            ) from error
    return uri


def set_tracking_uri(uri: str | None = None) -> str:
    """Point MLflow at a store, without asking it; return which.

    By default at `MLFLOW_TRACKING_URI`, else at mlflow.db in this folder.
    """
    for name in ("mlflow", "alembic"):  # their news of every step would drown ours
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    mlflow.set_tracking_uri(uri)
    return uri


def open_store() -> str:
    """Point MLflow at its store; return where it is, the same text from whichever folder.

    A store that is a file here must open, for nothing but a wrong name keeps it from doing so. A
    server may be away: the journal waits for it.

    Raises
    ------
    InputError
        If a local store cannot be opened.
    """
    uri = set_tracking_uri()
    if uri.startswith(("http://", "https://")):
        return uri
    use_tracking_uri()
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


@contextmanager
def _first_start_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create a store's tables: two at once crash one of them."""
    if uri.startswith(("http://", "https://")):
        yield
        return
    name = hashlib.sha256(f"{Path.cwd()}|{uri}".encode()).hexdigest()[:16]
    with filelock.FileLock(Path(tempfile.gettempdir()) / f"cxr-mlflow-{name}.lock"):
        yield


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
    end_with_parent()
    joined = run_id or joined_run()
    if joined:  # the experiment is already decided, and no other may be active
        home = mlflow.MlflowClient().get_run(joined).info.experiment_id
        mlflow.set_experiment(experiment_id=home)
    else:
        mlflow.set_experiment(experiment)
    with sigterm_raises():
        run = mlflow.start_run(
            run_id=joined, run_name=None if joined else name, log_system_metrics=system_metrics
        )
        status = RunStatus.FAILED
        try:
            mlflow.set_tags(
                {**tags, **own_process(), **({"mlflow.runName": name} if joined else {})}
            )
            if "failure" in run.data.tags:  # of an earlier attempt
                mlflow.delete_tag("failure")
            offer_view(run.info.experiment_id)
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
def sigterm_raises() -> Iterator[None]:
    """Make SIGTERM an exception, so that a run is closed on the way out."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
