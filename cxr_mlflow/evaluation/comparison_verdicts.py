"""What a comparison found, in plain words: a sentence per pair and one for all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from cxr_mlflow.evaluation.intervals import Interval

ONE_SEED = "one seed: the chance of training is not in this interval"
_MOST_NAMES = 3


@dataclass(frozen=True)
class ByImage:
    """McNemar's test of a pair: which row is right on more images."""

    right_more_often: str
    p_adjusted: float

    def differs(self, level: float) -> bool:
        """Whether it tells the rows apart."""
        return self.p_adjusted < 1 - level


def verdict(
    rows: tuple[str, str],
    seeds: tuple[int, int],
    difference: Interval,
    p_values: tuple[float, float],
    by_image: ByImage,
    num_pairs: int,
    level: float,
) -> str:
    """Say in one sentence whether a is better than b, and what that rests on.

    Parameters
    ----------
    rows, seeds : pair of str, pair of int
        Labels of a and b, and how many seeds each was trained with.
    difference : Interval
        Mean macro F1 of a less that of b.
    p_values : pair of float
        Of the difference; as it is, and adjusted for `num_pairs`.
    by_image : ByImage
        What McNemar's test says of the same pair.
    num_pairs : int
        Pairs shown.
    level : float
        Of the interval; below 1 - level the adjusted p-value tells rows apart.
    """
    (a, b), (p, adjusted) = rows, p_values
    once = [row for row, number in zip(rows, seeds, strict=True) if number == 1]
    if adjusted < 1 - level:
        said = f"is {'better' if difference.value > 0 else 'worse'} than {b}"
        said += " in these runs" if once else ""
    else:
        said = f"is not distinguishable from {b}"
        said += f" once {num_pairs} comparisons are counted" if p < 1 - level else ""
    holm = f"; Holm over {num_pairs} pairs {_p(adjusted)}" if num_pairs > 1 else ""
    told = (
        f"{a} {said}: {difference.value:+.3f} [{difference.low:.3f}, {difference.high:.3f}] "
        f"macro F1, {seeds[0]} and {_count(seeds[1])} (p {_p(p)}{holm})"
        f"; image by image (McNemar{', Holm' if num_pairs > 1 else ''}) p "
        f"{_p(by_image.p_adjusted)}"
    )
    if by_image.differs(level):
        told += f": {by_image.right_more_often} is right more often"
    if once:
        told += f"; {'both have' if len(once) == 2 else f'{once[0]} has'} {ONE_SEED}"
    return f"{told}."


def also_by_image(others: Sequence[tuple[str, ByImage]]) -> str:
    """Say which pairs McNemar's test tells apart and macro F1 does not; empty if none.

    Parameters
    ----------
    others : sequence of (str, ByImage)
        Of each such pair the row that is right less often, and the test.
    """
    told = [
        f"{found.right_more_often} is right more often than {row} (p {_p(found.p_adjusted)})"
        for row, found in others[:_MOST_NAMES]
    ]
    left = len(others) - _MOST_NAMES
    told += [f"so it is in {left} more pairs"] if left > 0 else []
    return f" Image by image (McNemar) {'; '.join(told)}." if told else ""


def leader(
    scores: Mapping[str, tuple[Interval, int]],
    told_apart: Mapping[str, bool],
    controls: Collection[str] = (),
) -> str:
    """Say which row leads, which are not distinguishable from it, and if these are controls.

    Parameters
    ----------
    scores : mapping of str to (Interval, int)
        Label -> mean macro F1 and number of seeds; the leading row first.
    told_apart : mapping of str to bool
        Label of each other row -> whether the leading row is distinguishable from it.
    controls : collection of str
        Labels of the rows whose models were made to see too little.
    """
    first = next(iter(scores))
    equal = [row for row, differs in told_apart.items() if not differs]
    told = f"{first} leads with {_score(*scores[first])}"
    if not told_apart:
        told = f"{first} has {_score(*scores[first])}"
    elif not equal:
        told += f", and is better than {_others(list(told_apart))}"
    elif len(equal) == len(told_apart):
        told += f", but is not distinguishable from {_others(equal)}"
    else:
        told += f", but is not distinguishable from {listed(equal)}"
    return _sentence(told, scores) + _of_controls([r for r in (first, *equal) if r in controls])


def _of_controls(best: Sequence[str]) -> str:
    """Say what it means that these controls are as good as the best row; empty if there is none."""
    if not best:
        return ""
    what = "is a control" if len(best) == 1 else "are controls"
    return f" {listed(best)} {what}, made to see too little: no score here shows a lung was read."


def against_baseline(
    scores: Mapping[str, tuple[Interval, int]],
    baseline: str,
    gaps: Mapping[str, tuple[float, bool]],
) -> str:
    """Say in one sentence which rows are better and worse than the baseline.

    Parameters
    ----------
    scores : mapping of str to (Interval, int)
        As in `leader`.
    baseline : str
        Its label.
    gaps : mapping of str to (float, bool)
        Label of each other row -> how much its macro F1 is above that of the baseline, and whether
        the two are distinguishable.
    """
    groups: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for row, (gap, differs) in gaps.items():
        found = "better" if gap > 0 else "worse"
        groups[found if differs else "not distinguishable"].append(row)
    told = " — ".join(f"{word}: {listed(rows)}" for word, rows in groups.items() if rows)
    base = f"the baseline {baseline}, {_score(*scores[baseline])}"
    return _sentence(f"Against {base} — {told or 'there is no other row'}", scores)


def _sentence(told: str, scores: Mapping[str, tuple[Interval, int]]) -> str:
    once = sum(seeds == 1 for _, seeds in scores.values())
    if once:
        who = "it has" if len(scores) == 1 else "1 row has" if once == 1 else f"{once} rows have"
        told += f" ({who} {ONE_SEED})"
    return f"{told}."


def _score(score: Interval, seeds: int) -> str:
    ends = f"{score.low:.3f}–{score.high:.3f}"
    return f"macro F1 {score.value:.3f} ({ends}) over {_count(seeds)}"


def _count(seeds: int) -> str:
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def listed(names: Sequence[str]) -> str:
    """Write names in a row: a, b and c; with semicolons where a name has a comma itself."""
    if len(names) < 3:
        return " and ".join(names)
    comma = ";" if any("," in name for name in names) else ","
    return f"{f'{comma} '.join(names[:-1])}{';' if comma == ';' else ''} and {names[-1]}"


def _others(names: Sequence[str]) -> str:
    """All other rows: by name while they are few."""
    return listed(names) if len(names) <= _MOST_NAMES else f"any of the other {len(names)} rows"


def _p(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
