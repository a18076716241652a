"""Numbers from predictions: NumPy in, a flat dict out. No torch, no plots, no mlflow.

What was not measured is nan, never 0: the scores of a class without test images, and the macro
averages over such a class. `docs/metrics.md` tells what each key means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from cxr_mlflow.names import slug

Labels = NDArray[np.integer]
Floats = NDArray[np.floating]

PER_CLASS = ("precision", "recall", "specificity", "f1", "average_precision", "roc_auc")
"""Metrics that exist per class (`recall/covid`), `_macro` and `_weighted`."""
SUM_TOLERANCE = 1e-3
"""How far a row of probabilities may be from 1; half-precision outputs stay within it."""


def class_slugs(classes: Sequence[str]) -> list[str]:
    """Slugs of the classes, in order.

    Raises
    ------
    ValueError
        If there are fewer than two classes, or two of them have one slug: their keys would collide.
    """
    if len(classes) < 2:
        raise ValueError(f"need two classes or more, got {list(classes)}")
    slugs = [slug(name) for name in classes]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"class names {list(classes)} are not different as metric keys: {slugs}")
    return slugs


def check_labels(labels: Labels, num_classes: int, name: str = "y_true") -> NDArray[np.int64]:
    """Return class indices as int64 (N,), or say what is wrong with them.

    Parameters
    ----------
    labels : integer array of shape (N,)
    num_classes : int
    name : str
        What the message calls the array.

    Raises
    ------
    ValueError
        If the array is empty, not a vector, not of integers, or holds an index outside
        [0, num_classes).
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"{name} must be a non-empty vector, its shape is {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must hold integer class indices, its dtype is {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"{name} must lie in [0, {num_classes}), it spans {labels.min()}..{labels.max()}"
        )
    return labels.astype(np.int64)


