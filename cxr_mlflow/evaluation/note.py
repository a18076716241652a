"""What a run says to people: the Markdown note of its MLflow page, and the last lines printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.metrics import PER_CLASS, class_slugs, metric_table

NOTE_LIMIT = 8000
"""Most characters of a note: MLflow keeps it as a tag and cuts longer ones off."""
_SOURCES = (
    "In the Kaggle data each class nearly is a source (hospital, age group): a score can come from "
    "the source instead of the disease."
)
NOT_CONTROLLED = (
    "Not controlled: no control model (all but the lungs, their outline alone) was trained. "
    + _SOURCES
)
NO_CONTROLS_YET = (
    "When this model was made, no control model (all but the lungs, their outline alone) had been "
    "trained; its training run tells of later ones. " + _SOURCES
)
"""The same, where it is frozen into the files of a model."""
DISCLAIMER = "A research tool, not for diagnosis."
HEADLINES = {
    "f1_macro": "macro F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "mcc": "MCC",
}
NOT_MEASURED = "–"
BULLET = "> - "
"""Begins each warning."""
CHECKS = "Controls and calibration"
TABLES = ("scores per class", "controls", "confusion", "facts")  # in the order of the note
LEFT_OUT_FIRST = ("confusion", "scores per class", "facts", "controls")
_MOST_WARNINGS, _WARNING_LENGTH, _FACT_LENGTH = 8, 300, 120


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """All that the note and the last lines of a run tell."""

    run_name: str
    model: str
    strategy: str
    weights: str  # "imagenet", "random (ImageNet unreachable)", "partial ImageNet", ...
    seed: int
    image_size: int  # pixels
    mask_mode: str
    epochs_run: int
    best_epoch: int
    data_name: str
    data_digest: str
    split_digest: str
    num_train: int
    num_val: int
    num_test: int
    classes: Sequence[str]
    metrics: Mapping[str, float]  # metrics.evaluate on the test images
    intervals: Mapping[str, Interval]  # intervals.bootstrap_intervals on the same
    confusion: NDArray[np.integer]  # (C, C), rows true
    warnings: Sequence[str] = ()  # what a reader must know before the scores
    num_duplicate_groups: int | None = None  # groups of two or more images
    git_commit: str = "unknown"
    registered_version: str | None = None  # "cxr-classifier version 3 (challenger)"
    level: float = 0.95
    facts: Mapping[str, str] = field(default_factory=dict)  # further rows of the table of facts
    controls: Mapping[str, str] = field(default_factory=dict)  # what was checked -> what was found


def write_note(summary: RunSummary) -> str:
    """Write the Markdown note of a run: warnings, scores, tables, facts.

    Parameters
    ----------
    summary : RunSummary
        What there is to tell.

    Returns
    -------
    str
        At most `NOTE_LIMIT` characters. Where that is too little (many classes), whole tables are
        left out and the note names them.
    """
    scored = (summary.metrics, summary.intervals, summary.level)
    head = [_headline(*scored, summary.warnings), _read_first(summary.warnings), _scores(*scored)]
    tables = {
        "scores per class": _class_table(*scored, summary.classes),
        "facts": _fact_table(summary),
        "confusion": _confusion_table(summary),
    }
    if summary.controls:
        tables["controls"] = _two_columns(CHECKS, summary.controls)
    return _fit(head, tables)


def write_scores(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    classes: Sequence[str],
    warnings: Sequence[str] = (),
    *,
    level: float = 0.95,
    controls: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """Write the Markdown note of a run that only scored a model.

    Parameters
    ----------
    metrics, intervals : mapping
        As `metrics.evaluate` and `intervals.bootstrap_intervals` return them.
    classes : sequence of C names
        In index order.
    warnings : sequence of str
        What a reader must know before the scores.
    level : float
        Level of the intervals.
    controls, facts : mapping of str to str, optional
        Rows of the tables of controls and of facts.

    Returns
    -------
    str
        At most `NOTE_LIMIT` characters, as in `write_note`.
    """
    scored = (metrics, intervals, level)
    head = [_headline(*scored, warnings), _read_first(warnings), _scores(*scored)]
    tables = {"scores per class": _class_table(*scored, classes)}
    tables |= {"controls": _two_columns(CHECKS, controls)} if controls else {}
    tables |= {"facts": _two_columns("Facts", facts)} if facts else {}
    return _fit(head, tables)


def _fit(head: Sequence[str], tables: Mapping[str, str]) -> str:
    """Join the parts; whole tables are left out, and named, until the note fits."""
    kept = [name for name in TABLES if name in tables]
    expendable = [name for name in LEFT_OUT_FIRST if name in tables]
    for count in range(len(expendable) + 1):
        missing = expendable[:count]
        parts = [*head, *(tables[name] for name in kept if name not in missing)]
        if missing:
            parts.append(f"Left out here for length, see the artifacts: {', '.join(missing)}.")
        parts.append(f"*{DISCLAIMER}*")
        note = "\n\n".join(part for part in parts if part) + "\n"
        if len(note) <= NOTE_LIMIT:
            break
    return note


def summary_lines(summary: RunSummary) -> list[str]:
    """Write the few lines that end a training in the terminal: scores, and warnings beside them.

    Returns
    -------
    list of str
        Plain text. A line of headline scores, one of the F1 of each class, one of each control,
        then a line that starts with "! " for each warning.
    """
    metrics = summary.metrics
    scores = [
        f"{name} {_number(metrics.get(key))}{_interval(summary.intervals, key, ' ({}-{})')}"
        for key, name in HEADLINES.items()
    ]
    by_class = [
        f"{name} {_number(metrics.get(f'f1/{key}'))}"
        for name, key in zip(summary.classes, class_slugs(summary.classes), strict=True)
    ]
    return [
        f"test, {summary.num_test:,} images: {', '.join(scores)}; {summary.level:.0%} intervals",
        f"F1 per class: {', '.join(by_class)}",
        *(f"{name}: {told}" for name, told in summary.controls.items()),
        *(f"! {' '.join(warning.split())}" for warning in summary.warnings),
    ]


def _read_first(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    lines = [
        escape_markdown(_cut(" ".join(w.split()), _WARNING_LENGTH))
        for w in warnings[:_MOST_WARNINGS]
    ]
    if more := len(warnings) - len(lines):
        lines.append(f"and {more} more, printed by the run")
    return "\n".join(["> **Read this first**", ">", *(f"{BULLET}{line}" for line in lines)])


def _headline(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    level: float,
    warnings: Sequence[str],
) -> str:
    """Macro F1, and the first words of every warning in the same breath: the UI folds the rest."""
    interval = _interval(intervals, "f1_macro", f" ({level:.0%} interval {{}} to {{}})")
    flags = "; ".join(
        escape_markdown(_cut(" ".join(w.split(":")[0].split()), 60)) for w in warnings
    )
    told = f"**Test macro F1 {_number(metrics.get('f1_macro'))}**{interval}"
    return f"{told}. **{flags}.**" if flags else f"{told}."


def _scores(metrics: Mapping[str, float], intervals: Mapping[str, Interval], level: float) -> str:
    lines = [f"| score | value | {level:.0%} interval |", "|---|---:|---:|"]
    for key, name in HEADLINES.items():
        interval = _interval(intervals, key, "{} to {}") or NOT_MEASURED
        lines.append(f"| {name} | {_number(metrics.get(key))} | {interval} |")
    return "\n".join(lines)


def _class_table(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    level: float,
    classes: Sequence[str],
) -> str:
    table = metric_table(metrics, classes)
    f1_keys = [*(f"f1/{key}" for key in class_slugs(classes)), "f1_macro", "f1_weighted"]
    lines = [
        f"| class | n | precision | recall | specificity | F1 ({level:.0%} interval) "
        "| AP | ROC AUC |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row, key in zip(table.to_dict("records"), f1_keys, strict=True):
        cells = [escape_markdown(row["class"]), f"{row['support']:,}"]
        for metric in ("precision", "recall", "specificity", "f1", "average_precision", "roc_auc"):
            cells.append(_number(row[metric]))
            if metric == "f1":
                cells[-1] += _interval(intervals, key, " ({}–{})")
        lines.append(f"| {' | '.join(cells)} |")
    if table[list(PER_CLASS)].isna().any(axis=None):
        lines += ["", f"{NOT_MEASURED}: not measured, because a class has no test image."]
    shown = [intervals[key] for key in f1_keys if key in intervals]
    if any(interval.low == interval.high for interval in shown):
        lines += [
            "",
            "An interval without width means that all resamples agree, not certainty: "
            "0 errors among n images are compatible with an error rate of up to 3/n.",
        ]
    return "\n".join(["### Per class", "", *lines])


def _confusion_table(summary: RunSummary) -> str:
    names = [escape_markdown(name) for name in summary.classes]
    lines = [
        f"| true ↓ predicted → | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for c, (name, row) in enumerate(zip(names, summary.confusion, strict=True)):
        cells = [f"**{n:,}**" if c == p else f"{n:,}" for p, n in enumerate(row)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["### Confusion (test images)", "", *lines])


def _fact_table(summary: RunSummary) -> str:
    duplicates = summary.num_duplicate_groups
    facts = {
        "model": f"{summary.model}, weights={summary.weights}",
        "strategy": summary.strategy,
        "seed": str(summary.seed),
        "input": f"{summary.image_size} px, mask mode {summary.mask_mode}",
        "epochs": f"{summary.epochs_run} run, best {summary.best_epoch}",
        "data": f"{summary.data_name}, digest {summary.data_digest[:12]}",
        "split": f"digest {summary.split_digest[:12]}",
        "images": f"train {summary.num_train:,}, val {summary.num_val:,}, "
        f"test {summary.num_test:,}",
        "duplicate groups": "not looked for" if duplicates is None else f"{duplicates:,}",
        "git commit": summary.git_commit[:12],
        "registered as": summary.registered_version or "not registered",
        **summary.facts,
    }
    facts = {name: _cut(value, _FACT_LENGTH) for name, value in facts.items()}
    return _two_columns("Facts", facts)


def _two_columns(title: str, told: Mapping[str, str]) -> str:
    rows = [
        f"| {escape_markdown(name)} | {escape_markdown(value)} |" for name, value in told.items()
    ]
    return "\n".join([f"### {title}", "", "| what | value |", "|---|---|", *rows])


def _interval(intervals: Mapping[str, Interval], key: str, form: str) -> str:
    """`form` filled with the ends of an interval; empty where there is none."""
    interval = intervals.get(key)
    if interval is None or math.isnan(interval.low):
        return ""
    return form.format(_number(interval.low), _number(interval.high))


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None or math.isnan(value) else f"{value:.3f}"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def escape_markdown(text: str) -> str:
    """Keep names from acting as Markdown or HTML; a folder may be called anything."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]#~])", r"\\\1", text)
    return text.replace("|", "&#124;").replace("\n", " ")
