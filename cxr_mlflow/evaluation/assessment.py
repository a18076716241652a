"""Everything that is said about a model's predictions on one set of images, in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import confusion, evaluate
from cxr_mlflow.evaluation.plots import plot_confusion, plot_precision_recall, plot_roc
from cxr_mlflow.evaluation.report import predictions_table

VALIDATION_METRICS = ("loss", "accuracy", "balanced_accuracy", "f1_macro", "mcc", "f1/", "recall/")
"""What is measured after every epoch: names, and beginnings of names, of `metrics.evaluate`."""


@dataclass(frozen=True)
class Assessment:
    """Scores, intervals, figures and the predictions they come from."""

    split: str
    metrics: dict[str, float]
    intervals: dict[str, Interval]
    predictions: pd.DataFrame
    y_true: NDArray[np.int64] = field(repr=False)  # (N,)
    probabilities: NDArray[np.float64] = field(repr=False)  # (N, C)
    figures: dict[str, Figure] = field(repr=False)  # artifact name without folder -> figure

    def flat(self) -> dict[str, float]:
        """Metrics and interval ends under MLflow keys: `test/f1_macro`, `test/f1_macro_low`."""
        named = {f"{self.split}/{name}": value for name, value in self.metrics.items()}
        for name, interval in self.intervals.items():
            head, _, tail = name.partition("/")
            rest = f"/{tail}" if tail else ""
            named[f"{self.split}/{head}_low{rest}"] = interval.low
            named[f"{self.split}/{head}_high{rest}"] = interval.high
        return named


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (N, C) of logits (N, C)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def validation_scores(
    logits: NDArray[np.float64], labels: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, float]:
    """Scores of an epoch, from logits (N, C) and labels (N,)."""
    scores = evaluate(labels, softmax(logits), classes)
    return {name: value for name, value in scores.items() if name.startswith(VALIDATION_METRICS)}


def assess(
    table: pd.DataFrame,
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    *,
    split: str,
    subtitle: str,
    how: Bootstrap,
) -> Assessment:
    """Score predictions and draw what belongs to them.

    Parameters
    ----------
    table : DataFrame of N rows
        Columns `image_id`, `label` and `source` of the images, as in `Catalog.table`.
    probabilities : float array of shape (N, C)
    classes : sequence of C names
    split : str
        What the images are called in metric keys and artifact folders.
    subtitle : str
        What figures say they were computed on.
    how : Bootstrap
    """
    y_true = table["label"].to_numpy(np.int64)
    matrix = confusion(y_true, probabilities.argmax(axis=1), len(classes))
    figures = {
        "confusion_counts": plot_confusion(matrix, classes, normalize=False, subtitle=subtitle),
        "confusion_rates": plot_confusion(matrix, classes, normalize=True, subtitle=subtitle),
        "roc": plot_roc(y_true, probabilities, classes, subtitle=subtitle),
        "precision_recall": plot_precision_recall(
            y_true, probabilities, classes, subtitle=subtitle
        ),
    }
    predictions = predictions_table(
        table["image_id"].tolist(),
        y_true,
        probabilities,
        classes,
        sources=table["source"].tolist(),
    )
    if how.groups is not None:
        predictions["group"] = how.groups
    return Assessment(
        split,
        evaluate(y_true, probabilities, classes),
        bootstrap_intervals(y_true, probabilities, classes, how),
        predictions,
        y_true,
        probabilities,
        figures,
    )
