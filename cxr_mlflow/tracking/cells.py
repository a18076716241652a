"""The cells of a parent run: which are finished, which have no score, and why."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.entities import Run

from cxr_mlflow.evaluation.comparison_words import Missing
from cxr_mlflow.tracking.parents import Child, PlannedCell, children_of, planned_cells
from cxr_mlflow.tracking.processes import is_dead

NOT_RUN = "not run yet"
STATES = {"FAILED": "failed", "KILLED": "stopped", "RUNNING": "running", "SCHEDULED": "running"}
"""Status of a run -> state of its cell, where the run came to no score."""


@dataclass(frozen=True)
class Cells:
    """The cells that a parent's experiment file asks for, in its order."""

    done: dict[PlannedCell, Child]
    missing: tuple[Missing, ...]


def cells_of(parent: Run) -> Cells:
    """Sort out the cells of a parent run.

    A cell has a score if any attempt at it came to its end; otherwise its newest attempt tells why
    it has none.
    """
    newest: dict[str, Child] = {}
    for child in children_of(parent):
        if child.is_done or child.cell not in newest or not newest[child.cell].is_done:
            newest[child.cell] = child
    done: dict[PlannedCell, Child] = {}
    missing = []
    for cell in planned_cells(parent):
        attempt = newest.get(cell.key)
        if attempt and attempt.is_done:
            done[cell] = attempt
        else:
            missing.append(Missing(cell.row, cell.seed, *_why(attempt)))
    return Cells(done, tuple(missing))


def _why(child: Child | None) -> tuple[str, str]:
    """State of a cell without a score, and the reason."""
    if child is None:
        return NOT_RUN, ""
    if child.is_open and is_dead(child.run.data.tags):
        return "stopped", "its process died without a word"
    if child.is_open:
        return "running", f"run {child.run_id[:8]} on {child.host or 'a machine without a name'}"
    return STATES.get(str(child.run.info.status), NOT_RUN), child.failure
