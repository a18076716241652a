"""What a score owes to where images come from: the source floor, and scores within one source.

Where each class comes from hospitals of its own, a model can tell classes by telling hospitals. The
floor is what a predictor scores that sees the source and no pixel; within one source that way is
closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.evaluation.intervals import Interval, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_predictions,
    class_slugs,
    evaluate,
)
from cxr_mlflow.names import slug

UNKNOWN = "unknown"
"""Source of an image whose metadata tell none: no source of its own."""
MIN_IMAGES = 10
"""Fewest images of a class in a source for a score within it."""


@dataclass(frozen=True)
class SourceFloor:
    """The score of the rule "the class that is most frequent in this source"."""

    f1_macro: float
    f1: dict[str, float]  # class slug -> F1
    rule: dict[str, str]  # source -> class that is predicted for it


@dataclass(frozen=True)
class WithinSource:
    """Scores on the images of one source, among the classes that it has."""

    source: str
    classes: tuple[str, ...]
    num_images: int
    f1_macro: Interval
    roc_auc: Interval


def source_floor(
    train_sources: Sequence[str],
    train_labels: Labels,
    test_sources: Sequence[str],
    test_labels: Labels,
    classes: Sequence[str],
) -> SourceFloor | None:
    """Score a predictor that knows of each image only its source.

    Parameters
    ----------
    train_sources, test_sources : sequences of N and M texts
        Source of each image.
    train_labels, test_labels : integer arrays of shape (N,) and (M,)
        Class indices in [0, C). The rule is learnt from the first and scored on the second.
    classes : sequence of C names

    Returns
    -------
    SourceFloor or None
        None where no training image tells its source: nothing is known then, which is not the same
        as a low floor. A source that training did not have gets the most frequent class.

    References
    ----------
    Maguolo and Nanni, A critic evaluation of methods for COVID-19 automatic detection from X-ray
    images, Information Fusion 76, 2021 (sources tell the class).
    """
    sources, labels = np.asarray(train_sources, dtype=object), np.asarray(train_labels)
    if not (sources != UNKNOWN).any():
        return None
    fallback = int(np.bincount(labels, minlength=len(classes)).argmax())
    rule = {
        str(source): int(np.bincount(labels[sources == source], minlength=len(classes)).argmax())
        for source in dict.fromkeys(sources)
    }
    predicted = np.array([rule.get(str(source), fallback) for source in test_sources])
    scores = evaluate(np.asarray(test_labels), np.eye(len(classes))[predicted], classes)
    return SourceFloor(
        scores["f1_macro"],
        {key: scores[f"f1/{key}"] for key in class_slugs(classes)},
        {source: classes[label] for source, label in rule.items()},
    )


def within_sources(
    y_true: Labels,
    probabilities: Floats,
    sources: Sequence[str],
    classes: Sequence[str],
    *,
    groups: Labels | None = None,
    samples: int = 2000,
) -> list[WithinSource]:
    """Score predictions inside each source with several classes, where the source tells nothing.

    Probabilities are divided anew among the classes of the source: the question there is which of
    *these* an image shows.

    Parameters
    ----------
    y_true : integer array of shape (N,)
    probabilities : float array of shape (N, C)
    sources : sequence of N texts
    classes : sequence of C names
    groups, samples
        As in `intervals.bootstrap_intervals`.

    Returns
    -------
    list of WithinSource
        Sources with at least `MIN_IMAGES` images of each of two classes, the largest first.
    """
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    told = np.asarray(sources, dtype=object)
    found = []
    for source in dict.fromkeys(told):
        if source == UNKNOWN:
            continue
        counts = np.bincount(y_true[told == source], minlength=len(classes))
        present = np.flatnonzero(counts >= MIN_IMAGES)
        if len(present) < 2:
            continue
        rows = np.flatnonzero((told == source) & np.isin(y_true, present))
        names = tuple(classes[int(label)] for label in present)
        scores = bootstrap_intervals(
            np.searchsorted(present, y_true[rows]),
            _among(probabilities[rows], present),
            names,
            groups=None if groups is None else np.asarray(groups)[rows],
            samples=samples,
        )
        within = (scores["f1_macro"], scores["roc_auc_macro"])
        found.append(WithinSource(str(source), names, len(rows), *within))
    return sorted(found, key=lambda each: -each.num_images)


def never_within(labels: Labels, sources: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Classes without an image in a source that also has another class.

    Nothing measured on such data can show that a score of theirs is not the source's.
    """
    labels, told = np.asarray(labels), np.asarray(sources, dtype=object)
    shared: set[int] = set()
    for source in set(told) - {UNKNOWN}:
        present = np.unique(labels[told == source])
        if len(present) > 1:
            shared |= set(present.tolist())
    known = {int(label) for label in np.unique(labels[told != UNKNOWN])}
    return [name for label, name in enumerate(classes) if label in known - shared]


def control_lines(
    floor: SourceFloor | None, within: Sequence[WithinSource], alone: Sequence[str]
) -> dict[str, str]:
    """Say what the source controls found: name of the control -> words."""
    if floor is None:
        return {"source floor": "not measured: the data do not tell their sources"}
    lines = {"source floor": f"macro F1 {floor.f1_macro:.3f} knowing only the source of a file"}
    for each in within:
        lines[f"within {each.source}"] = (
            f"{' vs '.join(each.classes)}, {each.num_images:,} images: macro F1 "
            f"{_told(each.f1_macro)}, ROC AUC {_told(each.roc_auc)}"
        )
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        lines["never within a source"] = (
            f"{', '.join(alone)} {verb} no image in a source that has another class: nothing here "
            "can show that the score is not the source's"
        )
    return lines


def control_metrics(floor: SourceFloor | None, within: Sequence[WithinSource]) -> dict[str, float]:
    """Flatten to metric keys: `source_floor/f1_macro`, `within/<source>/f1_macro_low`, ..."""
    if floor is None:
        return {}
    metrics = {"source_floor/f1_macro": floor.f1_macro}
    metrics |= {f"source_floor/f1/{key}": value for key, value in floor.f1.items()}
    for each in within:
        key = slug(each.source)
        for name, score in (("f1_macro", each.f1_macro), ("roc_auc", each.roc_auc)):
            metrics |= {
                f"within/{key}/{name}": score.value,
                f"within/{key}/{name}_low": score.low,
                f"within/{key}/{name}_high": score.high,
            }
    return metrics


def _among(probabilities: NDArray[np.float64], present: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities (N, K) of some classes, given that it is one of them."""
    part = probabilities[:, present]
    total = part.sum(axis=1, keepdims=True)
    even = np.full_like(part, 1 / len(present))
    return np.where(total > 0, part / np.where(total > 0, total, 1), even)


def _told(score: Interval) -> str:
    return f"{score.value:.3f} ({score.low:.3f}–{score.high:.3f})"
