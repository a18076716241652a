"""How sure the numbers are: bootstrap intervals that respect duplicate groups, vectorised.

A resample is a vector of whole weights, one per group; the confusion matrices of all resamples are
then one matrix product, and no metric is ever called in a loop over resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.cells import (
    Array,
    count_cells,
    f1_cells,
    ranking_areas,
    score_cells,
)
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_labels,
    check_predictions,
    class_slugs,
)

CHUNK = 128
"""Resamples worked on at a time: bounds the memory to about 10 MB at 4,000 images."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with the ends of its interval; nan where it was not measured."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bootstrap:
    """How test images are resampled, and what share of the resamples an interval holds.

    Raises
    ------
    InputError
        If `samples` is below 1, or `level` not between 0 and 1.
    """

    groups: Labels | None = None
    """Near-duplicate group of each image, (N,), drawn whole; None: each image on its own."""
    samples: int = 2000
    """Resamples."""
    seed: int = 0
    """Equal seeds give equal resamples: what is scored on them one after the other is paired."""
    level: float = 0.95
    """Coverage aimed at, in (0, 1)."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples={self.samples} must be at least 1")
        if not 0 < self.level < 1:
            raise InputError(f"level={self.level} must lie between 0 and 1; 0.95, not 95")

    def of(self, rows: NDArray[np.generic]) -> Bootstrap:
        """The same for some of the images: their places (M,), or a flag for each image (N,)."""
        return self if self.groups is None else replace(self, groups=np.asarray(self.groups)[rows])

    def members(self, num_images: int) -> NDArray[np.int64]:
        """Group of each image, int64 (N,), renumbered 0..G-1; see `group_members`."""
        return group_members(self.groups, num_images)

    def weights(self, num_groups: int) -> Iterator[Array]:
        """Yield float64 (B, G): how often each group is in each of B <= CHUNK resamples."""
        generator = np.random.default_rng(self.seed)
        for start in range(0, self.samples, CHUNK):
            rows = min(CHUNK, self.samples - start)
            drawn = generator.integers(0, num_groups, size=(rows, num_groups))
            drawn += num_groups * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * num_groups)
            yield counts.reshape(rows, num_groups).astype(float)

    def intervals(
        self, measure: Callable[[Array], dict[str, Array]], num_groups: int
    ) -> dict[str, Interval]:
        """Scores of all images, with percentile intervals from what resamples of them score.

        Parameters
        ----------
        measure : callable
            From weights (B, G), how often each group is there, to scores: key -> float64 (B,).
        num_groups : int
            G.
        """
        values = measure(np.ones((1, num_groups)))
        parts = [measure(weights) for weights in self.weights(num_groups)]
        return {
            key: percentile_interval(
                float(value[0]), np.concatenate([part[key] for part in parts]), self.level
            )
            for key, value in values.items()
        }


def bootstrap_intervals(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of the scores of a fixed model on a fresh test set.

    Groups of near-duplicates are drawn whole, with replacement, as many as there are: images of
    one group are not independent witnesses. The draw is plain, not stratified by class, so the
    intervals include the chance in how many images of each class a test set gets. (A stratified
    draw would hold the class counts and give narrower intervals, for another question.)

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        One row per image, summing to 1.
    classes : sequence of C names
        In index order.
    how : Bootstrap
        Groups, resamples, seed and level.

    Returns
    -------
    dict of str to Interval
        Keys as in `metrics.evaluate`: "accuracy", "balanced_accuracy", "f1_macro", "mcc",
        "roc_auc_macro", and "f1/", "recall/", "precision/", "specificity/", "average_precision/",
        "roc_auc/" of each class. `value` is the score itself. A resample without any image of a
        class does not measure that class (nan) and is left out of the percentiles of the keys it
        touches.

    Raises
    ------
    ValueError
        If the predictions are bad (see `metrics.check_predictions`) or the groups do not fit.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).
    Field and Welsh, Bootstrapping clustered data, JRSS B 69(3), 2007 (resampling whole clusters).
    """
    slugs = class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    members = how.members(len(y_true))
    cells = count_cells(y_true, probabilities.argmax(axis=1), members, len(classes))

    def measure(weights: Array) -> dict[str, Array]:  # float64 (B, G)
        scores = score_cells(weights @ cells, slugs)
        per_image = weights[:, members]
        areas = []
        for c, key in enumerate(slugs):
            area, precision = ranking_areas(y_true == c, probabilities[:, c], per_image)
            scores |= {f"roc_auc/{key}": area, f"average_precision/{key}": precision}
            areas.append(area)
        return scores | {"roc_auc_macro": np.mean(areas, axis=0)}

    return how.intervals(measure, len(cells))


