"""Scores within one source, where telling hospitals apart does not help.

Where each class comes from hospitals of its own, a model can tell classes by telling hospitals
(Maguolo and Nanni, A critic evaluation of methods for COVID-19 automatic detection from X-ray
images, Information Fusion 76, 2021). Among the images of one source that way is closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import (
    Floats,
    Labels,
    check_predictions,
)
from cxr_mlflow.names import slug

UNKNOWN = "unknown"
"""Source of an image whose metadata tell none: no source of its own."""
MIN_IMAGES = 10
"""Fewest images of a class in a source for a score within it."""


@dataclass(frozen=True)
class WithinSource:
    """Scores on the images of one source, among the classes that it has."""

    source: str
    classes: tuple[str, ...]
    num_images: int
    f1_macro: Interval
    roc_auc: Interval


def within_sources(
    y_true: Labels,
    probabilities: Floats,
    sources: Sequence[str],
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
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
    how : Bootstrap
        Its groups are those of all N images.

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
            how.of(rows),
        )
        within = (scores["f1_macro"], scores["roc_auc_macro"])
        found.append(WithinSource(str(source), names, len(rows), *within))
    return sorted(found, key=lambda each: -each.num_images)


def never_within(labels: Labels, sources: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Classes without an image in a source that also has another class.

    Nothing measured on such data can show that a score of theirs is not the source's.

    Parameters
    ----------
    labels : integer array of shape (N,)
    sources : sequence of N texts
        `UNKNOWN` is none of them.
    classes : sequence of C names
    """
    labels, told = np.asarray(labels), np.asarray(sources, dtype=object)
    shared: set[int] = set()
    for source in set(told) - {UNKNOWN}:
        present = np.unique(labels[told == source])
        if len(present) > 1:
            shared |= set(present.tolist())
    known = {int(label) for label in np.unique(labels[told != UNKNOWN])}
    return [name for label, name in enumerate(classes) if label in known - shared]


def in_doubt(classes: Iterable[str]) -> str:
    """The end of a line about sources that are listed wrongly for some classes; "" for none."""
    told = ", ".join(classes)
    return f"; but the listed sources of {told} do not fit its films" if told else ""


def within_lines(
    within: Sequence[WithinSource],
    alone: Sequence[str],
    doubted: Mapping[str, Collection[str]] | None = None,
) -> dict[str, str]:
    """Say what was found: name of the control -> words.

    Parameters
    ----------
    within : sequence of WithinSource
    alone : sequence of str
        Classes that share no source with another.
    doubted : mapping of str to collection of str, optional
        Classes whose listed sources do not fit their films -> these sources.
    """

    def doubt(each: WithinSource) -> str:
        wrong = (doubted or {}).items()
        return in_doubt(c for c, sources in wrong if c in each.classes and each.source in sources)

    lines = {
        f"within {each.source}": f"{' vs '.join(each.classes)}, {each.num_images:,} images: macro "
        f"F1 {_told(each.f1_macro)}, ROC AUC {_told(each.roc_auc)}{doubt(each)}"
        for each in within
    }
    if alone:
        verb = "has" if len(alone) == 1 else "have"
        lines["never within a source"] = (
            f"{', '.join(alone)} {verb} no image in a source that has another class: nothing here "
            "can show that the score is not the source's"
        )
    return lines


def within_metrics(within: Sequence[WithinSource]) -> dict[str, float]:
    """Flatten to metric keys: `within/<source>/f1_macro`, `within/<source>/f1_macro_low`, ..."""
    metrics: dict[str, float] = {}
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
