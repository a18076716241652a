"""The run that `mlflow run` opened for a command, from the command's first moment to its last."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlflow
from mlflow.entities import RunInfo, RunTag

from cxr_mlflow.environment import unless_set
from cxr_mlflow.stopping import stop_asked
from cxr_mlflow.tracking.parents import end_dead
from cxr_mlflow.tracking.processes import birth_of, own_process
from cxr_mlflow.tracking.run import set_tracking_uri

AT_ONCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}
"""A server that is away holds nothing up: what is told here is told again, or found out later."""


@contextmanager
def joined_closed(starter: int | None) -> Iterator[None]:
    """Tell MLflow at once whose the joined run is, and close it if the command is asked to stop.

    Without the first it would be RUNNING for ever if all were killed while the data are prepared,
    without the second if only `mlflow run` was. A run that is over is left as it is.

    Parameters
    ----------
    starter : int, optional
        Process id of the `mlflow run`.
    """
    set_tracking_uri()
    run_id = os.environ["MLFLOW_RUN_ID"]
    client = mlflow.MlflowClient()
    with suppress(Exception), unless_set(AT_ONCE):
        tags = [RunTag(name, value) for name, value in own_process().items()]
        client.log_batch(run_id, tags=tags)
    try:
        yield
    finally:
        if stop_asked():
            try:
                with unless_set(AT_ONCE):
                    if client.get_run(run_id).info.status == "RUNNING":
                        end_dead(run_id, "stopped before it began to train")
                    _insist(client.get_run(run_id).info, starter)
            except Exception as error:  # a server that is away, mostly
                told = f"! MLflow was not told that the run {run_id} was stopped: {error}"
                print(f"{told}\n  The next command on this machine closes it.", file=sys.stderr)


def _insist(info: RunInfo, starter: int | None) -> None:
    """Leave a process behind that sets a run's status again, see `last_word`."""
    birth = None if starter is None else birth_of(starter)
    if birth is None:
        return
    told = [info.run_id, info.status, str(info.end_time), str(starter), repr(birth)]
    subprocess.Popen(
        [sys.executable, "-m", "cxr_mlflow.tracking.last_word", *told],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