def label_intervals(
    y_true: Labels,
    y_pred: Labels,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of what predicted labels score, where there is no probability.

    Parameters
    ----------
    y_true, y_pred : integer arrays of shape (N,)
        True and predicted class indices in [0, C).
    classes, how
        As in `bootstrap_intervals`.

    Returns
    -------
    dict of str to Interval
        Those of `bootstrap_intervals` that no probability is in.
    """
    slugs = class_slugs(classes)
    y_true = check_labels(y_true, len(slugs))
    y_pred = check_labels(y_pred, len(slugs), "y_pred")
    members = how.members(len(y_true))
    cells = count_cells(y_true, y_pred, members, len(slugs))

    def measure(weights: Array) -> dict[str, Array]:
        return score_cells(weights @ cells, slugs)

    return how.intervals(measure, len(cells))


def paired_difference(
    y_true: Labels,
    pred_a: Labels,
    pred_b: Labels,
    num_classes: int,
    how: Bootstrap = Bootstrap(),
) -> Interval:
    """Macro F1 of model a minus that of model b, on the same images, with its interval.

    Both models are scored on the same resamples, so that what makes a test set hard for both
    cancels. `low > 0` says that a is better at that level; it is False where nothing was measured.

    Parameters
    ----------
    y_true, pred_a, pred_b : integer arrays of shape (N,)
        True and predicted class indices in [0, num_classes), of the same images in one order.
    num_classes : int
        C.
    how : Bootstrap

    Returns
    -------
    Interval
        In units of F1, so within [-1, 1]. nan where a class has no image.

    Raises
    ------
    ValueError
        If the labels are bad or differ in length, or the groups do not fit.
    """
    y_true = check_labels(y_true, num_classes)
    predictions = {"pred_a": pred_a, "pred_b": pred_b}
    members = how.members(len(y_true))
    cells = []
    for name, pred in predictions.items():
        pred = check_labels(pred, num_classes, name)
        if pred.shape != y_true.shape:
            raise ValueError(f"y_true and {name} differ in length: {len(y_true)}, {len(pred)}")
        cells.append(count_cells(y_true, pred, members, num_classes))

    def measure(weights: Array) -> dict[str, Array]:
        a, b = (f1_cells(weights @ part).mean(axis=-1) for part in cells)
        return {"difference": a - b}

    return how.intervals(measure, len(cells[0]))["difference"]


def group_members(groups: Labels | None, num_images: int) -> NDArray[np.int64]:
    """Group of each image, int64 (N,), renumbered 0..G-1; each image its own by default."""
    if groups is None:
        return np.arange(num_images)
    groups = np.asarray(groups)
    if groups.shape != (num_images,):
        raise ValueError(f"groups must have shape ({num_images},), got {groups.shape}")
    if not np.issubdtype(groups.dtype, np.integer):
        raise ValueError(f"groups must hold integers, their dtype is {groups.dtype}")
    return np.unique(groups, return_inverse=True)[1]


def percentile_interval(value: float, resampled: Array, level: float) -> Interval:
    """Interval of a score from its resampled values (B,); nan among them are left out."""
    measured = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(measured):
        return Interval(value, math.nan, math.nan)
    tail = (1 - level) / 2
    low, high = np.quantile(measured, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
