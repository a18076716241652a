"""The model card of a run: gathers its facts from plan, training and test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.calibrate import CalibrationCheck
from cxr_mlflow.controls import Controls
from cxr_mlflow.describe import Plan
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.model_card import CardFacts, facts_of
from cxr_mlflow.evaluation.model_card_gather import flat_score
from cxr_mlflow.evaluation.report import RunSummary
from cxr_mlflow.tracking.cards import FIGURE_FILES
from cxr_mlflow.tracking.tracker import as_png
from cxr_mlflow.training.fitting import Trained


def card_of(
    plan: Plan,
    trained: Trained,
    result: Assessment,
    checked: CalibrationCheck,
    summary: RunSummary,
    *,
    controls: Controls,
    explained: Mapping[str, str],
) -> CardFacts:
    """Gather what the card of a finished run tells.

    Parameters
    ----------
    plan, trained, result, checked, summary
        Of the run.
    controls : Controls
        What the sources of the images say.
    explained : mapping of str to str
        What further controls found (saliency, source probe), in words; empty: not measured.
    """
    table, problems = plan.study.catalog.table, plan.study.catalog.problems
    lost = problems[problems["fatal"]].drop_duplicates("path")
    seconds = trained.history["train/seconds"].sum()
    floor = flat_score(controls.metrics, f"{result.split}/source_floor/f1_macro")
    return facts_of(
        summary,
        result,
        params=plan.params(),
        split_counts=plan.study.counts(),
        source_counts=pd.crosstab(table["class_name"], table["source"]),
        left_out={str(k): int(n) for k, n in lost["problem"].value_counts().items()},
        audit=replace(plan.audit, cached=False).summary(),
        controls={**controls.lines, **explained},
        source_floor=floor if floor.value is not None else None,
        calibration=checked.lines,
        calibration_metrics=checked.metrics,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        synthetic=plan.is_demo,
        sees=plan.control or "",
        details={"size": f"{_num_weights(trained):,} trained numbers"},
        training={
            "class shares": _by_class(plan, trained.shares, "{:.1%}"),
            "prior correction": "added to the logits: "
            + _by_class(plan, trained.prior_shift, "{:+.3f}")
            if trained.prior_shift.any()
            else "none",
            "time": f"{seconds / 60:.1f} minutes in the passes over the training images",
        },
    )


def card_figures(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """Draw those of a run's figures that its card shows, as PNG images."""
    return {name: as_png(figures[name]) for name in FIGURE_FILES if name in figures}


def _by_class(plan: Plan, values: NDArray[np.float64], form: str) -> str:
    told = zip(plan.study.catalog.classes, values.tolist(), strict=True)
    return ", ".join(f"{name} {form.format(value)}" for name, value in told)


def _num_weights(trained: Trained) -> int:
    return sum(weights.numel() for weights in trained.network.parameters())