def check_predictions(
    y_true: Labels, probabilities: Floats, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (y_true int64 (N,), probabilities float64 (N, C) whose rows sum to 1 exactly).

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
    num_classes : int
        C.

    Raises
    ------
    ValueError
        If the labels are bad (see `check_labels`), the shapes do not agree, a probability is not
        finite or outside [0, 1], or a row does not sum to 1 (within `SUM_TOLERANCE`).
    """
    y_true = check_labels(y_true, num_classes)
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != (wanted := (len(y_true), num_classes)):
        raise ValueError(f"probabilities must have shape {wanted}, got {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        bad = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
        raise ValueError(f"probabilities are not finite in {len(bad)} rows, first {bad[0]}")
    if probabilities.min() < 0 or probabilities.max() > 1 + SUM_TOLERANCE:
        raise ValueError(
            f"probabilities must lie in [0, 1], they span {probabilities.min():.4g}.."
            f"{probabilities.max():.4g}; are these logits?"
        )
    sums = probabilities.sum(axis=1)
    if (worst := np.abs(sums - 1)).max() > SUM_TOLERANCE:
        row = int(worst.argmax())
        raise ValueError(f"probabilities must sum to 1 in each row; row {row} sums to {sums[row]}")
    return y_true, probabilities / sums[:, None]


def confusion(y_true: Labels, y_pred: Labels, num_classes: int) -> NDArray[np.int64]:
    """Count images by true class (row) and predicted class (column).

    Parameters
    ----------
    y_true, y_pred : integer arrays of shape (N,)
        Class indices in [0, num_classes).
    num_classes : int
        C; fixes the shape, whichever classes occur.

    Returns
    -------
    int64 array of shape (C, C)

    Raises
    ------
    ValueError
        If the labels are bad (see `check_labels`) or differ in length.
    """
    y_true = check_labels(y_true, num_classes)
    y_pred = check_labels(y_pred, num_classes, "y_pred")
    if y_true.shape != y_pred.shape:
        raise ValueError(f"y_true and y_pred differ in length: {len(y_true)}, {len(y_pred)}")
    matrix = confusion_matrix(y_true, y_pred, labels=np.arange(num_classes))
    return np.asarray(matrix, dtype=np.int64)


def evaluate(y_true: Labels, probabilities: Floats, classes: Sequence[str]) -> dict[str, float]:
    """Score probabilities against the truth; the predicted class is the most probable one.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        One row per image, summing to 1. Of equal probabilities the first class is predicted.
    classes : sequence of C names
        In index order.

    Returns
    -------
    dict of str to float
        "accuracy", "balanced_accuracy", "mcc", "loss" (cross-entropy, natural logarithm); for each
        metric in `PER_CLASS` the keys "<metric>/<class slug>", "<metric>_macro" and
        "<metric>_weighted"; and "support/<class slug>". Fractions, not percent.

        nan where nothing was measured; a caller that logs the numbers leaves those keys out:

        - a class without an image in `y_true`: all its scores but specificity, and with them the
          macro averages and the balanced accuracy. A mean over the classes that happen to be there
          would be another quantity under the same name. Its support is 0.
        - all images of one class: that class's specificity, average precision and ROC AUC, which
          need a negative, and MCC.

        A class that has images and is never predicted has precision 0 and F1 0, as scikit-learn
        has with `zero_division=0`: none of its images was found. A weighted average weighs by
        support, so absent classes do not touch it. MCC is 0 where all predictions are one class.

    Raises
    ------
    ValueError
        If the input is not as told above; see `check_predictions` and `class_slugs`.

    References
    ----------
    Sokolova and Lapalme, A systematic analysis of performance measures for classification tasks,
    Information Processing & Management 45(4), 2009. Further ones in `docs/metrics.md`.

    Examples
    --------
    >>> scores = evaluate(np.array([0, 0, 1]), np.array([[1, 0], [0.2, 0.8], [0, 1]]), ["A", "B"])
    >>> round(scores["accuracy"], 3), scores["recall/a"], scores["precision/b"]
    (0.667, 0.5, 0.5)
    """
    slugs = class_slugs(classes)
    num_classes = len(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, num_classes)
    y_pred = probabilities.argmax(axis=1)
    support = np.bincount(y_true, minlength=num_classes)
    columns = _per_class(y_true, y_pred, probabilities, support)

    one_class_only = np.count_nonzero(support) == 1
    scores = {
        "accuracy": float(accuracy_score(y_true, y_pred)),
        "balanced_accuracy": float(np.mean(columns["recall"])),
        "mcc": math.nan if one_class_only else float(matthews_corrcoef(y_true, y_pred)),
        "loss": float(log_loss(y_true, probabilities, labels=np.arange(num_classes))),
    }
    measured = support > 0
    weights = support[measured] / support.sum()
    for metric, column in columns.items():
        scores[f"{metric}_macro"] = float(np.mean(column))
        scores[f"{metric}_weighted"] = float(weights @ column[measured])
        scores |= {f"{metric}/{key}": float(v) for key, v in zip(slugs, column, strict=True)}
    scores |= {f"support/{key}": float(n) for key, n in zip(slugs, support, strict=True)}
    return scores


def _per_class(
    y_true: NDArray[np.int64],
    y_pred: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    support: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """Metric -> float64 (C,), in the order of `PER_CLASS`; nan where not measured."""
    indices = np.arange(len(support))
    absent = support == 0
    precision, recall, f1, _ = precision_recall_fscore_support(
        y_true, y_pred, labels=indices, average=None, zero_division=0
    )
    for column in (precision, recall, f1):
        column[absent] = np.nan

    negatives = len(y_true) - support
    matrix = confusion(y_true, y_pred, len(support))
    false_positives = matrix.sum(axis=0) - matrix.diagonal()
    specificity = 1 - np.divide(
        false_positives, negatives, out=np.full(len(support), np.nan), where=negatives > 0
    )

    average_precision, roc_auc = np.full((2, len(support)), np.nan)
    for c in indices[~absent & (negatives > 0)]:
        average_precision[c] = average_precision_score(y_true == c, probabilities[:, c])
        roc_auc[c] = roc_auc_score(y_true == c, probabilities[:, c])
    columns = (precision, recall, specificity, f1, average_precision, roc_auc)
    return dict(zip(PER_CLASS, columns, strict=True))


def metric_table(metrics: Mapping[str, float], classes: Sequence[str]) -> pd.DataFrame:
    """Lay the per-class scores of `evaluate` out as a table, with the two averages below.

    Parameters
    ----------
    metrics : mapping
        What `evaluate` returned; keys that were dropped (nan) read as nan.
    classes : sequence of C names
        In index order.

    Returns
    -------
    DataFrame of C + 2 rows
        Column "class" (the last two rows are "macro average" and "weighted average"), a float
        column per metric of `PER_CLASS`, and "support" (int; the averages show the sum).
    """
    slugs = class_slugs(classes)
    support = [int(metrics.get(f"support/{key}", 0)) for key in slugs]
    keys = [*(f"/{key}" for key in slugs), "_macro", "_weighted"]
    table = pd.DataFrame({"class": [*classes, "macro average", "weighted average"]})
    for metric in PER_CLASS:
        table[metric] = [metrics.get(f"{metric}{key}", math.nan) for key in keys]
    table["support"] = [*support, sum(support), sum(support)]
    return table
