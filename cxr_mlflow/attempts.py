"""A run may take several attempts: what makes two commands one run, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from cxr_mlflow.config import flag
from cxr_mlflow.describe import Plan
from cxr_mlflow.tracking.journaled import JournaledRun
from cxr_mlflow.tracking.unfinished import Command, Unfinished, others_like
from cxr_mlflow.weights import digest_of

NOT_THE_RUN = frozenset({"fresh", "checkpoint_minutes", "workers", "cache_dir"})
"""Options that change no result, nor where it is told."""
GOES_ON = "! Stopped. The same command goes on from the last checkpoint; --fresh true starts over."
RETRY = "The same command, or `cxr sync`, tries it again"
SYNC = "`cxr sync` sends what is missing"


def command_of(plan: Plan, tracking_uri: str, tags: Mapping[str, str]) -> Command:
    """Name what was asked for, apart from what changes no result.

    Parameters
    ----------
    plan : Plan
    tracking_uri : str
        The same text from whichever folder.
    tags : mapping
        Given from outside: a cell of one experiment is not that of another.
    """
    told = plan.config.to_params()
    options = {name: value for name, value in told.items() if name not in NOT_THE_RUN}
    place = {
        "tracking_uri": tracking_uri,
        "data": str(Path(plan.study.catalog.root).absolute()),
        **{f"tag {name}": value for name, value in tags.items()},
    }
    return Command(plan.name, options, place)


def evidence_of(plan: Plan) -> dict[str, str]:
    """Digests of what a run is made of; where one differs, nothing can go on."""
    return {
        "data_digest": plan.study.catalog.digest,
        "split_digest": plan.study.split.digest,
        "listed_sources": plan.study.sources_digest,
        "first_weights": digest_of(plan.loaded.network.state_dict()),
    }


def announce_attempt(
    console: Console, unfinished: Unfinished, made_with: Mapping[str, str]
) -> None:
    """Say that a run goes on, or which interrupted run does not, and why."""
    if unfinished.is_resumed:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(unfinished.begun))
        told = f"goes on    with the run begun {begun} (attempt {unfinished.attempt})"
        console.print(f"{told}; --fresh true starts over", style="bold", markup=False)
        for name in changed(unfinished, made_with):
            was, now = unfinished.made_with.get(name), made_with[name]
            console.print(
                f"! {name} was {was}, is {now}: other bits than without the interruption",
                style="bold yellow",
                markup=False,
            )
        return
    for other, names in others_like(unfinished.command)[:1]:
        own, its = unfinished.command.options, other.command.options
        differing = ", ".join(f"{flag(n)} was {its.get(n)}, is {own[n]}" for n in names)
        console.print(f"not resumed: an interrupted run ({differing})", markup=False)


def changed(unfinished: Unfinished, made_with: Mapping[str, str]) -> list[str]:
    """Names of the software that an earlier attempt was made with in another version."""
    return [k for k, v in made_with.items() if unfinished.made_with.get(k, v) != v]


def attempt_tags(unfinished: Unfinished, made_with: Mapping[str, str]) -> dict[str, str]:
    """Tags that tell of earlier attempts at a run; none of a first attempt."""
    if not unfinished.is_resumed:
        return {}
    tags = {"attempts": str(unfinished.attempt)}
    if names := changed(unfinished, made_with):
        tags["resumed_with_other"] = ", ".join(names)
    return tags


def announce_delivery(console: Console, run: JournaledRun) -> None:
    """Say loudly if MLflow does not answer; the training begins all the same."""
    if not run.is_delivered:
        trouble = run.delivery.trouble or "no answer yet"
        told = f"MLflow does not answer ({trouble}). Training goes on; all is kept in"
        console.print(
            f"! {told} {run.journal.folder} and sent when it answers",
            style="bold yellow",
            markup=False,
        )


def undelivered_lines(run: JournaledRun) -> list[str]:
    """Say what of a finished run MLflow has not got."""
    if run.is_delivered:
        return []
    sent, number = run.journal.sent, len(run.journal)
    kept = f"! Nothing is lost: they are in {run.journal.folder}. {SYNC}."
    if sent < number:
        why = run.delivery.refusal or run.delivery.trouble or "no answer"
        return [f"! {number - sent} of {number} records are not at MLflow yet ({why}).", kept]
    refused = len(run.delivery.refusals)
    return [
        f"! MLflow did not accept {refused} of {number} records ({run.delivery.refusal}).",
        kept,
    ]
