"""Scores of many resamples at once: confusion matrices and weights in, an array of scores out.

Nothing is resampled here, see `intervals`; what was not measured is nan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def count_cells(
    y_true: NDArray[np.int64], y_pred: NDArray[np.int64], members: NDArray[np.int64], c: int
) -> Array:
    """Confusion matrix of each group, flat: float64 (G, C * C), rows of it true classes.

    Parameters
    ----------
    y_true, y_pred : int64 arrays of shape (N,)
        True and predicted class indices in [0, C).
    members : int64 array of shape (N,)
        Group of each image, 0..G-1.
    c : int
        C.
    """
    num_groups = int(members.max()) + 1
    flat = (members * c + y_true) * c + y_pred
    return np.bincount(flat, minlength=num_groups * c * c).reshape(num_groups, -1).astype(float)


def _ratio(part: Array, whole: Array) -> Array:
    """`part / whole`, nan where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def f1_cells(flat: Array) -> Array:
    """F1 of each class, float64 (B, C), from confusion matrices float64 (B, C * C)."""
    matrix, _, true, predicted = _counts(flat)
    f1 = _ratio(2 * np.diagonal(matrix, axis1=1, axis2=2), true + predicted)
    return np.where(true > 0, f1, np.nan)


def _counts(flat: Array) -> tuple[Array, Array, Array, Array]:
    c = math.isqrt(flat.shape[1])
    matrix = flat.reshape(-1, c, c)
    return matrix, flat.sum(axis=1), matrix.sum(axis=2), matrix.sum(axis=1)


def score_cells(flat: Array, slugs: Sequence[str]) -> dict[str, Array]:
    """Scores of B confusion matrices, float64 (B, C * C): key -> float64 (B,).

    Keys as in `intervals.bootstrap_intervals`, less those that need a probability.
    """
    matrix, total, true, predicted = _counts(flat)
    hits = np.diagonal(matrix, axis1=1, axis2=2)
    present = true > 0
    found = _ratio(hits, predicted)
    per_class = {
        "f1": f1_cells(flat),
        "recall": _ratio(hits, true),
        "precision": np.where(present, np.where(predicted > 0, found, 0.0), np.nan),
        "specificity": 1 - _ratio(predicted - hits, total[:, None] - true),
    }
    scores = {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": per_class["recall"].mean(axis=1),
        "f1_macro": per_class["f1"].mean(axis=1),
        "mcc": _mcc(hits.sum(axis=1), total, true, predicted),
    }
    for metric, columns in per_class.items():
        scores |= {f"{metric}/{key}": columns[:, c] for c, key in enumerate(slugs)}
    return scores


def _mcc(hits: Array, total: Array, true: Array, predicted: Array) -> Array:
    """Matthews correlation of C classes (Gorodkin 2004), with the conventions of `evaluate`."""
    covariance = hits * total - (true * predicted).sum(axis=1)
    spread_true = total**2 - (true**2).sum(axis=1)
    spread_predicted = total**2 - (predicted**2).sum(axis=1)
    score = _ratio(covariance, np.sqrt(spread_true * spread_predicted))
    score[(spread_predicted == 0) & (spread_true > 0)] = 0.0  # all predicted alike: no correlation
    return score


def ranking_areas(
    positive: NDArray[np.bool_], scores: Array, weights: Array
) -> tuple[Array, Array]:
    """Areas under the ROC and the precision-recall curve for each row of weights (B, N).

    Only the sum over all images that are ranked higher is as wide as the images; all else is done
    at the positive ones, so the classes of a set together cost little more than one.

    Parameters
    ----------
    positive : bool array of shape (N,)
    scores : float array of shape (N,)
        Those of positive images should be higher.
    weights : float array of shape (B, N)
        How often each image is there.

    Returns
    -------
    roc_auc, average_precision : float64 arrays of shape (B,)
        The share of (positive, negative) pairs in which the positive has the higher score, ties
        half; and the mean over the positives of the precision where each of them is found. nan
        where a row has no positive or no negative.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    places = np.flatnonzero(positive[order])
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True]) + 1  # of ties, from the top
    tie = np.searchsorted(ends, places, side="right")
    after, before = ends[tie], np.r_[0, ends][tie]
    hits_after, hits_before = (np.searchsorted(places, at) for at in (after, before))
    own = weights[:, order[places]]
    seen, hits = _sums_before(weights[:, order]), _sums_before(own)
    found, reached = hits[:, hits_after], seen[:, after]
    others = seen[:, -1] - hits[:, -1]  # negatives in all
    above = (reached - found + seen[:, before] - hits[:, hits_before]) / 2  # ties half
    measured = np.where(others > 0, hits[:, -1], 0)
    precision = np.divide(found, reached, out=np.zeros_like(found), where=reached > 0)
    return (
        1 - _ratio(np.einsum("bp,bp->b", own, above), measured * others),
        _ratio(np.einsum("bp,bp->b", own, precision), measured),
    )


def _sums_before(values: Array) -> Array:
    """Sums (B, N + 1) of the first 0, 1, ... N columns of values (B, N)."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums
