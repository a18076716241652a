"""Several rows of runs on one table: which is better, and how sure that is.

A row is one configuration, trained with several seeds; all runs have predicted the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison_inputs import (
    NotComparable,
    TestedRun,
    find_row,
    lay_side_by_side,
)
from cxr_mlflow.evaluation.comparison_statistics import (
    Mean,
    Scored,
    average,
    clustered_mcnemar,
    difference_of,
    holm,
    interval_of,
    measure_runs,
)
from cxr_mlflow.evaluation.comparison_verdicts import (
    ByImage,
    against_baseline,
    also_by_image,
    leader,
    verdict,
)
from cxr_mlflow.evaluation.control_facts import CONTROL
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.metrics import class_slugs

__all__ = ["Comparison", "NotComparable", "Pair", "RowScore", "TestedRun", "compare"]


@dataclass(frozen=True)
class RowScore:
    """One configuration: its scores over all its runs.

    Keys of the scores are "f1_macro", "accuracy", "balanced_accuracy" and "f1/<class slug>".
    """

    row: str
    runs: tuple[TestedRun, ...]  # by seed
    scores: dict[str, Interval]  # mean over the runs, see `comparison_statistics.t_interval`
    spread: dict[str, float]  # standard deviation over the runs (ddof 1), nan for one run
    per_run: dict[str, tuple[float, ...]]  # in the order of `runs`
    remarks: tuple[str, ...]  # what must stand beside the scores, of any run

    @property
    def num_seeds(self) -> int:
        """Different seeds; a run that repeats a seed is no further draw of training."""
        return len({run.seed for run in self.runs})


@dataclass(frozen=True)
class Pair:
    """Two rows, and how sure it is that they differ. Adjusted: by Holm, over all pairs shown."""

    a: str  # the row with the higher mean macro F1, or any row where b is the baseline
    b: str
    difference: Interval  # mean macro F1 of a less that of b
    p_value: float
    p_adjusted: float
    accuracy_difference: float
    mcnemar: float  # chi-square, one degree of freedom
    mcnemar_p: float
    mcnemar_p_adjusted: float
    distinguishable: bool  # p_adjusted < 1 - level
    verdict: str

    @property
    def by_image(self) -> ByImage:
        """What McNemar's test says."""
        more = self.a if self.accuracy_difference > 0 else self.b
        return ByImage(more, self.mcnemar_p_adjusted)


@dataclass(frozen=True)
class Comparison:
    """Rows with their scores, pairs with their verdicts, and what all of it rests on."""

    rows: tuple[RowScore, ...]  # the highest mean macro F1 first
    pairs: tuple[Pair, ...]
    classes: tuple[str, ...]
    num_images: int
    num_groups: int  # of near-duplicates, what is resampled
    test_digest: str
    level: float
    samples: int
    remarks: tuple[str, ...]  # those that all rows share
    baseline: str | None

    def table(self) -> pd.DataFrame:
        """Lay the rows out: row, runs, seeds, four columns per score, mean minutes, remarks.

        The columns of a score are `<key>_mean`, `<key>_low`, `<key>_high`, `<key>_sd`.
        """
        lines = []
        for row in self.rows:
            line: dict[str, object] = {"row": row.row, "runs": len(row.runs)}
            line["seeds"] = row.num_seeds
            for key, score in row.scores.items():
                line |= {f"{key}_mean": score.value, f"{key}_low": score.low}
                line |= {f"{key}_high": score.high, f"{key}_sd": row.spread[key]}
            minutes = [run.minutes for run in row.runs if not math.isnan(run.minutes)]
            line["minutes"] = float(np.mean(minutes)) if minutes else math.nan
            lines.append(line | {"remarks": "; ".join(row.remarks)})
        return pd.DataFrame(lines)

    def runs_table(self) -> pd.DataFrame:
        """Lay the runs out: row, seed, run_id, name, every score, minutes, remarks."""
        lines = [
            {"row": row.row, "seed": run.seed, "run_id": run.run_id, "name": run.name}
            | {key: values[place] for key, values in row.per_run.items()}
            | {"minutes": run.minutes, "remarks": "; ".join(run.remarks)}
            for row in self.rows
            for place, run in enumerate(row.runs)
        ]
        return pd.DataFrame(lines)

    def pairs_table(self) -> pd.DataFrame:
        """Lay the pairs out, with columns as `Pair`; those of the interval are its three parts."""
        lines = []
        for pair in self.pairs:
            line: dict[str, object] = dict(vars(pair))
            gap = pair.difference
            line |= {"difference": gap.value, "low": gap.low, "high": gap.high}
            lines.append(line)
        return pd.DataFrame(lines, columns=_PAIR_COLUMNS)

    def headline(self) -> str:
        """Say which row leads, which are not distinguishable from it, and where McNemar differs."""
        return self._headline() + also_by_image(
            [
                (pair.a if pair.by_image.right_more_often == pair.b else pair.b, pair.by_image)
                for pair in self.pairs
                if not pair.distinguishable and pair.by_image.differs(self.level)
            ]
        )

    def _headline(self) -> str:
        scores = {row.row: (row.scores["f1_macro"], row.num_seeds) for row in self.rows}
        if self.baseline is None:
            first = self.rows[0].row
            told = {pair.b: pair.distinguishable for pair in self.pairs if pair.a == first}
            return leader(scores, told, self._controls())
        gaps = {pair.a: (pair.difference.value, pair.distinguishable) for pair in self.pairs}
        return against_baseline(scores, self.baseline, gaps)

    def _controls(self) -> list[str]:
        """Rows whose models were made to see too little."""
        return [r.row for r in self.rows if any(x.startswith(CONTROL) for x in r.remarks)]


