"""When a model should abstain: a confidence threshold for a stated risk, and what it costs.

It is chosen on validation images and checked on test images, by different functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.cells import Array
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, group_members
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_predictions,
    class_slugs,
)
from cxr_mlflow.evaluation.ratios import Flags, Ratios, by_class, of_films, ratio_intervals

STEPS = 50
"""Thresholds tried: those that answer 2 %, 4 %, ... of the validation images."""
STARTS = 3
"""Places from which the search goes on towards more answers; each may spend a third of delta."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Least confidence at which a model answers, and what is promised of it."""

    threshold: float
    """Answer if the confidence is at least this; inf, so never, where the risk is out of reach."""
    risk: float
    """Stated: largest share of errors among the films answered, near-duplicates counted once."""
    delta: float
    """Chance, over validation sets, that the promise does not hold."""
    coverage: float
    """Share of the validation films that are answered."""
    observed_risk: float
    """Share of errors among these films; nan without any."""
    upper_bound: float
    """Of the risk, with confidence 1 - delta; at most `risk`. 1 without any answer."""

    @property
    def attainable(self) -> bool:
        """Whether any threshold keeps the stated risk."""
        return math.isfinite(self.threshold)


def choose_threshold(
    confidence: Floats,
    correct: Flags,
    *,
    risk: float,
    delta: float = 0.05,
    groups: Labels | None = None,
) -> Threshold:
    """Choose the confidence from which on a model answers, so that its errors stay rare.

    Of the thresholds tried the one with the most answers is taken whose Clopper-Pearson upper bound
    of the risk is at most the stated one. The bound of Geifman and El-Yaniv is kept, their binary
    search is not: which thresholds it visits depends on the errors seen. Here thresholds are tested
    in an order fixed beforehand, from few answers to many, up to the first that fails. Three
    searches start at different places with a third of `delta` each; one surprise among the surest
    images then does not end them all.

    Parameters
    ----------
    confidence : float array of shape (N,)
        Probability of the predicted class of validation images.
    correct : bool array of shape (N,)
        Whether the predicted class is the true one.
    risk : float
        Largest share of errors among the films answered, in (0, 1).
    delta : float
        Chance that the promise may fail, in (0, 1).
    groups : integer array of shape (N,), optional
        Near-duplicate groups. A group is one film: one trial, and an error if any of its answers is
        one.

    Returns
    -------
    Threshold
        Not attainable where too few images, or too many errors among the surest, leave no choice:
        even without any error, ln(3 / delta) / risk images are needed.

    Raises
    ------
    InputError
        If risk or delta is out of range.
    ValueError
        If the arrays do not agree or hold nan.

    References
    ----------
    Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    Angelopoulos, Bates, Candès, Jordan, Lei, Learn then test, 2021 (fixed-sequence testing with
    several starts).
    Clopper and Pearson, The use of confidence or fiducial limits, Biometrika 26, 1934.
    """
    for name, value in (("risk", risk), ("delta", delta)):
        if not 0 < value < 1:
            raise InputError(f"{name}={value} must lie between 0 and 1; 0.05, not 5")
    confidence, correct = _check(confidence, correct)
    members = group_members(groups, len(confidence))
    share = delta / STARTS
    ranks = np.ceil(np.arange(1, STEPS + 1) / STEPS * len(confidence)).astype(int) - 1
    candidates = np.unique(np.sort(confidence)[::-1][ranks])[::-1]  # from few answers to many
    counts = [_trials(confidence >= t, correct, members) for t in candidates]
    usable = [k for k, (trials, _) in enumerate(counts) if _bound(0, trials, share) <= risk]
    chosen = -1
    for start in range(STARTS):
        for k in usable[start * len(usable) // STARTS :]:
            trials, errors = counts[k]
            if _bound(errors, trials, share) > risk:
                break
            chosen = max(chosen, k)
    if chosen < 0:
        return Threshold(threshold=math.inf, risk=risk, delta=delta, coverage=0.0,
                         observed_risk=math.nan, upper_bound=1.0)  # fmt: skip
    trials, errors = counts[chosen]
    return Threshold(
        threshold=float(candidates[chosen]),
        risk=risk,
        delta=delta,
        coverage=trials / (int(members.max()) + 1),
        observed_risk=errors / trials,
        upper_bound=_bound(errors, trials, share),
    )


def _trials(answered: Flags, correct: Flags, members: NDArray[np.int64]) -> tuple[int, int]:
    """Groups with an answer, and groups with a wrong answer."""
    told, wrong = (of_films(flags, members) for flags in (answered, answered & ~correct))
    return int(told.sum()), int(wrong.sum())


def _bound(errors: int, trials: int, delta: float) -> float:
    """Clopper-Pearson upper bound of a share, with confidence 1 - delta."""
    return 1.0 if errors >= trials else float(beta.ppf(1 - delta, errors + 1, trials - errors))


def risk_coverage(confidence: Floats, correct: Flags) -> tuple[Array, Array, float]:
    """Share of errors among the answers, for every share of images answered.

    Parameters
    ----------
    confidence : float array of shape (N,)
    correct : bool array of shape (N,)

    Returns
    -------
    coverage, risk : float64 arrays of shape (K,)
        One point for each of the K different confidences, from few answers to all.
    aurc : float
        Area under the curve: the mean over the images of the risk at their own confidence. 0 if
        all is right; the overall error rate if confidence tells nothing.

    References
    ----------
    El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 11, 2010.
    Geifman, Uziel, El-Yaniv, Bias-reduced uncertainty estimation, ICLR 2019 (AURC).
    """
    confidence, correct = _check(confidence, correct)
    order, ends = _ranking(confidence)
    risk = np.cumsum(~correct[order])[ends] / (ends + 1)
    coverage = (ends + 1) / len(order)
    return coverage, risk, float(np.diff(coverage, prepend=0) @ risk)


def selective_scores(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    threshold: float,
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Check a threshold on images that it was not chosen on, with intervals.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        As the threshold was chosen with: calibrated.
    classes : sequence of C names
    threshold : float
        Least confidence of an answer; inf for none.
    how : Bootstrap

    Returns
    -------
    dict of str to Interval
        "selective_coverage": share of films answered; "selective_risk": share of errors among
        these, in the unit of `choose_threshold`: near-duplicates are one film, answered if one of
        them is, and an error if one answer is; both also with "/<slug>" for the images of one true
        class. "aurc": see `risk_coverage`, of images; it does not depend on the threshold. nan
        where there is nothing to share.
    """
    slugs = class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    members = how.members(len(y_true))
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == y_true
    answered = confidence >= threshold
    ratios: Ratios = {}
    for tail, kept in by_class(y_true, slugs):
        told = of_films(answered & kept, members)
        ratios[f"selective_coverage{tail}"] = (told, of_films(kept, members))
        ratios[f"selective_risk{tail}"] = (of_films(answered & kept & ~correct, members), told)
    order, ends = _ranking(confidence)
    wrong = ~correct[order]

    def area(weights: Array) -> dict[str, Array]:  # (B, G) -> (B,)
        per_image = weights[:, members[order]]
        reached = per_image.cumsum(axis=1)
        risk = (per_image * wrong).cumsum(axis=1)[:, ends] / np.maximum(reached[:, ends], 1)
        steps = np.diff(reached[:, ends], prepend=0, axis=1)
        return {"aurc": (steps * risk).sum(axis=1) / reached[:, -1]}

    scores = ratio_intervals(ratios, replace(how, groups=None))  # of films
    return scores | how.intervals(area, int(members.max()) + 1)


def _ranking(confidence: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Images from the surest on, (N,), and the last place of each different confidence, (K,)."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return order, np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])


def _check(confidence: Floats, correct: Flags) -> tuple[Array, Flags]:
    confidence = np.asarray(confidence, np.float64)
    correct = np.asarray(correct, bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(
            f"need two equal, non-empty vectors, got {confidence.shape}, {correct.shape}"
        )
    if not np.isfinite(confidence).all():
        raise ValueError("a confidence is not finite")
    return confidence.astype(np.float64), correct
