"""Registers the best model of an experiment: chosen on validation, never on the test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from cxr_mlflow.data.prepare import Study
from cxr_mlflow.data.preprocess import CONTROLS
from cxr_mlflow.evaluation.note import escape_markdown
from cxr_mlflow.experiment.plan import Cell, Plan
from cxr_mlflow.names import slug
from cxr_mlflow.registration import GATE_FILE, enter_registry, gate_files, gate_text
from cxr_mlflow.serving.gate import check_model_loads
from cxr_mlflow.tracking.cards import rewrite_card
from cxr_mlflow.tracking.parents import Child
from cxr_mlflow.tracking.record import record_note
from cxr_mlflow.tracking.tested import as_tested
from cxr_mlflow.tracking.tracker import Tracker

CHOSEN_BY = "best_val_f1_macro"
"""Metric of a run: macro F1 on the validation images at its best epoch."""
UNREGISTERED = "not registered"
OPEN = f"| registered as | {UNREGISTERED} |"
"""What the note of a cell says until it is the best one."""
PASSED_ON = ("data", "weights", "synthetic", "controls")


def choose(done: Mapping[Cell, Child]) -> Cell | None:
    """Pick the row with the best mean on the validation images, and of it the best seed.

    The test images have no say: a model chosen on them would carry their luck into its score.
    Controls are made to see too little, and never picked; None if there is nothing else.
    """
    scores: dict[str, list[float]] = {}
    done = {c: child for c, child in done.items() if c.config.data.mask_mode not in CONTROLS}
    if not done:
        return None
    for cell, child in done.items():
        scores.setdefault(cell.row, []).append(_score(child))
    row = max(scores, key=lambda name: float(np.mean(scores[name])))
    return max((cell for cell in done if cell.row == row), key=lambda cell: _score(done[cell]))


def register_best(plan: Plan, study: Study, done: Mapping[Cell, Child]) -> tuple[Cell | None, str]:
    """Register the model of the best cell.

    Parameters
    ----------
    plan : Plan
    study : Study
    done : mapping of Cell to Child
        Finished cells and their runs; at least one.

    Returns
    -------
    cell : Cell or None
        The best one; None where all are controls.
    told : str
        As what it is registered now.

    Raises
    ------
    NotRegistered
        If it does not load in a clean process.
    """
    cell = choose(done)
    if cell is None:
        return None, "no: all rows are controls"
    child = done[cell]
    tags = child.run.data.tags
    tested = as_tested(child.run, cell.row)
    table = study.catalog.table.set_index("image_id", drop=False).loc[
        tested.predictions["image_id"]
    ]
    tracker = Tracker(child.run_id, child.run.info.experiment_id)
    images, masks = gate_files(table, cell.config.data.mask_mode)
    expected = _probabilities(tested.predictions, study.catalog.classes)[: len(images)]
    gate = check_model_loads(tags["model_uri"], images, masks, expected)
    tracker.log_text(gate_text(gate), GATE_FILE)
    told = enter_registry(
        tags["model_uri"],
        gate,
        tracking=plan.tracking,
        tags={
            **{name: tags[name] for name in PASSED_ON},
            "f1_macro": f"{child.run.data.metrics['test/f1_macro']:.4f}",
            "chosen_by": f"mean {CHOSEN_BY} of its row in {plan.name}, then its own",
        },
        description=tags.get("mlflow.note.content", ""),
    )
    tracker.set_tags({"registered": told})
    note = tags.get("mlflow.note.content", "")
    record_note(tracker, note.replace(OPEN, OPEN.replace(UNREGISTERED, escape_markdown(told))))
    rewrite_card(tracker, lambda facts: replace(facts, registered=told))
    return cell, told


def _score(child: Child) -> float:
    return float(child.run.data.metrics.get(CHOSEN_BY, -1.0))


def _probabilities(predictions: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    return predictions[[f"p_{slug(name)}" for name in classes]].to_numpy(np.float64)