_PAIR_COLUMNS = [
    *("a", "b", "difference", "low", "high", "p_value", "p_adjusted", "accuracy_difference"),
    *("mcnemar", "mcnemar_p", "mcnemar_p_adjusted", "distinguishable", "verdict"),
]


def compare(
    runs: Sequence[TestedRun],
    *,
    classes: Sequence[str] | None = None,
    baseline: str | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare rows of runs by their mean macro F1 on the same test images.

    Parameters
    ----------
    runs : sequence of TestedRun
        In any order: it does not change the result.
    classes : sequence of C names, optional
        In index order; by default the names that occur in the predictions, sorted.
    baseline : str, optional
        Label of the row that each other row is compared with, or an unambiguous part of it; by
        default every pair is compared.
    samples, seed : int
        Resamples of the test images; equal seeds give equal intervals.
    level : float
        Coverage aimed at, in (0, 1).

    Raises
    ------
    NotComparable
        If the runs were not tested alike; see `comparison_inputs.lay_side_by_side`.
    InputError
        If there is no run, `baseline` does not name one row, or `samples` or `level` is out of
        range.

    Notes
    -----
    What the intervals and p-values hold is told in `comparison_statistics.t_interval` and
    `clustered_mcnemar`, and in `docs/metrics.md`.
    """
    if not runs:
        raise InputError("there is no run to compare")
    how = Bootstrap(samples=samples, seed=seed, level=level)
    runs = sorted(runs, key=_run_order)
    labels = list(dict.fromkeys(run.row for run in runs))
    if baseline is not None:
        baseline = find_row(baseline, labels)
    tests = lay_side_by_side(runs, classes)
    slugs = class_slugs(tests.classes)
    scored = measure_runs(tests.y_true, tests.y_pred, slugs, replace(how, groups=tests.members))
    places = {label: [i for i, run in enumerate(runs) if run.row == label] for label in labels}
    means = {label: _means(runs, at, scored) for label, at in places.items()}
    rows = [_row(label, runs, at, scored, means[label], level) for label, at in places.items()]
    rows.sort(key=lambda row: (-row.scores["f1_macro"].value, row.row))
    if baseline is None:
        couples = list(combinations(rows, 2))
    else:
        base = next(row for row in rows if row.row == baseline)
        couples = [(row, base) for row in rows if row is not base]
    right = tests.y_pred == tests.y_true
    hits = {label: right[at] for label, at in places.items()}
    mcnemars = [clustered_mcnemar(hits[a.row], hits[b.row], tests.members) for a, b in couples]
    return Comparison(
        rows=tuple(rows),
        pairs=_pairs(couples, means, mcnemars, level),
        classes=tests.classes,
        num_images=len(tests.y_true),
        num_groups=tests.num_groups,
        test_digest=runs[0].test_digest,
        level=level,
        samples=samples,
        remarks=tuple(
            remark for remark in rows[0].remarks if all(remark in row.remarks for row in rows)
        ),
        baseline=baseline,
    )


def _run_order(run: TestedRun) -> tuple[str, int, str, str]:
    """By row, then by seed, as a number where it is one."""
    return run.row, int(run.seed) if run.seed.isdecimal() else -1, run.seed, run.run_id


def _means(
    runs: Sequence[TestedRun], at: Sequence[int], scored: Mapping[str, Scored]
) -> dict[str, Mean]:
    seeds = [runs[i].seed for i in at]
    return {key: average(score, at, seeds) for key, score in scored.items()}


def _row(
    label: str,
    runs: Sequence[TestedRun],
    at: Sequence[int],
    scored: Mapping[str, Scored],
    means: Mapping[str, Mean],
    level: float,
) -> RowScore:
    own = [runs[i] for i in at]
    per_run = {key: tuple(score.values[at].tolist()) for key, score in scored.items()}
    spread = {k: float(np.std(v, ddof=1)) if len(v) > 1 else math.nan for k, v in per_run.items()}
    return RowScore(
        row=label,
        runs=tuple(own),
        scores={key: interval_of(mean, level) for key, mean in means.items()},
        spread=spread,
        per_run=per_run,
        remarks=tuple(dict.fromkeys(remark for run in own for remark in run.remarks)),
    )


def _pairs(
    couples: Sequence[tuple[RowScore, RowScore]],
    means: Mapping[str, Mapping[str, Mean]],
    mcnemars: Sequence[tuple[float, float]],
    level: float,
) -> tuple[Pair, ...]:
    gaps = [
        difference_of(means[a.row]["f1_macro"], means[b.row]["f1_macro"], level) for a, b in couples
    ]
    adjusted = holm([p for _, p in gaps])
    mcnemars_adjusted = holm([p for _, p in mcnemars])
    pairs = []
    for place, (a, b) in enumerate(couples):
        gap, p = gaps[place]
        statistic, mcnemar_p = mcnemars[place]
        pair = Pair(
            a=a.row,
            b=b.row,
            difference=gap,
            p_value=p,
            p_adjusted=adjusted[place],
            accuracy_difference=a.scores["accuracy"].value - b.scores["accuracy"].value,
            mcnemar=statistic,
            mcnemar_p=mcnemar_p,
            mcnemar_p_adjusted=mcnemars_adjusted[place],
            distinguishable=adjusted[place] < 1 - level,
            verdict="",
        )
        seeds, ps = (a.num_seeds, b.num_seeds), (p, adjusted[place])
        told = verdict((a.row, b.row), seeds, gap, ps, pair.by_image, len(couples), level)
        pairs.append(replace(pair, verdict=told))
    return tuple(pairs)
