"""Whether a network's features tell the source of an image among images of one class.

A linear probe (Alain and Bengio, Understanding intermediate layers using linear classifier probes,
ICLR workshop, 2017). Inside a class the diagnosis tells nothing of the source, so what the probe
finds is a trace of hospital, age or processing. Networks find it easily (Zech et al., Variable
generalization performance of a deep learning model to detect pneumonia in chest radiographs, PLOS
Medicine 15(11), 2018).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import Floats, Labels
from cxr_mlflow.evaluation.sources import UNKNOWN, in_doubt
from cxr_mlflow.names import slug

MIN_FILMS = 20
"""Fewest distinct films (near-duplicates count once) of a source that is told apart."""
NUM_FOLDS = 5
PENALTY = 0.01
"""Inverse strength of the ridge (scikit-learn's C), for standardised features: hundreds of features
of hundreds of images would be told apart by chance without it."""


@dataclass(frozen=True)
class ProbeScore:
    """How well one view of the images tells their source, each judged by a probe without it."""

    balanced_accuracy: Interval
    roc_auc: Interval  # one source against the rest, mean over the sources


@dataclass(frozen=True)
class SourceProbe:
    """What was found inside one class."""

    class_name: str
    sources: tuple[str, ...]
    num_images: int
    views: Mapping[str, ProbeScore]

    @property
    def chance(self) -> float:
        """Balanced accuracy of a probe that does not look."""
        return 1 / len(self.sources)


def find_probed(
    labels: Labels, sources: Sequence[str], groups: Labels, classes: Sequence[str]
) -> dict[str, NDArray[np.int64]]:
    """Pick the classes inside which sources can be told apart, and the images to do it with.

    Parameters
    ----------
    labels : integer array of shape (N,)
        Class of each image.
    sources : sequence of N texts
    groups : integer array of shape (N,)
        Near-duplicate group of each image.
    classes : sequence of C names

    Returns
    -------
    dict of str to int64 array
        Class name -> places of its images from known sources with `MIN_FILMS` distinct films or
        more. Classes with two such sources, the one with most images first.
    """
    labels, groups, told = np.asarray(labels), np.asarray(groups), np.asarray(sources, dtype=object)
    found = {}
    for label, name in enumerate(classes):
        own = (labels == label) & (told != UNKNOWN)
        enough = [s for s in set(told[own]) if len(set(groups[own & (told == s)])) >= MIN_FILMS]
        if len(enough) > 1:
            found[name] = np.flatnonzero(own & np.isin(told, np.array(enough, dtype=object)))
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def probe_source(
    views: Mapping[str, Floats],
    sources: Sequence[str],
    *,
    class_name: str,
    groups: Labels,
    samples: int = 2000,
    seed: int = 0,
) -> SourceProbe:
    """Let each view of the images of one class tell their source, cross-validated.

    The probe is a logistic regression with a ridge on standardised features, in which each source
    weighs the same. Folds are stratified by source and never cut a group.

    Parameters
    ----------
    views : mapping of str to float array of shape (N, D)
        Features of the images under a name; D may differ between views.
    sources : sequence of N texts
        Two or more different ones.
    class_name : str
    groups : integer array of shape (N,)
        Near-duplicate groups; drawn whole in the intervals as well.
    samples : int
        Bootstrap resamples. The intervals are of the predictions as they are: the chance in the
        probes' own training is not in them, so they are somewhat too narrow (docs/controls.md).
    seed : int
        Deals the folds and draws the resamples.

    Returns
    -------
    SourceProbe

    Raises
    ------
    ValueError
        If there is one source only, or a view does not have a row for each image.
    """
    names, told = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{class_name}: one source cannot be told apart; two are needed")
    if wrong := [name for name, view in views.items() if len(view) != len(told)]:
        raise ValueError(
            f"view {wrong[0]!r} has {len(views[wrong[0]])} rows for {len(told)} images"
        )
    dealer = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    folds = list(dealer.split(told, told, groups))
    scores = {}
    for name, view in views.items():
        probabilities = np.zeros((len(told), len(names)))
        for train, test in folds:
            probe = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000),
            )
            probabilities[test] = probe.fit(view[train], told[train]).predict_proba(view[test])
        measured = bootstrap_intervals(
            told,
            probabilities,
            [f"source {number}" for number in range(len(names))],
            Bootstrap(groups=groups, samples=samples, seed=seed),
        )
        scores[name] = ProbeScore(measured["balanced_accuracy"], measured["roc_auc_macro"])
    return SourceProbe(class_name, tuple(names.tolist()), len(told), scores)


def probe_metrics(probes: Sequence[SourceProbe], view: str) -> dict[str, float]:
    """Flatten to metric keys: `balanced_accuracy/<class>`, `balanced_accuracy_low/<class>`, ...

    Parameters
    ----------
    probes : sequence of SourceProbe
    view : str
        Which of the views; `chance/<class>` and `support/<class>` are the same for all.
    """
    metrics: dict[str, float] = {}
    for probe in probes:
        key, score = slug(probe.class_name), probe.views[view]
        for name, each in (
            ("balanced_accuracy", score.balanced_accuracy),
            ("roc_auc", score.roc_auc),
        ):
            metrics |= {
                f"{name}/{key}": each.value,
                f"{name}_low/{key}": each.low,
                f"{name}_high/{key}": each.high,
            }
        metrics |= {f"chance/{key}": probe.chance, f"support/{key}": float(probe.num_images)}
    return metrics


def probe_line(
    probes: Sequence[SourceProbe],
    classes: Sequence[str],
    *,
    view: str,
    reference: str,
    doubted: Collection[str] = (),
) -> str:
    """Say in a line what a view tells of the source, beside chance and a reference view.

    Parameters
    ----------
    probes : sequence of SourceProbe
    classes : sequence of C names
        All classes; those without a probe are named as not measured.
    view, reference : str
        Names of two views, as a reader is to see them: "features", "8x8 thumbnail".
    doubted : collection of str
        Classes whose listed sources do not fit their films.
    """
    why = f"fewer than two known sources with {MIN_FILMS} distinct films"
    if not probes:
        return f"not measured: every class has {why} in the validation and test images"
    told = []
    for probe in probes:
        score, plain = (probe.views[name].balanced_accuracy for name in (view, reference))
        told.append(
            f"inside {probe.class_name}, the {view} tell {len(probe.sources)} sources apart with "
            f"balanced accuracy {score.value:.2f} ({score.low:.2f}–{score.high:.2f}); "
            f"chance {probe.chance:.2f}, an {reference} {plain.value:.2f}"
            f"{in_doubt({probe.class_name} & set(doubted))}"
        )
    probed = {probe.class_name for probe in probes}
    if rest := [name for name in classes if name not in probed]:
        told.append(f"not measured inside {', '.join(rest)}: {why}")
    return "; ".join(told)
