"""What a comparison says, before it is Markdown, a page or a terminal: tables and sentences."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from cxr_mlflow.evaluation.comparison import Comparison, RowScore
from cxr_mlflow.evaluation.comparison_verdicts import ONE_SEED
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.metrics import class_slugs
from cxr_mlflow.evaluation.note import NOT_CONTROLLED, NOT_MEASURED

DISCLAIMER = "A research tool. Not for diagnosis."
MANY = 12
"""So many verdicts or lines are shown at once; more are folded, or left to the written report."""
_MARKS = "†‡§¶‖"
SHORT = 64
"""Most characters of a remark where it is not told whole."""


@dataclass(frozen=True)
class Missing:
    """A cell of the matrix that has no score."""

    row: str
    seed: str
    state: str  # "failed", "not run yet", ...
    reason: str


@dataclass(frozen=True)
class Sheet:
    """A table of texts: the first `words` columns hold words, the others numbers."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    words: int = 1
    cut: int = 0  # column that opens the second half, where the sheet is too wide for one
    strong: frozenset[int] = frozenset()  # lines that stand out


@dataclass(frozen=True)
class Section:
    """A part of a report under a title of its own."""

    title: str
    sheet: Sheet | None = None
    sentences: Sequence[str] = ()
    figures: Sequence[str] = ()  # names of the figures that belong here
    lookup: bool = False  # to look something up in, not to be read through


def write_warnings(c: Comparison) -> list[str]:
    """Write what must be read before a score."""
    of_some = [f"{remark} (rows marked {mark})" for remark, mark in footnotes(c).items()]
    return [*shared_remarks(c), *of_some, DISCLAIMER]


def write_sections(c: Comparison, missing: Sequence[Missing] = ()) -> list[Section]:
    """Write all that is told below the headline, in the order of reading."""
    notes = [f"{mark} {in_short(remark)}" for remark, mark in footnotes(c).items()]
    sections = [Section("Scores", _score_sheet(c, missing), notes, ("rows",))]
    if missing:
        cells = [(cell.row, cell.seed, cell.state, cell.reason) for cell in missing]
        sheet = Sheet(("row", "seed", "state", "reason"), cells, words=4)
        sections.append(Section("Without a score", sheet))
    sections.append(Section("Classes", figures=("classes",)))
    if c.pairs:
        sections.append(Section("Which rows differ", sentences=_verdicts(c)))
        many = len(c.pairs) > MANY
        sections.append(Section("All pairs", _pair_sheet(c), figures=("pairs",), lookup=many))
    sections.append(Section("How to read this", sentences=_reading(c), lookup=True))
    sections.append(Section("Runs", _run_sheet(c), lookup=True))
    return sections


def footnotes(c: Comparison) -> dict[str, str]:
    """Remarks that only some rows carry, and the mark of each: they stand beside those rows.

    Returns
    -------
    dict of str to str
        Remark -> mark, in order of appearance; `ONE_SEED` is among the remarks of a row that has
        no more, unless no row has.
    """
    own = [remark for row in c.rows for remark in _own_remarks(c, row)]
    return {remark: _mark(number) for number, remark in enumerate(dict.fromkeys(own))}


def in_short(remark: str) -> str:
    """A remark as it stands beside a mark: the warnings tell it whole, and which mark it has."""
    return textwrap.shorten(remark, SHORT, placeholder=" …")


def shared_remarks(c: Comparison) -> tuple[str, ...]:
    """Remarks that hold for every row; `ONE_SEED` is one of them where no row has more."""
    return (*c.remarks, ONE_SEED) if all(row.num_seeds == 1 for row in c.rows) else c.remarks


def row_marks(c: Comparison) -> dict[str, str]:
    """Name of each row -> the marks of its footnotes, to stand right behind it; often empty."""
    notes = footnotes(c)
    return {row.row: ",".join(notes[remark] for remark in _own_remarks(c, row)) for row in c.rows}


def _own_remarks(c: Comparison, row: RowScore) -> list[str]:
    remarks = [*row.remarks, *([ONE_SEED] if row.num_seeds == 1 else [])]
    return [remark for remark in remarks if remark not in shared_remarks(c)]


