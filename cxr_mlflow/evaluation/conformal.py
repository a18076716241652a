"""Sets of possible classes with a stated coverage, whatever the network: split conformal.

Fitted on validation images and checked on test images, by different functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.cells import Array
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, group_members
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_labels,
    check_predictions,
    class_slugs,
)
from cxr_mlflow.evaluation.ratios import Flags, Ratios, by_class, of_films, ratio_intervals


def conformal_thresholds(
    y_true: Labels,
    probabilities: Floats,
    *,
    coverage: float,
    per_class: bool,
    groups: Labels | None = None,
) -> Array:
    """Least probability with which a class enters the prediction set, by split conformal.

    A set holds the true class of a fresh image with at least the stated chance, if validation and
    fresh images are exchangeable, whatever the network. This is least ambiguous set-valued
    classification: the score of an image is 1 less the probability of its true class.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C), of validation images.
    probabilities : float array of shape (N, C)
        As they will be given to `prediction_sets`.
    coverage : float
        Stated chance, in (0, 1).
    per_class : bool
        Whether it shall hold for each true class by itself (Mondrian), or over all images.
    groups : integer array of shape (N,), optional
        Near-duplicate groups. A group counts once, by its least sure image, so the groups have to
        be exchangeable, not the images.

    Returns
    -------
    float64 array of shape (C,)
        Compared with probabilities: `prediction_sets`. 0 where so few images leave no choice but
        to always include the class: n images cannot show more than n / (n + 1).

    Raises
    ------
    InputError
        If the coverage is out of range.
    ValueError
        If the predictions are bad (see `metrics.check_predictions`).

    References
    ----------
    Sadinle, Lei, Wasserman, Least ambiguous set-valued classifiers with bounded error levels,
    JASA 114, 2019.
    Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005 (Mondrian).
    Angelopoulos, Bates, A gentle introduction to conformal prediction, 2021 (finite samples).
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage={coverage} must lie between 0 and 1; 0.9, not 90")
    num_classes = np.shape(probabilities)[-1]
    y_true, probabilities = check_predictions(y_true, probabilities, num_classes)
    members = group_members(groups, len(y_true))
    of_truth = probabilities[np.arange(len(y_true)), y_true]

    def limit(kept: Flags) -> float:
        worst = np.full(int(members.max()) + 1, np.inf)
        np.minimum.at(worst, members[kept], of_truth[kept])
        worst = np.sort(worst[np.isfinite(worst)])
        held = math.ceil((len(worst) + 1) * coverage - 1e-9)  # groups that a set has to hold
        return float(worst[len(worst) - held]) if held <= len(worst) else 0.0

    if not per_class:
        return np.full(num_classes, limit(np.ones(len(y_true), bool)))
    return np.array([limit(y_true == c) for c in range(num_classes)])


def prediction_sets(probabilities: Floats, thresholds: Floats) -> Flags:
    """Which classes are possible: bool (N, C), from probabilities (N, C) and thresholds (C,).

    A set may be empty: no class is as probable as it is for nearly all validation images.
    """
    return np.asarray(probabilities) >= np.asarray(thresholds)


def set_scores(
    y_true: Labels,
    sets: Flags,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Check prediction sets on images that they were not fitted on, with intervals.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    sets : bool array of shape (N, C)
        As `prediction_sets` returns them.
    classes : sequence of C names
    how : Bootstrap

    Returns
    -------
    dict of str to Interval
        "set_coverage": share of films whose sets hold the true class, in the unit that
        `conformal_thresholds` promises: near-duplicates are one film, and held if all of them are.
        "set_size": mean number of classes in the set of an image; "set_empty", "set_single": share
        of images with none and with one class in it. All also with "/<slug>" for the images of one
        true class; nan where a class has no image.
    """
    slugs = class_slugs(classes)
    sets = np.asarray(sets, bool)
    y_true = check_labels(y_true, len(classes))
    if sets.shape != (wanted := (len(y_true), len(classes))):
        raise ValueError(f"sets must have shape {wanted}, got {sets.shape}")
    members = how.members(len(y_true))
    held, size = sets[np.arange(len(y_true)), y_true], sets.sum(axis=1)
    told = {"size": size, "empty": size == 0, "single": size == 1}
    ratios: Ratios = {
        f"set_{name}{tail}": (values * kept, kept)
        for tail, kept in by_class(y_true, slugs)
        for name, values in told.items()
    }
    films: Ratios = {}
    for tail, kept in by_class(y_true, slugs):
        there = of_films(kept, members)
        films[f"set_coverage{tail}"] = (there & ~of_films(kept & ~held, members), there)
    return ratio_intervals(films, replace(how, groups=None)) | ratio_intervals(ratios, how)
