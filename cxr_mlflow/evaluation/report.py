"""Tables and JSON of a finished run; the words for people are in `note`, reachable from here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.metrics import Floats, Labels, check_predictions, class_slugs
from cxr_mlflow.evaluation.note import (
    NOT_CONTROLLED,
    RunSummary,
    summary_lines,
    write_note,
    write_scores,
)

__all__ = [
    "NOT_CONTROLLED",
    "RunSummary",
    "metrics_json",
    "predictions_table",
    "summary_lines",
    "worst_errors",
    "write_note",
    "write_scores",
]

WORST_ERRORS = 20
"""Errors on the sheet of the worst ones."""


def predictions_table(
    image_ids: Sequence[str],
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Tell for every image what it is, what was predicted, and how sure the model was.

    Parameters
    ----------
    image_ids : sequence of N texts
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        One row per image, summing to 1.
    classes : sequence of C names
        In index order.
    sources : sequence of N texts, optional
        Where each image comes from; "unknown" by default.

    Returns
    -------
    DataFrame of N rows, in the order given
        Columns "image_id", "source", "true", "predicted" (class names), "confidence" (the
        probability of the predicted class), "correct" (bool), and "p_<class slug>" per class.

    Raises
    ------
    ValueError
        If the predictions are bad (see `metrics.check_predictions`) or the lengths differ.
    """
    slugs = class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    sources = ["unknown"] * len(y_true) if sources is None else sources
    if not len(image_ids) == len(sources) == len(y_true):
        raise ValueError(
            f"{len(image_ids)} image ids, {len(sources)} sources, {len(y_true)} predictions"
        )
    y_pred = probabilities.argmax(axis=1)
    names = np.asarray(classes, dtype=object)
    table = pd.DataFrame(
        {
            "image_id": list(image_ids),
            "source": list(sources),
            "true": names[y_true],
            "predicted": names[y_pred],
            "confidence": probabilities.max(axis=1),
            "correct": y_true == y_pred,
        }
    )
    for c, key in enumerate(slugs):
        table[f"p_{key}"] = probabilities[:, c]
    return table


def worst_errors(predictions: pd.DataFrame, limit: int = WORST_ERRORS) -> pd.DataFrame:
    """Pick the wrong predictions of which the model was most sure, the surest first.

    Parameters
    ----------
    predictions : DataFrame
        As `predictions_table` returns it.
    limit : int
        Most rows to return.

    Returns
    -------
    DataFrame of at most `limit` rows
        Rows of `predictions` with their index, which tells where the images are; of equal
        confidence the earlier one first.
    """
    wrong = predictions[~predictions["correct"]]
    return wrong.sort_values("confidence", ascending=False, kind="stable").head(limit)


def metrics_json(
    metrics: Mapping[str, float], intervals: Mapping[str, Interval], *, level: float = 0.95
) -> dict[str, Any]:
    """Arrange scores and intervals for a JSON file that any reader takes.

    Parameters
    ----------
    metrics : mapping
        As `metrics.evaluate` returns it.
    intervals : mapping
        As `intervals.bootstrap_intervals` returns it.
    level : float
        The level of the intervals.

    Returns
    -------
    dict
        {"metrics": {key: number}, "intervals": {key: {"value", "low", "high"}}, "level": number}.
        What was not measured (nan) or is not finite is None: JSON knows neither.
    """
    return {
        "metrics": {key: _finite(value) for key, value in metrics.items()},
        "intervals": {
            key: {
                "value": _finite(interval.value),
                "low": _finite(interval.low),
                "high": _finite(interval.high),
            }
            for key, interval in intervals.items()
        },
        "level": level,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
