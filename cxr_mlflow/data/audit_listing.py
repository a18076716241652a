"""Whether the films of a class bear out the sources that are listed for them.

Two sources that a class has, and other classes as well, are learnt from the other classes' films.
Were the list right, what was learnt there would tell them apart in this class too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cxr_mlflow.data.audit_features import Floats
from cxr_mlflow.data.audit_shortcuts import (
    MAX_TRAIN,
    MIN_GROUPS,
    Array,
    Estimate,
    Labels,
    fit_forest,
    interval_of,
)

UNKNOWN = "unknown"
SURE = 0.8
"""Vote of the forest from which a film plainly looks like one of the two sources."""
BOTH_SIDES = 0.05
"""Share of a class's films that must plainly look like each source before a list can be doubted.
Measured: 14 % and more where Normal holds adults and children (`docs/data.md`), none in films drawn
without a trace of their source."""
DOUBTED = 0.75
"""A list is doubted where the ROC AUC's interval lies below. Measured on real adults and children:
0.99 by the right list, 0.83 with a tenth of its films dealt to the other source, 0.72 with a fifth,
0.5 shuffled, 0.38 as the release lists them."""


@dataclass(frozen=True)
class Listing:
    """What two listed sources of a class are worth.

    Attributes
    ----------
    class_name : str
    sources : tuple of two str
        Empty where nothing could be measured.
    unmeasured : str
        Why not; "" where it was. All numbers are nan then.
    num_images : int
        Films of the class that are listed under one of the two.
    roc_auc : Estimate
        Of what was learnt on the other classes, for the second source against the first, inside the
        class. The interval has groups of near-duplicates as units.
    sides : tuple of two float
        Shares of these films that plainly look like the first and the second source.
    doubted : bool
        Films plainly look like either source, and not along the list.
    verdict : str
        One sentence in plain words.
    """

    class_name: str
    sources: tuple[str, ...]
    unmeasured: str
    num_images: int
    roc_auc: Estimate
    sides: tuple[float, float]
    doubted: bool
    verdict: str

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Listing:
        """Undo `dataclasses.asdict` and a way through JSON."""
        parts = {"roc_auc": Estimate(**told["roc_auc"])}
        return cls(**told | parts | {k: tuple(told[k]) for k in ("sources", "sides")})

    @property
    def warning(self) -> str:
        """What must be said wherever a score by source is shown."""
        return (
            f"The listed sources of {self.class_name} do not fit its films: what tells them apart "
            f"in other classes has ROC AUC {self.roc_auc} here. The source floor and the scores "
            "within a source rest on that list; --source-file FILE corrects it."
        )


def measure_listings(
    thumbnails: Floats,
    sources: Sequence[str],
    labels: Labels,
    groups: NDArray[np.int64],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> list[Listing]:
    """Hold the listed sources of each class against its films.

    For a class, a forest learns to tell its sources apart on the other classes' films, and is asked
    about the films of the class. Of two sources each needs `MIN_GROUPS` distinct films inside the
    class and outside.

    Parameters
    ----------
    thumbnails : float32 array of shape (N, 64)
        The view "thumbnail" of `audit_features.build_views`.
    sources : sequence of N str
    labels, groups : int64 arrays of shape (N,)
        Class and near-duplicate group. Films with a copy in the class teach nothing about it.
    classes : sequence of C str
    seed : int
        Seeds the trees, and draws what is learnt from where there is too much.

    Returns
    -------
    list of Listing
        For each class with two known sources: one for each pair that could be measured, or one
        that says why none could.
    """
    told = np.asarray(sources, dtype=object)
    found: list[Listing] = []
    for label, class_name in enumerate(classes):
        inside = labels == label
        listed = sorted(set(told[inside]) - {UNKNOWN})
        if len(listed) < 2:
            continue
        outside = ~np.isin(groups, groups[inside])
        kept = [
            source
            for source in listed
            if all(
                _films(groups, told == source, where) >= MIN_GROUPS for where in (inside, outside)
            )
        ]
        if len(kept) < 2:
            found.append(_unmeasured(class_name, len(listed), int(inside.sum())))
            continue
        codes = np.array([kept.index(s) if s in kept else -1 for s in told], np.int64)
        votes = _ask(thumbnails, codes, inside, outside, seed)
        found += _judge_pairs(class_name, kept, codes[inside], votes, groups[inside])
    return found


def _films(
    groups: NDArray[np.int64], of_source: NDArray[np.bool_], where: NDArray[np.bool_]
) -> int:
    """Count distinct films of a source in a place."""
    return len(np.unique(groups[of_source & where]))


def _ask(
    view: Floats,
    codes: Labels,
    inside: NDArray[np.bool_],
    outside: NDArray[np.bool_],
    seed: int,
) -> Array:
    """Votes for each source, float64 (M, S), on the films inside; learnt on those outside."""
    train = np.flatnonzero(outside & (codes >= 0))
    if len(train) > MAX_TRAIN:
        drawn = np.random.default_rng(seed).choice(train, MAX_TRAIN, replace=False)
        train = np.sort(drawn)
    forest = fit_forest(view[train], codes[train], seed)
    return np.asarray(forest.predict_proba(view[inside]), np.float64)


def _judge_pairs(
    class_name: str, sources: list[str], codes: Labels, votes: Array, groups: NDArray[np.int64]
) -> Iterator[Listing]:
    for first, second in itertools.combinations(range(len(sources)), 2):
        rows = np.isin(codes, (first, second))
        pair = votes[rows][:, [first, second]]
        total = pair.sum(1)
        score = np.divide(pair[:, 1], total, out=np.full(len(pair), 0.5), where=total > 0)
        names = (sources[first], sources[second])
        yield judge_listing(class_name, names, score, codes[rows] == second, groups[rows])


def judge_listing(
    class_name: str,
    sources: tuple[str, str],
    votes: Array,
    second: NDArray[np.bool_],
    groups: NDArray[np.int64],
) -> Listing:
    """Score votes against the list and put the result into words.

    Parameters
    ----------
    class_name : str
    sources : tuple of two str
    votes : float64 array of shape (N,)
        From 0, looks like the first source, to 1, looks like the second.
    second : bool array of shape (N,)
        Listed under the second source; both occur.
    groups : int64 array of shape (N,)
    """
    area = roc_auc(votes, second, groups)
    sides = (float((votes <= 1 - SURE).mean()), float((votes >= SURE).mean()))
    doubted = min(sides) >= BOTH_SIDES and area.high < DOUBTED
    pair = f"{sources[0]} and {sources[1]}"
    measured = f"told apart as in other classes with ROC AUC {area}"
    looks = f"{sides[0]:.0%} of these films plainly look like the first, {sides[1]:.0%} like the "
    looks += "second"
    if doubted:
        verdict = f"{class_name}: the list does not fit the films. {pair} are {measured}, where a "
        verdict += f"right list comes near 1; and {looks}."
    elif area.low > 0.5:
        verdict = f"{class_name}: no doubt about the list. {pair} are {measured}."
    else:
        verdict = f"{class_name}: the films neither bear out the list nor contradict it. {pair} "
        verdict += f"are {measured}; {looks}."
    return Listing(class_name, sources, "", len(votes), area, sides, doubted, verdict)


def _unmeasured(class_name: str, num_sources: int, num_images: int) -> Listing:
    reason = f"of its {num_sources} sources no two have {MIN_GROUPS} distinct films each, both in "
    reason += "it and in other classes"
    nothing = float("nan")
    return Listing(
        class_name,
        (),
        reason,
        num_images,
        Estimate(nothing, nothing, nothing),
        (nothing, nothing),
        False,
        f"{class_name}: not measured, {reason}.",
    )


def roc_auc(scores: Array, positive: NDArray[np.bool_], groups: NDArray[np.int64]) -> Estimate:
    """Area under the ROC curve, with groups of near-duplicates as the units of its interval.

    Parameters
    ----------
    scores : float array of shape (N,)
    positive : bool array of shape (N,)
        Some of the images, not all.
    groups : int64 array of shape (N,)

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Comparing the areas under two or more correlated receiver
    operating characteristic curves, Biometrics 44, 1988 (the influence of each image).
    """
    ranks, above, below = rankdata(scores), int(positive.sum()), int((~positive).sum())
    value = float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))
    beaten = np.empty(len(scores))  # share of the other kind that an image stands right to
    beaten[positive] = (ranks[positive] - rankdata(scores[positive])) / below
    beaten[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / above
    influence = (beaten - value) / np.where(positive, above, below)
    return interval_of(value, influence, np.unique(groups, return_inverse=True)[1])
