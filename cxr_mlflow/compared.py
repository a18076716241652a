"""A comparison with all that its report tells: shown, written to files, logged on a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import Comparison
from cxr_mlflow.evaluation.comparison_plots import plot_classes, plot_pairs, plot_rows
from cxr_mlflow.evaluation.comparison_report import (
    Missing,
    print_comparison,
    to_html,
    to_markdown,
    to_note,
)
from cxr_mlflow.evaluation.note import NOTE_LIMIT
from cxr_mlflow.names import slug
from cxr_mlflow.tracking.record import record_comparison
from cxr_mlflow.tracking.tracker import Tracker

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

    def note(self) -> str:
        """The report as the note of a run: the verdict first, for pages fold what follows."""
        return to_note(self.comparison, about=self.about, missing=self.missing)

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
                "mlflow.note.content": cut_note(self.note()),
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


def cut_note(text: str) -> str:
    """Shorten a report to what MLflow keeps of a note, at the end of a section."""
    if len(text) <= NOTE_LIMIT:
        return text
    more = "\n\nThe whole report: artifact `comparison/report.html`.\n"
    kept = text[: NOTE_LIMIT - len(more)]
    end = max(kept.rfind("\n## "), kept.rfind("\n### "))
    return (kept[:end] if end > 0 else kept[: kept.rfind("\n")]) + more
