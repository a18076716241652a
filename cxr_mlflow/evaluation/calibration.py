"""Whether probabilities mean what they say: temperature, calibration error, Brier score.

The temperature is fitted on validation images and never on the images that the scores are told of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from cxr_mlflow.evaluation.cells import Array
from cxr_mlflow.evaluation.intervals import CHUNK, Bootstrap, Interval, percentile_interval
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_labels,
    check_predictions,
    class_slugs,
)
from cxr_mlflow.evaluation.ratios import Ratios, ratio_intervals

MAX_BINS = 15
"""As many as Guo et al. (2017) took, so that numbers compare."""
IMAGES_PER_BIN = 20
"""Least mean number: of fewer images a bin's share is mostly chance, and small sets get fewer bins.
"""
TEMPERATURES = (0.01, 100.0)
"""Ends of what `fit_temperature` returns; a network worse than guessing gets the upper one."""


def fit_temperature(logits: Floats, labels: Labels) -> float:
    """Temperature by which logits are divided, fitted by maximum likelihood.

    The negative log-likelihood is convex in 1/T, so the zero of its slope is the one minimum. The
    labels are smoothed by Laplace's rule, as if each of the C classes had been seen once more at
    every image out of N: without it, images that are all labelled right have no minimum, and a
    single surprise at T near 0 would cost without bound. It moves T by about C/N.

    Parameters
    ----------
    logits : float array of shape (N, C)
        Of validation images, with the prior correction in them.
    labels : integer array of shape (N,)
        True class indices in [0, C).

    Returns
    -------
    float
        Within `TEMPERATURES`: above 1 for a network that is too sure, below 1 for one that is not
        sure enough, 1 where all logits of each image are equal, so that T changes nothing.

    Raises
    ------
    ValueError
        If shapes do not agree, or a value is not finite or no class index.

    References
    ----------
    Guo, Pleiss, Sun, Weinberger, On calibration of modern neural networks, ICML 2017.
    Platt, Probabilistic outputs for support vector machines, 1999 (smoothed labels).
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"need finite logits of shape (N, C), got shape {logits.shape}")
    num_images, num_classes = logits.shape
    labels = check_labels(labels, num_classes)
    if len(labels) != num_images:
        raise ValueError(f"{num_images} rows of logits for {len(labels)} labels")
    logits = logits - logits.mean(axis=1, keepdims=True)
    if not logits.any():
        return 1.0
    kept = num_images / (num_images + num_classes)  # the smoothing adds the mean logit, which is 0
    aimed_at = kept * logits[np.arange(num_images), labels].mean()

    def slope(inverse: float) -> float:
        expected = (softmax(inverse * logits, axis=1) * logits).sum(axis=1).mean()
        return float(expected - aimed_at)

    coldest, hottest = TEMPERATURES
    if slope(1 / coldest) <= 0:
        return coldest
    if slope(1 / hottest) >= 0:
        return hottest
    return float(1 / brentq(slope, 1 / hottest, 1 / coldest, rtol=1e-10))


def expected_calibration_error(happened: NDArray[np.bool_], probability: Floats) -> float:
    """Mean distance of probability and frequency, over bins of equally many images.

    Parameters
    ----------
    happened : bool array of shape (N,)
        Whether it is so: the prediction is right, or the image is of the class.
    probability : float array of shape (N,)
        What was said beforehand.

    Returns
    -------
    float
        In [0, 1]. Too large by chance, the more so the fewer images: a perfectly calibrated model
        has more than 0; `calibration_scores` tells how much more ("ece_floor").

    References
    ----------
    Nixon et al., Measuring calibration in deep learning, CVPR workshops 2019 (equal mass).
    Roelofs et al., Mitigating bias in calibration error estimation, AISTATS 2022.
    """
    gaps = np.bincount(_bins(probability), weights=probability - happened)
    return float(np.abs(gaps).sum() / len(probability))


