"""Scores where some classes of a model have no image: averages over those that are there.

A macro average over fewer classes is another quantity, so it has another name: `f1_macro_present`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cxr_mlflow.evaluation.cells import Array, count_cells, ranking_areas, score_cells
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.metrics import (
    PER_CLASS,
    Floats,
    Labels,
    check_labels,
    check_predictions,
    class_slugs,
)

AVERAGES = {"f1_macro": "f1", "balanced_accuracy": "recall", "roc_auc_macro": "roc_auc"}
"""Averages over the classes -> the score of one class that they average."""


def present_classes(y_true: Labels, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes that have an image, in the order of `classes`."""
    there = np.unique(check_labels(y_true, len(classes)))
    return tuple(classes[label] for label in there.tolist())


def present_scores(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Average over the classes that have images, with intervals.

    An image that is taken for an absent class is an error of its own class like any other; the
    predicted columns of the confusion matrix are all there.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
    classes : sequence of C names
    how : Bootstrap

    Returns
    -------
    dict of str to Interval
        "f1_macro_present", "balanced_accuracy_present", "roc_auc_macro_present": means over the
        classes that have images; equal to the averages of all where none is absent. The areas are
        nan where all images are of one class.
    """
    slugs = class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    members = how.members(len(y_true))
    present = np.unique(y_true).tolist()
    cells = count_cells(y_true, probabilities.argmax(axis=1), members, len(classes))

    def measure(weights: Array) -> dict[str, Array]:  # (B, G) -> (B,) each
        scores = score_cells(weights @ cells, slugs)
        per_image = weights[:, members]
        for c in present:
            area, _ = ranking_areas(y_true == c, probabilities[:, c], per_image)
            scores[f"roc_auc/{slugs[c]}"] = area
        return {
            f"{name}_present": np.mean([scores[f"{of}/{slugs[c]}"] for c in present], axis=0)
            for name, of in AVERAGES.items()
        }

    return how.intervals(measure, len(cells))


def over_present(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    classes: Sequence[str],
    present: Sequence[str],
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Lay scores out as if the classes with images were all, for tables that average them.

    Parameters
    ----------
    metrics, intervals : mapping
        As `metrics.evaluate` and `intervals.bootstrap_intervals` return them, with the keys of
        `present_scores` among the intervals.
    classes, present : sequence of str
        Of the model, and those that have images.

    Returns
    -------
    metrics, intervals : dict
        Without the absent classes; "f1_macro" and the like are means over `present`.
    """
    slugs = dict(zip(classes, class_slugs(classes), strict=True))
    absent = {slug for name, slug in slugs.items() if name not in present}
    kept = {key: value for key, value in metrics.items() if _class_of(key) not in absent}
    told = {key: value for key, value in intervals.items() if _class_of(key) not in absent}
    for metric in PER_CLASS:
        each = [metrics.get(f"{metric}/{slugs[name]}", math.nan) for name in present]
        kept[f"{metric}_macro"] = float(np.mean(each))
    for name in AVERAGES:
        told[name] = told.pop(f"{name}_present")
        kept[name] = told[name].value
    return kept, told


def _class_of(key: str) -> str:
    """Slug at the end of `recall/covid`; empty where a key is about no class."""
    return key.partition("/")[2]
