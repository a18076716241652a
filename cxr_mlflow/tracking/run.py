"""The one door to MLflow tracking: opening or joining a run, and the verbs that log to it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cxr_mlflow.data.storage import TORN, sync
from cxr_mlflow.environment import unless_set
from cxr_mlflow.errors import InputError
from cxr_mlflow.stopping import Stopped, Terminated, stop_raises, unbroken
from cxr_mlflow.tracking.locks import SQLITE, hold, is_database, is_server, lock_of
from cxr_mlflow.tracking.parents import close_dead_runs
from cxr_mlflow.tracking.processes import beating, heartbeat, own_process
from cxr_mlflow.tracking.tracker import Tracker
from cxr_mlflow.tracking.views import offer_view

DEFAULT_URI = "sqlite:///mlflow.db"
FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow would try a dead server for minutes by itself."""
MIGRATION_SECONDS, MIGRATION_PAUSE = 30.0, 1.0
"""For so long a database that does not answer may be one whose tables another machine makes."""


def use_tracking_uri() -> str:
    """Point MLflow at `MLFLOW_TRACKING_URI`, or at mlflow.db in this folder; return which.

    MLflow's own default depends on left-over folders, so it is never relied upon.

    Raises
    ------
    InputError
        If the store does not answer.
    """
    uri = set_tracking_uri()
    deadline = time.monotonic() + (MIGRATION_SECONDS if is_database(uri) else 0)
    with unless_set(FIRST_CONTACT):
        while True:
            try:
                ask_store()
                return uri
            except (MlflowException, SQLAlchemyError) as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"MLFLOW_TRACKING_URI={uri}: the tracking store does not answer ({error})"
                    ) from error
            time.sleep(MIGRATION_PAUSE)


def ask_store() -> None:
    """Ask MLflow's store for anything at all; raises if it does not answer.

    A database without tables is given them: by one process of a machine at a time, for two at once
    crash one of them. A new sqlite file gets them under another name: MLflow never opens one again
    in which it was broken off.
    """
    uri = mlflow.get_tracking_uri()
    with nullcontext() if is_server(uri) else hold(lock_of(uri, "start")):
        if uri.startswith(SQLITE):
            _make_store(Path(uri.removeprefix(SQLITE)))
        mlflow.MlflowClient().search_experiments(max_results=1)


def _make_store(path: Path) -> None:
    """Make an sqlite store with its tables, unless something is there; it is whole or absent."""
    if path.exists() or not path.parent.is_dir():
        return
    for torn in path.parent.glob(f".{path.name}-*{TORN}*"):
        torn.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}-{os.getpid()}{TORN}")
    try:
        mlflow.MlflowClient(f"{SQLITE}{part}").search_experiments(max_results=1)
        sync(part)
        with suppress(FileExistsError):  # a server was faster
            os.link(part, path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def set_tracking_uri(uri: str | None = None) -> str:
    """Point MLflow at a store, without asking it; return which.

    By default at `MLFLOW_TRACKING_URI`, else at mlflow.db in this folder.
    """
    for name in ("mlflow", "alembic"):  # their news of every step would drown ours
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.ERROR)  # and of every try
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    mlflow.set_tracking_uri(uri)
    return uri


def open_store() -> str:
    """Point MLflow at its store; return where it is, the same text from whichever folder.

    A store that is a file here must open, for nothing but a wrong name keeps it from doing so. A
    server or a database may be away: the journal waits for it.

    Raises
    ------
    InputError
        If a local store cannot be opened.
    """
    uri = set_tracking_uri()
    if is_server(uri) or is_database(uri):
        return uri
    use_tracking_uri()
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return uri


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
    KILLED at Ctrl-C, SIGTERM, SIGHUP and `Stopped`.

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
    with stop_raises():
        status = RunStatus.FAILED
        try:
            with unbroken():
                run = mlflow.start_run(
                    run_id=joined,
                    run_name=None if joined else name,
                    tags=own_process(),
                    log_system_metrics=system_metrics,
                )
                mlflow.set_tags({**tags, **({"mlflow.runName": name} if joined else {})})
                if "failure" in run.data.tags:  # of an earlier attempt
                    mlflow.delete_tag("failure")
            close_dead_runs()
            offer_view(run.info.experiment_id)
            log = Tracker(run.info.run_id, run.info.experiment_id)
            with beating(lambda: log.set_tags(heartbeat())):
                yield log
            status = RunStatus.FINISHED
        except (KeyboardInterrupt, Terminated, Stopped) as error:
            status = RunStatus.KILLED
            _say(str(error) if isinstance(error, Stopped) else type(error).__name__)
            raise
        except BaseException as error:
            _say(f"{type(error).__name__}: {error}")
            raise
        finally:
            mlflow.end_run(RunStatus.to_string(status))


def _say(failure: str) -> None:
    """Tag the open run, if there is one, with why it failed."""
    if mlflow.active_run():  # MLflow would open another
        mlflow.set_tag("failure", failure[:500])
