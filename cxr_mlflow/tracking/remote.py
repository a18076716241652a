"""The run at MLflow that a journal is told to: found again, made, told the same thing twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlflow
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.parents import close_dead_runs, link
from cxr_mlflow.tracking.processes import heartbeat
from cxr_mlflow.tracking.run import ask_store
from cxr_mlflow.tracking.tracker import Tracker
from cxr_mlflow.tracking.views import offer_view

JOURNAL = "journal"
"""Tag of a run: the id of the journal it is delivered from, by which it is found again."""
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

    def look(self) -> None:
        """Find out before the first record whether store and run are there, and where to begin."""
        ask_store()
        self.known()
        self.journal.send_again()

    def beat(self) -> None:
        """Show that the process lives."""
        if "run_id" in self.journal.remote:
            self.tracker.set_tags(heartbeat())

    def _open(self, told: Mapping[str, Any], at: int) -> None:
        client = mlflow.MlflowClient()
        run = self.known() or self._found(client, told, at)
        info = run.info
        self.journal.remember(
            run_id=info.run_id, experiment_id=info.experiment_id, artifact_uri=info.artifact_uri
        )
        self.tracker.set_tags(told["tags"])
        _forget_failure(client, info.run_id)  # of an earlier attempt
        if info.status != "RUNNING":
            client.update_run(info.run_id, status="RUNNING")
        joined = told["joined"]
        if joined and joined != info.run_id and active(client, joined):
            link(joined, client.get_run(info.run_id))
            client.set_terminated(joined, "FINISHED")
        close_dead_runs()
        offer_view(info.experiment_id)

    def known(self) -> Run | None:
        """Run that was delivered to before; None if there is none.

        Where somebody deleted it, all that was told is sent anew, to another run.
        """
        run_id = self.journal.remote.get("run_id")
        if run_id is None:
            return None
        run = active(mlflow.MlflowClient(), run_id)
        if run is None:
            self.journal.remember(**dict.fromkeys(self.journal.remote, ""))
            self.journal.sent = 0
        return run

    def _found(self, client: mlflow.MlflowClient, told: Mapping[str, Any], at: int) -> Run:
        """Return the run that `mlflow run` opened, or the one of this journal, or a new one.

        Where somebody deleted the one that was opened then, the one opened for the newest attempt.
        """
        newest = [record.told["joined"] for record in self.journal if record.verb == "open"][-1:]
        for joined in (told["joined"], *newest):
            if joined and (run := active(client, joined)):
                return run
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
        known, client = self.journal.remote, mlflow.MlflowClient()
        if status == "FINISHED" and "refused" in known:
            status, failure = "FAILED", known["refused"]
        elif status == "FINISHED" and (refused := self.journal.refused):
            status, failure = "FAILED", f"not accepted: {refused.why}"
        if failure:
            self.tracker.set_tags({"failure": failure[:500]})
        else:  # somebody took the process for dead
            _forget_failure(client, known["run_id"])
        client.set_terminated(known["run_id"], status, end_time=at)


def active(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """Read a run; None if somebody deleted it, or purged it."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _forget_failure(client: mlflow.MlflowClient, run_id: str) -> None:
    if "failure" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "failure")


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
