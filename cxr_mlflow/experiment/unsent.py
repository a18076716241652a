"""Cells whose training is over and whose journal MLflow has not got: not to be trained again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cxr_mlflow.environment import unless_set
from cxr_mlflow.sync import sync_run
from cxr_mlflow.tracking.delivery import REQUEST
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.parents import CELL, PARENT
from cxr_mlflow.tracking.patience import trouble
from cxr_mlflow.tracking.run import set_tracking_uri
from cxr_mlflow.tracking.unfinished import OVER, Command, Unfinished, undelivered

SCORE = "test/f1_macro"
"""Metric of a run: macro F1 on the test images."""


@dataclass(frozen=True)
class Unsent:
    """A training that came to its end, of which MLflow lacks some."""

    key: str
    """Of its cell."""
    options: Mapping[str, str]
    f1_macro: float | None


def send_cells(parent: str, key: str = "") -> list[Unsent]:
    """Send what cells under a parent run told while MLflow was away, if it answers now.

    Of a cell whose process died, its end is sent as well; its command goes on with it all the same.

    Parameters
    ----------
    parent : str
        Id of the parent run.
    key : str, optional
        Of one cell; of all by default, which is for when none is being started.

    Returns
    -------
    list of Unsent
        The trainings that are over, and still not wholly at MLflow.
    """

    def wanted(command: Command) -> bool:
        told = command.place
        return told.get(f"tag {PARENT}") == parent and key in ("", told.get(f"tag {CELL}"))

    left = []
    silent: bool | None = None
    with unless_set(REQUEST):
        for run in undelivered(wanted):
            if silent is None:
                silent = bool(trouble())
            sent = not silent and sync_run(run)[1]
            if not sent and run.state == OVER:
                left.append(_unsent(run))
    set_tracking_uri()
    return left


def _unsent(run: Unfinished) -> Unsent:
    told = [r.told["metrics"] for r in Journal(run.journal) if r.verb == "metrics"]
    scores = [metrics[SCORE] for metrics in told if SCORE in metrics]
    command = run.command
    return Unsent(command.place.get(f"tag {CELL}", ""), command.options, next(iter(scores), None))
