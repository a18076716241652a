"""Sends what interrupted and finished runs on this machine told while MLflow was away."""

from __future__ import annotations

import shlex
import time

from cxr_mlflow.config import RunConfig, flag
from cxr_mlflow.data.storage import remove_torn
from cxr_mlflow.environment import unless_set
from cxr_mlflow.errors import InputError
from cxr_mlflow.handover import handlers, retry_gate
from cxr_mlflow.tracking.answers import in_short
from cxr_mlflow.tracking.delivery import REQUEST, Delivery
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.run import set_tracking_uri
from cxr_mlflow.tracking.unfinished import OVER, Unfinished, undelivered

DIED = "its process died without a word"


def sync_runs() -> tuple[list[str], bool]:
    """Deliver every journal of this machine that no living process writes.

    Returns
    -------
    lines : list of str
        What became of each run.
    all_sent : bool
        Whether nothing is left to send.
    """
    with unless_set(REQUEST):
        told = [sync_run(run) for run in undelivered()]
    set_tracking_uri()
    return [line for line, _ in told] or ["nothing to send"], all(sent for _, sent in told)


def sync_run(run: Unfinished) -> tuple[str, bool]:
    """Deliver the journal of a run; one that is over is then forgotten.

    Returns
    -------
    line : str
    sent : bool
    """
    set_tracking_uri(run.command.place["tracking_uri"])
    remove_torn(run.folder)
    try:
        journal = Journal(run.journal)
        records = list(journal)
        if records and records[-1].verb != "end":
            journal.append("end", {"status": "KILLED", "failure": DIED})
    except InputError as failed:
        return f"! {run.command.name}: {failed}", False
    before = journal.sent
    error = ""
    try:
        Delivery(journal, handlers()).deliver()
    except Exception as failed:  # one run must not keep the others from arriving
        error = in_short(failed)
    if retry_gate(journal, only_untried=True):
        error = "its model could not be tried in a clean process; see model_gate.json"
    sent, number = journal.sent, len(journal)
    name = f"{run.command.name} ({journal.remote.get('run_id', 'not at MLflow yet')})"
    if error and sent < number:
        return f"! {name}: {number - sent} of {number} records not sent: {error}", False
    if error:
        return f"! {name}: not accepted: {error}", False
    if run.state == OVER:
        run.forget()
        return f"{name}: all {number} records have arrived", True
    told = f"{number - before} sent" if number > before else "nothing to send"
    return f"{name}: {told}; {interrupted(run, journal)}", True


def interrupted(run: Unfinished, journal: Journal) -> str:
    """Tell of a run that waits to be gone on with: since when, what it takes, how it goes on."""
    last = max((r.time / 1000 for r in journal if r.verb != "end"), default=run.begun)
    days, size = (time.time() - last) / 86_400, run.size / 1e6
    usual = RunConfig().to_params()
    typed = [
        f"--{flag(name)} {shlex.quote(value)}"
        for name, value in run.command.options.items()
        if usual.get(name) != value
    ]
    command = " ".join(["cxr train", *typed])
    if any(name.startswith("tag ") for name in run.command.place):  # a cell: given from outside
        command = "cxr experiment run"
    return (
        f"interrupted {days:.1f} days ago, {size:.0f} MB; its command goes on with it ({command}), "
        f"rm -r {shlex.quote(str(run.folder))} gives it up"
    )
