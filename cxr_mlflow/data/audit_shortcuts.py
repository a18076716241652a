"""How well what is no finding predicts the class: cross-validated, with intervals and verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.naive_bayes import CategoricalNB

from cxr_mlflow.data.audit_features import Floats

Labels = NDArray[np.int64]
Array = NDArray[np.float64]

NUM_FOLDS = 5
NUM_TREES = 100
LEVEL = 0.99
"""Of each interval."""
WIDENED = math.sqrt(1 + NUM_FOLDS / (NUM_FOLDS - 1))
"""Intervals are so much wider (1.5) than those of as many independent predictions: where two images
are alike, each is told by what the other taught, and both are right or both are wrong.
Measured on 102 data sets whose classes differ in nothing (4 classes of 24; half of them real films
with shuffled labels, half drawn without a sign): 6 were accused without this, none with it.
"""
MIN_GROUPS = 10
"""Fewest groups of a class with which a predictor is measured."""
MAX_TRAIN = 20_000
"""Most images that one fold learns from; all are predicted."""
STRENGTHS = ((0.1, "slightly"), (0.4, "partly"), (1.0, "strongly"))
"""Words for the share of the way from chance to perfect, each up to its number."""

TITLES = {
    "source": "Source",
    "file": "File facts",
    "mask": "Lung outline",
    "histogram": "Grey histogram",
    "thumbnail": "8 x 8 thumbnail",
    "border": "Border",
}
SEES = {
    "source": "the collection that the metadata name, nothing else",
    "file": "width, height, format, colours, bits and JPEG quality of the file",
    "mask": "the shape of the lung mask, no grey value",
    "histogram": "how often each grey occurs, not where",
    "thumbnail": "64 means of the image, too coarse for a finding",
    "border": "the outer 9 % on every side",
}
MEANS = {
    "source": "Recognising hospitals is enough for this score.",
    "file": "How a file was stored is enough for this score.",
    "mask": "Every masked image shows this outline. A part may be medical: dense lungs are "
    "segmented smaller.",
    "histogram": "Exposure and processing show here. A part may be medical: dense lungs are "
    "brighter.",
    "thumbnail": "Position, age, exposure and large markers show here. A part may be medical.",
    "border": "Markers, labels, posture and collimation show here, hardly any lung.",
}


@dataclass(frozen=True)
class Estimate:
    """A score with the ends of its interval."""

    value: float
    low: float
    high: float

    def widened(self, factor: float) -> Estimate:
        """Return the estimate with an interval so many times as wide, within 0 and 1."""
        low, high = (self.value + factor * (end - self.value) for end in (self.low, self.high))
        return Estimate(self.value, max(low, 0.0), min(high, 1.0))

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Shortcut:
    """What one predictor reaches that sees no finding.

    Attributes
    ----------
    name : str
        A key of `TITLES`.
    unmeasured : str
        Why it was not measured; "" where it was. All numbers are nan then.
    num_images : int
        Predicted, each by a model that has not seen its group.
    balanced_accuracy, f1_macro : Estimate
        With `LEVEL` intervals, widened by `WIDENED`.
    f1, recall : dict of str to float
        By class name.
    chance : float
        Balanced accuracy of any rule that does not look at the image, 1 / classes. It is also the
        highest macro F1 that a rule which knows the class frequencies alone can expect.
    accused : bool
        The balanced accuracy's interval lies above chance.
    strength : str
        "none", or a word of `STRENGTHS`; "" where not measured.
    verdict : str
        One or two sentences in plain words.
    """

    name: str
    unmeasured: str
    num_images: int
    balanced_accuracy: Estimate
    f1_macro: Estimate
    f1: dict[str, float]
    recall: dict[str, float]
    chance: float
    accused: bool
    strength: str
    verdict: str

    @property
    def no_width(self) -> bool:
        """Whether all resamples agree, so that an interval has no width; it is not certainty."""
        return any(each.low == each.high for each in (self.balanced_accuracy, self.f1_macro))

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Shortcut:
        """Undo `dataclasses.asdict`."""
        parts = {k: Estimate(**told[k]) for k in ("balanced_accuracy", "f1_macro")}
        return cls(**told | parts)


def measure_shortcuts(
    views: dict[str, tuple[Floats, NDArray[np.bool_]]],
    labels: Labels,
    groups: NDArray[np.int64],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> list[Shortcut]:
    """Let each view of the images predict the class, and say whether it can.

    Folds are stratified by class and never cut a near-duplicate group. The model is a forest of
    100 extremely randomised trees with balanced class weights: as good as boosting on these views
    at a fraction of the time, and in need of no scaling. For the source it is the table of classes
    by source (naive Bayes with equal priors).

    Parameters
    ----------
    views : dict
        As `audit_features.build_views` returns it.
    labels : int64 array of shape (N,)
    groups : int64 array of shape (N,)
        Near-duplicate groups.
    classes : sequence of C str
    seed : int
        Seeds folds and trees.

    Returns
    -------
    list of Shortcut
        In the order of the views.

    References
    ----------
    Geurts, Ernst and Wehenkel, Extremely randomized trees, Machine Learning 63, 2006.
    Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003 (variance
    of cross-validated scores, hence `WIDENED`).
    DeGrave, Janizek and Lee, AI for radiographic COVID-19 detection selects shortcuts over signal,
    Nature Machine Intelligence 3, 2021 (why a good score on these data may mean nothing).
    """
    folds: dict[bytes, Labels] = {}  # dealt once for all views that have the same rows
    found = []
    for name, (view, has) in views.items():
        rows = labels[has], groups[has]
        if reason := _why_not(name, view[has], *rows, classes):
            found.append(_unmeasured(name, reason, int(has.sum()), classes))
            continue
        if (key := has.tobytes()) not in folds:
            folds[key] = _deal(*rows, seed)
        predicted = _predict(name, view[has], labels[has], folds[key], seed)
        found.append(judge(name, labels[has], predicted, groups[has], classes))
    return found


def _why_not(
    name: str, view: Floats, labels: Labels, groups: NDArray[np.int64], classes: Sequence[str]
) -> str:
    if name == "source" and (not len(view) or np.ptp(view) == 0):
        return "all images have one source, or none is known"
    for label, class_name in enumerate(classes):
        if (found := len(np.unique(groups[labels == label]))) < MIN_GROUPS:
            what = "masks" if name == "mask" else "images"
            return f"{class_name} has {found} distinct {what}, {MIN_GROUPS} are needed"
    return ""


def _unmeasured(name: str, reason: str, num_images: int, classes: Sequence[str]) -> Shortcut:
    nothing = Estimate(*[float("nan")] * 3)
    blank = dict.fromkeys(classes, float("nan"))
    verdict = f"Not measured: {reason}."
    chance = 1 / len(classes)
    return Shortcut(
        name, reason, num_images, nothing, nothing, blank, blank, chance, False, "", verdict
    )


def _deal(labels: Labels, groups: NDArray[np.int64], seed: int) -> Labels:
    """Fold of each image, int64 (N,)."""
    folds = np.empty(len(labels), np.int64)
    dealer = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(dealer.split(labels, labels, groups)):
        folds[test] = number
    return folds


def _predict(name: str, view: Floats, labels: Labels, folds: Labels, seed: int) -> Labels:
    """Class of each image as told by a model that has not seen its fold."""
    predicted = np.empty(len(labels), np.int64)
    rng = np.random.default_rng(seed)
    for number in range(NUM_FOLDS):
        train, test = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        if len(train) > MAX_TRAIN:
            train = np.sort(rng.choice(train, MAX_TRAIN, replace=False))
        if name == "source":
            numbers = view.astype(np.int64)
            model = CategoricalNB(fit_prior=False, min_categories=int(numbers.max()) + 1)
            predicted[test] = model.fit(numbers[train], labels[train]).predict(numbers[test])
        else:
            predicted[test] = fit_forest(view[train], labels[train], seed).predict(view[test])
    return predicted


def fit_forest(view: Floats, labels: Labels, seed: int) -> ExtraTreesClassifier:
    """Train the forest that all views but the source are judged by."""
    forest = ExtraTreesClassifier(
        NUM_TREES, min_samples_leaf=5, class_weight="balanced", n_jobs=-1, random_state=seed
    ).fit(view, labels)
    return forest.set_params(n_jobs=1)  # threads would add the trees' votes up in any order


def judge(
    name: str,
    labels: Labels,
    predicted: Labels,
    groups: NDArray[np.int64],
    classes: Sequence[str],
) -> Shortcut:
    """Score out-of-fold predictions and put the result into words.

    Parameters
    ----------
    name : str
        A key of `TITLES`.
    labels, predicted : int64 arrays of shape (N,)
    groups : int64 array of shape (N,)
        What the intervals count as one witness.
    classes : sequence of C str
        Each occurs in `labels`.
    """
    accuracy, f1_macro, f1, recall = score(labels, predicted, groups, len(classes))
    accuracy, f1_macro = accuracy.widened(WIDENED), f1_macro.widened(WIDENED)
    chance = 1 / len(classes)
    accused = accuracy.low > chance
    share = (accuracy.value - chance) / (1 - chance)
    strength = "none"
    verdict = f"Does not tell the classes beyond chance: balanced accuracy {accuracy}, "
    verdict += f"chance {chance:.2f}."
    if accused:
        strength = next(word for limit, word in STRENGTHS if share <= limit)
        plainest = classes[int(np.argmax(recall))]
        verdict = f"Tells the classes {strength}: balanced accuracy {accuracy}, chance "
        verdict += f"{chance:.2f}; {plainest} most ({recall.max():.0%} found). {MEANS[name]}"
    return Shortcut(
        *(name, "", len(labels), accuracy, f1_macro),
        dict(zip(classes, f1.tolist(), strict=True)),
        dict(zip(classes, recall.tolist(), strict=True)),
        *(chance, accused, strength, verdict),
    )


def score(
    labels: Labels, predicted: Labels, groups: NDArray[np.int64], num_classes: int
) -> tuple[Estimate, Estimate, Array, Array]:
    """Balanced accuracy and macro F1 with intervals; F1 and recall of each class, float64 (C,).

    Both scores are means of ratios of sums over groups. Their standard errors are those of the
    linearised ratios, with groups of near-duplicates as the units.

    References
    ----------
    Woodruff, A simple method for approximating the variance of a complicated estimate, JASA
    66(334), 1971.
    """
    true, told = np.eye(num_classes)[labels], np.eye(num_classes)[predicted]
    hits = true * told
    members = np.unique(groups, return_inverse=True)[1]
    recall = hits.sum(0) / true.sum(0)
    f1 = 2 * hits.sum(0) / (true.sum(0) + told.sum(0))
    of_recall = ((hits - recall * true) / true.sum(0)).mean(1)
    of_f1 = ((2 * hits - f1 * (true + told)) / (true.sum(0) + told.sum(0))).mean(1)
    estimates = (
        interval_of(float(ratio.mean()), influence, members)
        for ratio, influence in ((recall, of_recall), (f1, of_f1))
    )
    return next(estimates), next(estimates), f1, recall


def interval_of(value: float, influence: Array, members: NDArray[np.int64]) -> Estimate:
    """Interval of a score, given each image's influence on it and its group, 0 to G - 1."""
    sums = np.bincount(members, influence)
    spread = np.sqrt(len(sums) / max(len(sums) - 1, 1) * (sums**2).sum())
    reach = float(norm.ppf((1 + LEVEL) / 2) * spread)
    return Estimate(value, max(value - reach, 0.0), min(value + reach, 1.0))
