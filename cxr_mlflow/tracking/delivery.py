"""Sends a journal to MLflow, in order, beside the training; the training never waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.parents import close_dead_runs, link
from cxr_mlflow.tracking.processes import HEARTBEAT
from cxr_mlflow.tracking.tracker import Tracker
from cxr_mlflow.tracking.views import offer_view

JOURNAL = "journal"
"""Tag of a run: the id of the journal it is delivered from, by which it is found again."""
REQUEST = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables for as long as records are delivered. MLflow would try a dead server for minutes by
itself; here the whole record is tried again. What it prints would tear the progress bar."""
FIRST_PAUSE, LONGEST_PAUSE, HEARTBEAT_SECONDS = 0.5, 30.0, 60.0
REFUSALS = frozenset(
    databricks_pb2.ErrorCode.Name(code)
    for code in (
        databricks_pb2.INVALID_PARAMETER_VALUE,
        databricks_pb2.PERMISSION_DENIED,
        databricks_pb2.UNAUTHENTICATED,
        databricks_pb2.ENDPOINT_NOT_FOUND,
    )
)
"""Answers that another try would only get again."""
Handler = Callable[["Remote", Record], None]


class Remote:
    """The run at MLflow that a journal is delivered to.

    Every verb may be told twice, for a process may die between the answer and its note of it: the
    run is then as if it had been told once.
    """

    def __init__(self, journal: Journal, handlers: Mapping[str, Handler]) -> None:
        self.journal, self.handlers = journal, handlers

    @property
    def tracker(self) -> Tracker:
        """Verbs that log to the run."""
        known = self.journal.remote
        return Tracker(known["run_id"], known["experiment_id"])

    def take(self, record: Record) -> None:
        """Do at MLflow what a record says."""
        told = record.told
        if record.verb == "open":
            self._open(told, record.time)
        elif record.verb == "metrics":
            self.tracker.log_metrics(told["metrics"], step=told["step"], time=record.time)
        elif record.verb == "params":
            self.tracker.log_params(told["params"])
        elif record.verb == "tags":
            self.tracker.set_tags(told["tags"])
        elif record.verb == "file":
            self.tracker.log_file(self.journal.path(told["file"]), told["folder"])
        elif record.verb == "image":
            png = self.journal.path(told["file"]).read_bytes()
            self.tracker.log_image(png, told["key"], told["step"], time=record.time)
        elif record.verb == "dataset":
            self.tracker.log_input(told["dataset"], told["context"])
        elif record.verb == "end":
            self._end(told, record.time)
        else:
            self.handlers[record.verb](self, record)

    def ask(self) -> None:
        """Ask MLflow for anything at all; raises if it does not answer."""
        mlflow.MlflowClient().search_experiments(max_results=1)

    def beat(self) -> None:
        """Show that the process lives."""
        if "run_id" in self.journal.remote:
            self.tracker.set_tags({HEARTBEAT: f"{time.time():.0f}"})

    def _open(self, told: Mapping[str, Any], at: int) -> None:
        client = mlflow.MlflowClient()
        run = self.known() or self._found(client, told, at)
        info = run.info
        self.journal.remember(
            run_id=info.run_id, experiment_id=info.experiment_id, artifact_uri=info.artifact_uri
        )
        self.tracker.set_tags(told["tags"])
        if "failure" in run.data.tags:  # of an earlier attempt
            client.delete_tag(info.run_id, "failure")
        if info.status != "RUNNING":
            client.update_run(info.run_id, status="RUNNING")
        joined = told["joined"]
        if joined and joined != info.run_id:
            link(joined, client.get_run(info.run_id))
            client.set_terminated(joined, "FINISHED")
        close_dead_runs(info.experiment_id)
        offer_view(info.experiment_id)

    def known(self) -> Run | None:
        """Run that was delivered to before; None if there is none.

        Where somebody deleted it, all that was told is sent anew, to another run.
        """
        run_id = self.journal.remote.get("run_id")
        if run_id is None:
            return None
        try:
            run = mlflow.MlflowClient().get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            self.journal.remember(**dict.fromkeys(self.journal.remote, ""))
            self.journal.sent = 0
            return None
        return run

    def _found(self, client: mlflow.MlflowClient, told: Mapping[str, Any], at: int) -> Run:
        """Return the run of this journal, or the one `mlflow run` opened, or a new one."""
        if joined := told["joined"]:
            return client.get_run(joined)
        experiment = experiment_of(client, told["experiment"])
        runs = client.search_runs(
            [experiment.experiment_id], f"tags.`{JOURNAL}` = '{told['tags'][JOURNAL]}'"
        )
        if runs:
            return runs[0]
        name = told["tags"]["mlflow.runName"]
        return client.create_run(
            experiment.experiment_id, start_time=at, tags=dict(told["tags"]), run_name=name
        )

    def _end(self, told: Mapping[str, Any], at: int) -> None:
        status, failure = told["status"], told["failure"]
        if status == "FINISHED" and (refused := self.journal.remote.get("refused")):
            status, failure = "FAILED", refused
        if failure:
            self.tracker.set_tags({"failure": failure[:500]})
        known = self.journal.remote
        mlflow.MlflowClient().set_terminated(known["run_id"], status, end_time=at)