def _mark(number: int) -> str:
    return _MARKS[number % len(_MARKS)] * (1 + number // len(_MARKS))


def _score_sheet(c: Comparison, missing: Sequence[Missing]) -> Sheet:
    keys = [f"f1/{key}" for key in class_slugs(c.classes)]
    head = ["row", "seeds", "macro F1", f"{c.level:.0%} interval", "SD over seeds", "accuracy"]
    head += ["minutes a run", *(f"F1 {name}" for name in c.classes)]
    marks = row_marks(c)
    lines = []
    for row in c.rows:
        macro = row.scores["f1_macro"]
        lines.append(
            [
                row.row + marks[row.row],
                _seeds(row, missing),
                score(macro.value),
                span(macro),
                score(row.spread["f1_macro"]),
                score(row.scores["accuracy"].value),
                _minutes([run.minutes for run in row.runs]),
                *(score(row.scores[key].value) for key in keys),
            ]
        )
    return Sheet(head, lines, cut=len(head) - len(keys))


def _seeds(row: RowScore, missing: Sequence[Missing]) -> str:
    """How many seeds a row has, of how many that it was to have."""
    seeds = {run.seed for run in row.runs}
    wanted = seeds | {cell.seed for cell in missing if cell.row == row.row}
    told = f"{len(seeds)}" if wanted == seeds else f"{len(seeds)} of {len(wanted)}"
    return told if len(row.runs) == len(seeds) else f"{told} ({len(row.runs)} runs)"


def _minutes(minutes: Sequence[float]) -> str:
    """Mean of the runs whose time is known."""
    known = [value for value in minutes if not math.isnan(value)]
    return f"{statistics.fmean(known):.1f}" if known else NOT_MEASURED


def _verdicts(c: Comparison) -> list[str]:
    """Sentences of all pairs, first those of the row that all are measured against."""
    reference = c.baseline or c.rows[0].row
    first = sorted(c.pairs, key=lambda pair: reference not in (pair.a, pair.b))
    return [pair.verdict for pair in first]


def _pair_sheet(c: Comparison) -> Sheet:
    head = ["row", "minus row", "differ", "macro F1", f"{c.level:.0%} interval", "p"]
    head += ["p, Holm", "accuracy", "McNemar p", "McNemar p, Holm"]
    lines = [
        [
            pair.a,
            pair.b,
            "yes" if pair.distinguishable else "no",
            difference(pair.difference.value),
            difference_span(pair.difference),
            p_value(pair.p_value),
            p_value(pair.p_adjusted),
            difference(pair.accuracy_difference),
            p_value(pair.mcnemar_p),
            p_value(pair.mcnemar_p_adjusted),
        ]
        for pair in c.pairs
    ]
    strong = frozenset(i for i, pair in enumerate(c.pairs) if pair.distinguishable)
    return Sheet(head, lines, words=3, strong=strong)


def _run_sheet(c: Comparison) -> Sheet:
    lines = [
        [
            row.row,
            run.seed,
            run.name,
            run.run_id,
            score(row.per_run["f1_macro"][place]),
            score(row.per_run["accuracy"][place]),
            _minutes([run.minutes]),
        ]
        for row in c.rows
        for place, run in enumerate(row.runs)
    ]
    head = ["row", "seed", "run", "run id", "macro F1", "accuracy", "minutes"]
    return Sheet(head, lines, words=4)


def _reading(c: Comparison) -> list[str]:
    grouped = c.num_groups < c.num_images
    units = f"{c.num_groups:,} groups, near-duplicates together" if grouped else "single images"
    told = [
        "A row is one configuration; its score is the mean over its seeds. All runs have predicted "
        f"the same {c.num_images:,} test images (digest {c.test_digest[:12]}).",
        f"A {c.level:.0%} interval holds two kinds of chance: which images are in the test set "
        f"({c.samples:,} resamples of {units}), and how a training turns out, as far as the seeds "
        "of the row show it.",
    ]
    if any(row.num_seeds == 1 for row in c.rows):
        told.append(
            "One seed shows nothing of the second kind: such an interval is too narrow. It is the "
            "percentile interval that the note of the run has; with several seeds, and for "
            "differences, it is that of Student's t."
        )
    if c.pairs:
        told += [
            "A difference is measured on the same images, so it can be clear where the intervals "
            "of two rows overlap: judge by the pair, not by the overlap.",
            f"Rows are called distinguishable where p stays below {1 - c.level:.2g}, after Holm's "
            "correction where there are several pairs: among many, some differ by luck. Not "
            "distinguishable does not mean equal; more seeds or images may tell.",
            "McNemar's test looks at the images on which only one of two rows is right; "
            "near-duplicates count as one witness.",
        ]
    told.append(
        "No interval tells how the models would do on images of other hospitals, after another "
        "division of the images, or with other settings."
    )
    remarks = [remark for row in c.rows for remark in row.remarks]
    if any(remark.lower().startswith("not controlled") for remark in remarks):
        told.append(NOT_CONTROLLED)
    return told


def score(value: float) -> str:
    """Write a score with three digits: 0.847."""
    return NOT_MEASURED if math.isnan(value) else f"{value:.3f}"


def span(interval: Interval) -> str:
    """Write the ends of an interval: 0.831–0.862."""
    if math.isnan(interval.low):
        return NOT_MEASURED
    return f"{interval.low:.3f}–{interval.high:.3f}"


def difference(value: float) -> str:
    """Write a difference with its sign: +0.046."""
    return NOT_MEASURED if math.isnan(value) else f"{value:+.3f}".replace("-", "−")


def difference_span(interval: Interval) -> str:
    """Write the ends of the interval of a difference, with their signs: −0.011 to +0.019."""
    if math.isnan(interval.low):
        return NOT_MEASURED
    return f"{difference(interval.low)} to {difference(interval.high)}"


def p_value(value: float) -> str:
    """Write a p-value with three digits; a smaller one says so."""
    if math.isnan(value):
        return NOT_MEASURED
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