def calibration_scores(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Score how far probabilities can be taken at their word, with intervals.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        One row per image, summing to 1; raw or calibrated.
    classes : sequence of C names
        In index order.
    how : Bootstrap

    Returns
    -------
    dict of str to Interval
        - "ece": calibration error of the confidence in the predicted class; "ece/<slug>": of the
          probability of a class, whichever is predicted.
        - "ece_floor", "ece_floor/<slug>": the same of a model that is perfectly calibrated and says
          these very probabilities: its mean, and the ends between which chance puts it. An "ece"
          within them is no evidence against the model.
        - "brier": mean over the images of the sum over the classes of (p - y)², 0 to 2;
          "brier/<slug>": its part of one class, 0 to 1; the parts sum to the whole.
        - "loss": cross-entropy, natural logarithm, as in `metrics.evaluate`.

        The keys of a class without images are nan.

        Resampling adds chance to an ECE that has chance in it already, so its interval is the
        percentile interval reflected at the value (the "basic" bootstrap), widened to hold the
        value itself, and reaches down to 0 where the value is within its floor.

    Raises
    ------
    ValueError
        If the input is bad; see `metrics.check_predictions`.

    References
    ----------
    Brier, Verification of forecasts expressed in terms of probability, 1950.
    Vaicenavicius et al., Evaluating model calibration in classification, AISTATS 2019 (the floor).
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 5.2 (basic).
    """
    slugs = class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    error = (probabilities - np.eye(len(classes))[y_true]) ** 2
    tiny = np.finfo(np.float64).eps
    of_truth = probabilities[np.arange(len(y_true)), y_true].clip(tiny, 1 - tiny)
    each = np.ones(len(y_true))
    ratios: Ratios = {"brier": (error.sum(axis=1), each), "loss": (-np.log(of_truth), each)}
    ratios |= {f"brier/{key}": (error[:, c], each) for c, key in enumerate(slugs)}
    scores = ratio_intervals(ratios, how)
    scores |= _calibration_errors(y_true, probabilities, slugs, how)
    for c, key in enumerate(slugs):
        if not (y_true == c).any():
            for name in ("brier", "ece", "ece_floor"):
                scores[f"{name}/{key}"] = Interval(math.nan, math.nan, math.nan)
    return scores


def _calibration_errors(
    y_true: NDArray[np.int64],
    probabilities: Array,
    slugs: Sequence[str],
    how: Bootstrap,
) -> dict[str, Interval]:
    y_pred = probabilities.argmax(axis=1)
    told = np.column_stack([probabilities.max(axis=1), probabilities])  # (N, K), K = C + 1
    bins = np.column_stack([_bins(column) for column in told.T])
    members = how.members(len(y_true))
    sizes = np.bincount(members).astype(float)
    tails = ["", *(f"/{key}" for key in slugs)]

    def happened(labels: NDArray[np.int64]) -> NDArray[np.bool_]:  # (..., N) -> (..., N, K)
        classes = labels[..., None] == np.arange(len(slugs))
        return np.concatenate([(labels == y_pred)[..., None], classes], axis=-1)

    cells = _sums(told - happened(y_true), bins, members)

    def measure(weights: Array) -> dict[str, Array]:
        return dict(zip(tails, _errors(weights, cells, sizes).T, strict=True))

    percentiles = how.intervals(measure, len(sizes))
    # labels that these probabilities would bring about; near-duplicates share their fate
    generator = np.random.default_rng([how.seed, 1])
    ladder = probabilities.cumsum(axis=1)[:, :-1]
    chance = np.empty((how.samples, len(tails)))
    into = [np.eye(MAX_BINS)[column] for column in bins.T]  # (N, bins) each
    for start in range(0, how.samples, CHUNK):
        rows = range(start, min(start + CHUNK, how.samples))
        drawn = generator.random((len(rows), len(sizes)))[:, members]
        labels = (drawn[..., None] >= ladder).sum(axis=-1)
        gaps = told - happened(labels)  # (B, N, K)
        chance[rows] = np.column_stack(
            [np.abs(gaps[..., k] @ into[k]).sum(axis=1) for k in range(told.shape[1])]
        ) / len(y_true)
    found: dict[str, Interval] = {}
    for k, (tail, percentile) in enumerate(percentiles.items()):
        value = percentile.value
        floor = percentile_interval(float(chance[:, k].mean()), chance[:, k], how.level)
        low = 0.0 if value <= floor.high else 2 * value - percentile.high
        high = 2 * value - percentile.low
        found[f"ece{tail}"] = Interval(value, min(max(low, 0.0), value), min(max(high, value), 1.0))
        found[f"ece_floor{tail}"] = floor
    return found


def _bins(probability: Floats) -> NDArray[np.int64]:
    """Bin of each image, (N,) in [0, MAX_BINS): of equal mass; equal probabilities share one."""
    wanted = min(max(len(probability) // IMAGES_PER_BIN, 1), MAX_BINS)
    inner = np.quantile(probability, np.arange(1, wanted) / wanted)
    return np.searchsorted(inner, probability, side="right")


def _sums(gaps: Array, bins: NDArray[np.int64], members: NDArray[np.int64]) -> Array:
    """Sum of gaps (N, K) in each group and bin: (G, K, MAX_BINS)."""
    cells = np.zeros((int(members.max()) + 1, gaps.shape[1], MAX_BINS))
    np.add.at(cells, (members[:, None], np.arange(gaps.shape[1]), bins), gaps)
    return cells


def _errors(weights: Array, cells: Array, sizes: Array) -> Array:
    """Calibration errors (B, K) of resamples (B, G), from cells (G, K, MAX_BINS)."""
    gaps = np.tensordot(weights, cells, axes=1)
    return np.asarray(np.abs(gaps).sum(axis=2) / (weights @ sizes)[:, None])
