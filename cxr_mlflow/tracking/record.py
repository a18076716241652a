"""Decides what a run tells MLflow, in one function per moment: start, epoch, end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.names import slug
from cxr_mlflow.tracking.tracker import Log, Tracker

COMPARED = ("confusion_rates", "roc", "precision_recall", "reliability")
"""Figures that are logged by key as well, so that the UI shows those of several runs in a row."""
MEANS = "mean/"
"""How the numbers of a parent run's rows begin."""


def record_start(
    tracker: Log,
    *,
    params: Mapping[str, str],
    config: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    datasets: Mapping[str, tuple[pd.DataFrame, str, str]],
) -> None:
    """Before training: what is about to be done, on which images.

    Parameters
    ----------
    tracker : Log
    params : mapping of str to str
        The whole config, digests, commit, versions.
    config : mapping
        The same config by sections, kept as `config.json`.
    tables, figures : mapping of artifact path to table or figure
    datasets : mapping of context to (table, name, digest)
    """
    tracker.log_params(params)
    tracker.log_json(config, "config.json")
    for path, table in tables.items():
        tracker.log_csv(table, path)
    for path, figure in figures.items():
        tracker.log_figure(figure, path)
    for context, (table, name, digest) in datasets.items():
        tracker.log_dataset(table, name=name, digest=digest, context=context)


def record_epoch(
    tracker: Log, epoch: int, metrics: Mapping[str, float], draws: Mapping[str, int]
) -> None:
    """After an epoch: its metrics, and how often each class was drawn.

    Parameters
    ----------
    tracker : Log
    epoch : int
        From 1; the step of the numbers.
    metrics : mapping of str to float
        Under the keys they are logged by.
    draws : mapping of str to int
        Class name -> images drawn.
    """
    drawn = {f"train/drawn/{slug(name)}": float(count) for name, count in draws.items()}
    tracker.log_metrics({**metrics, **drawn}, step=epoch)


def record_assessment(tracker: Log, result: Assessment) -> None:
    """Scores without a step, predictions and figures under the split's folder."""
    tracker.log_metrics(result.flat())
    tracker.log_csv(result.predictions, f"{result.split}/predictions.csv")
    for name, figure in result.figures.items():
        tracker.log_figure(figure, f"{result.split}/{name}.png")
        if name in COMPARED:
            tracker.log_comparable(figure, f"{result.split}_{name}")


def record_end(
    tracker: Log,
    *,
    metrics_json: Mapping[str, Any],
    metrics: Mapping[str, float],
    note: str = "",
    tags: Mapping[str, str] | None = None,
) -> None:
    """Last of all: the numbers as a file, what is known only at the end, the note.

    Parameters
    ----------
    tracker : Log
    metrics_json : mapping
        Of `report.metrics_json`.
    metrics : mapping of str to float
    note : str
        Markdown; empty: it is written by somebody else.
    tags : mapping of str to str, optional
    """
    tracker.log_metrics(metrics)
    tracker.log_json(metrics_json, "metrics.json")
    tracker.set_tags(tags or {})
    if note:
        record_note(tracker, note)


def record_note(tracker: Log, note: str) -> None:
    """Write the note that a reader of the run page sees first."""
    tracker.log_text(note, "README.md")
    tracker.set_tags({"mlflow.note.content": note})


def record_comparison(
    tracker: Tracker,
    *,
    texts: Mapping[str, str],
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, Figure],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """On the parent run: the table of its cells, as files, figures and numbers.

    It may be told often, as cells come to their ends: each time is a step of the pictures and the
    numbers, for MLflow replaces neither. Numbers of rows that are no longer there become nan.

    Parameters
    ----------
    tracker : Tracker
        Of the parent run.
    texts, tables, figures : mapping of file name to content
        Go to the folder `comparison`; figures, named without an ending, also where the UI compares
        pictures.
    metrics, tags : mapping
    """
    for name, text in texts.items():
        tracker.log_text(text, f"comparison/{name}")
    for name, table in tables.items():
        tracker.log_csv(table, f"comparison/{name}")
    step = max((tracker.next_step(f"comparison_{name}") for name in figures), default=0)
    for name, figure in figures.items():
        tracker.log_figure(figure, f"comparison/{name}.png")
        tracker.log_comparable(figure, f"comparison_{name}", step=step)
    tracker.log_metrics(metrics, step=step)
    told = [name for name, value in tracker.metrics().items() if value == value]
    gone = [name for name in told if name.startswith(MEANS) and name not in metrics]
    tracker.forget(metrics=gone, step=step)
    tracker.set_tags(tags)