def experiment_of(client: mlflow.MlflowClient, name: str) -> Experiment:
    """Find an experiment, or make it; another process may do so at the same moment.

    Raises
    ------
    InputError
        If it was deleted.
    """
    for _ in range(2):
        if found := client.get_experiment_by_name(name):
            if found.lifecycle_stage != LifecycleStage.ACTIVE:
                raise InputError(
                    f"--experiment={name} was deleted; restore it (mlflow experiments restore "
                    f"--experiment-id {found.experiment_id}) or name another"
                )
            return found
        try:
            client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    return client.get_experiment_by_name(name)


class Delivery:
    """A thread that sends what is in a journal, and tries again for as long as it must.

    Parameters
    ----------
    journal : Journal
    handlers : mapping of verb to callable
        For records that this room knows nothing of.
    """

    def __init__(self, journal: Journal, handlers: Mapping[str, Handler]) -> None:
        self.journal, self.remote = journal, Remote(journal, handlers)
        self.refusal: Exception | None = None
        """An answer that another try would not change; nothing is sent after it."""
        self.trouble: str = ""
        """Why nothing arrives now; empty while it does."""
        self._moved = time.monotonic()
        self._stop, self._try_now = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="delivery")

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more; what is under way may still arrive."""
        self._stop.set()
        self._try_now.set()
        self.journal.wake()

    def wait(self, *, seconds: float, in_trouble: float | None = None) -> bool:
        """Wait until all has arrived, or nothing has for so many seconds, or it is refused.

        Parameters
        ----------
        seconds : float
            Longest time in which nothing moves.
        in_trouble : float, optional
            The same while the last answer was an error, or none came; `seconds` by default.
        """
        self._moved = time.monotonic()
        self._try_now.set()
        while (missing := self.journal.sent < len(self.journal)) and not self.refusal:
            patience = in_trouble if self.trouble and in_trouble is not None else seconds
            if time.monotonic() - self._moved > patience:
                break
            time.sleep(0.02)
        return not missing

    def deliver(self) -> None:
        """Send all there is now, in this thread.

        Raises
        ------
        Exception
            What MLflow said to the first record that it did not take.
        """
        self.remote.known()
        while self.journal.sent < len(self.journal):
            self._send(list(self.journal)[self.journal.sent])

    def _run(self) -> None:
        pause, last_beat, looked = FIRST_PAUSE, time.monotonic(), False
        while not self._stop.is_set():
            try:
                if not looked:
                    self.remote.known()
                    looked = True
                if record := self.journal.after(self.journal.sent, seconds=1.0):
                    self._send(record)
                elif time.monotonic() - last_beat > HEARTBEAT_SECONDS:
                    last_beat = time.monotonic()
                    self.remote.beat()
                pause, self.trouble = FIRST_PAUSE, ""
            except Exception as error:
                if is_refusal(error):
                    self.refusal = error
                    return
                self.trouble = in_short(error)
                self._try_now.wait(pause)
                self._try_now.clear()
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, record: Record) -> None:
        self.remote.take(record)
        self.journal.sent = record.number + 1
        self._moved = time.monotonic()


def in_short(error: Exception) -> str:
    """Tell an error in a line that is read, not a stack of connection pools."""
    told = " ".join(str(error).split())
    for sign, words in (
        ("NewConnectionError", "no connection"),
        ("ConnectTimeout", "no connection in time"),
        ("Read timed out", "no answer in time"),
        ("too many 500", "it answers with errors (500)"),
    ):
        if sign in told:
            return f"{mlflow.get_tracking_uri()}: {words}"
    return told[:200]


def is_refusal(error: Exception) -> bool:
    """Whether the answer would be the same at another try."""
    if isinstance(error, MlflowException):
        return str(error.error_code) in REFUSALS
    return not isinstance(error, (RequestException, OSError, SQLAlchemyError))
