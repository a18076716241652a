"""Puts runs that MLflow knows on one table: with what they share, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import Comparison, TestedRun, compare
from cxr_mlflow.evaluation.comparison_plots import plot_classes, plot_pairs, plot_rows
from cxr_mlflow.evaluation.comparison_report import (
    Missing,
    print_comparison,
    to_html,
    to_markdown,
)
from cxr_mlflow.evaluation.note import NOTE_LIMIT
from cxr_mlflow.experiment.plan import load_plan
from cxr_mlflow.names import slug
from cxr_mlflow.tracking.parents import KIND, find_parent, get_run
from cxr_mlflow.tracking.record import record_comparison
from cxr_mlflow.tracking.registry import use_registry
from cxr_mlflow.tracking.tested import RUN_ID, shared_params, tested_runs
from cxr_mlflow.tracking.tracker import Tracker

SHOWN_PARAMS = {
    "data_digest": "data digest",
    "test_digest": "test digest",
    "image_size": "image size",
    "mask_mode": "mask mode",
    "epochs": "most epochs",
    "git_commit": "code",
    "version/torch": "torch",
}
"""Parameters that are told where all runs share them, with their names in words."""
WRITERS = (".html", ".md", ".csv")


@dataclass(frozen=True)
class Compared:
    """A comparison with all that a report of it tells."""

    comparison: Comparison
    title: str
    about: Mapping[str, str]
    missing: tuple[Missing, ...] = ()

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Plots by file name without suffix."""
        told = f"{self.title}, test, n = {self.comparison.num_images:,}"
        if self.comparison.remarks:
            told += f"; {', '.join(self.comparison.remarks)}"
        figures = {
            "rows": plot_rows(self.comparison, subtitle=told),
            "classes": plot_classes(self.comparison, subtitle=told),
        }
        if self.comparison.pairs:
            figures["pairs"] = plot_pairs(self.comparison, subtitle=told)
        return figures

    def markdown(self) -> str:
        """The report as Markdown."""
        return to_markdown(
            self.comparison, title=self.title, about=self.about, missing=self.missing
        )

    def html(self) -> str:
        """The report as one HTML file that fetches nothing."""
        return to_html(
            self.comparison,
            title=self.title,
            about=self.about,
            figures=self.figures,
            missing=self.missing,
        )

    def show(self, console: Console | None = None) -> None:
        """Print the report on a terminal."""
        console = console or Console(highlight=False, soft_wrap=True)
        print_comparison(
            console, self.comparison, title=self.title, about=self.about, missing=self.missing
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """Tables by file name."""
        return {
            "table.csv": self.comparison.table(),
            "runs.csv": self.comparison.runs_table(),
            "pairs.csv": self.comparison.pairs_table(),
        }

    def write(self, path: Path) -> None:
        """Write the report as the suffix says: .html, .md, or .csv for the table alone.

        Raises
        ------
        InputError
            If the suffix is another, or the file cannot be written.
        """
        check_output(path)
        if path.suffix == ".html":
            text = self.html()
        elif path.suffix == ".md":
            text = self.markdown()
        else:
            text = self.comparison.table().to_csv(index=False)
        with write_whole(path, "name another file with --output") as part:
            part.write_text(text, encoding="utf-8")

    def log_to(self, run_id: str, experiment_id: str = "") -> None:
        """Log the report on a parent run."""
        leading = self.comparison.rows[0]
        scores = {
            f"mean/f1_macro/{slug(row.row)}": row.scores["f1_macro"].value
            for row in self.comparison.rows
        }
        record_comparison(
            Tracker(run_id, experiment_id),
            texts={"report.html": self.html(), "report.md": self.markdown()},
            tables=self.tables(),
            figures=self.figures,
            metrics={**scores, "cells/done": float(sum(len(r.runs) for r in self.comparison.rows))},
            tags={
                "leading_row": leading.row,
                "verdict": self.comparison.headline()[:4000],
                "mlflow.note.content": cut_note(self.markdown()),
            },
        )


def check_output(path: Path) -> None:
    """Refuse a report file of a kind that cannot be written.

    Raises
    ------
    InputError
        If the suffix is none of those known.
    """
    if path.suffix not in WRITERS:
        raise InputError(f"--output={path}: end it in one of {', '.join(WRITERS)}")


def compare_runs(
    what: Sequence[str], *, experiment: str, baseline: str | None, samples: int
) -> Compared:
    """Compare the runs that words name.

    Parameters
    ----------
    what : sequence of str
        As `tracking.tested.tested_runs` takes them, and paths of experiment files.
    experiment : str
        MLflow experiment in which the runs of a file are.
    baseline, samples
        See `evaluation.comparison.compare`.
    """
    use_registry()
    ids = [parent_of(word, experiment) or word for word in what]
    title = f"{len(what)} runs compared"
    if len(what) == 1:
        title = str(get_run(ids[0]).info.run_name) if RUN_ID.fullmatch(ids[0]) else what[0]
    return describe(tested_runs(ids), title=title, baseline=baseline, samples=samples)


def parent_of(word: str, experiment: str) -> str | None:
    """Id of the parent run that an experiment file's path names; None if it is no file.

    Raises
    ------
    InputError
        If the file has no runs yet.
    """
    if not Path(word).is_file():
        return None
    plan = load_plan(ExperimentConfig(file=word), experiment=experiment)
    parent = find_parent(experiment, plan.name)
    if parent is None:
        raise InputError(
            f"{word}: no run of {plan.name!r} in the MLflow experiment {experiment}; "
            "train it with cxr experiment run, or name another with --experiment"
        )
    return str(parent.info.run_id)


def log_on_parent(compared: Compared, what: Sequence[str], experiment: str) -> str:
    """Log a report on the one parent run that it is of; return the run's id.

    Raises
    ------
    InputError
        If it is not of one parent run.
    """
    run = get_run(parent_of(what[0], experiment) or what[0]) if len(what) == 1 else None
    if run is None or run.data.tags.get("kind") != KIND:
        raise InputError("--log: give one experiment file, or the id of its parent run")
    compared.log_to(run.info.run_id, run.info.experiment_id)
    return str(run.info.run_id)


def describe(
    tested: Sequence[TestedRun],
    *,
    title: str,
    about: Mapping[str, str] | None = None,
    missing: Iterable[Missing] = (),
    baseline: str | None = None,
    samples: int = 2000,
) -> Compared:
    """Compare runs, and gather what a report says about them.

    Parameters
    ----------
    tested : sequence of TestedRun
    title : str
    about : mapping, optional
        What is told first, above what the runs share.
    missing : iterable of Missing
        Cells without a score.
    baseline : str, optional
        Row with which all others are compared; every pair by default.
    samples : int
        Bootstrap resamples.
    """
    comparison = compare(tested, baseline=baseline, samples=samples)
    shared = shared_params([run.run_id for run in tested], SHOWN_PARAMS)
    told = {
        **(about or {}),
        "test images": f"{comparison.num_images:,}, in {comparison.num_groups:,} groups of "
        "near-duplicates",
        **{SHOWN_PARAMS[name]: _short(name, values) for name, values in shared.items()},
        "made on": date.today().isoformat(),
    }
    return Compared(comparison, title, told, tuple(missing))


def cut_note(text: str) -> str:
    """Shorten a report to what MLflow keeps of a note, at the end of a section."""
    if len(text) <= NOTE_LIMIT:
        return text
    more = "\n\nThe whole report: artifact `comparison/report.html`.\n"
    kept = text[: NOTE_LIMIT - len(more)]
    end = max(kept.rfind("\n## "), kept.rfind("\n### "))
    return (kept[:end] if end > 0 else kept[: kept.rfind("\n")]) + more


def _short(name: str, values: Sequence[str]) -> str:
    if "digest" in name or name == "git_commit":
        values = [v[:12] + ("-dirty" if v.endswith("-dirty") else "") for v in values]
    told = ", ".join(dict.fromkeys(values))
    if name == "git_commit" and len(values) > 1:
        return f"{told} — the runs were made by {len(values)} states of the code"
    return told
