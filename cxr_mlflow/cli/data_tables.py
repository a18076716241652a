"""What `cxr data` prints: plain tables as wide as the terminal; imported by commands alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr_mlflow.data.catalog import Catalog, mask_advice
from cxr_mlflow.data.duplicates import Duplicates

if TYPE_CHECKING:
    from cxr_mlflow.data.audit import Audit

MAX_SHOWN = 40
"""Problems listed on screen; the report has all."""


def open_console() -> Console:
    """Return a console as wide as the terminal; wide enough not to fold paths in a pipe."""
    return Console(width=None if sys.stdout.isatty() else 180, highlight=False)


def print_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print plain text in columns; brackets in file names are not markup."""
    if title:  # rich would fold it to the width of the table
        console.print(Text(title), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    for name in columns:
        numbers = all(row[columns.index(name)].isdigit() for row in rows)
        table.add_column(name, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_classes(console: Console, catalog: Catalog) -> None:
    """Print how many images each class has, what they are like and where they come from."""
    lost = catalog.problems[catalog.problems["fatal"]]["path"].drop_duplicates()
    lost_of = lost.str.split("/").str[0].value_counts()
    rows = []
    for name in catalog.classes:
        mine = catalog.table[catalog.table["class_name"] == name]
        sizes = (mine["width"].astype(str) + "x" + mine["height"].astype(str)).value_counts()
        masked, unusable = (mine["mask_path"] != "").sum(), lost_of.get(name, 0)
        sources = _most(mine["source"].value_counts())
        rows.append([name, str(len(mine)), str(unusable), str(masked), _most(sizes), sources])
    note = ", SYNTHETIC demo data" if catalog.is_demo else ""
    title = f"{catalog.root}{note}: {len(catalog.table)} usable images"
    columns = ["class", "usable", "unusable", "with mask", "sizes", "sources"]
    print_table(console, title, columns, rows)


def _most(counts: pd.Series, shown: int = 6) -> str:
    """Name the most frequent values and how often each occurs."""
    parts = [f"{value}: {count}" for value, count in counts.head(shown).items()]
    return ", ".join(parts + [f"{len(counts) - shown} more"] * (len(counts) > shown))


def print_audit(console: Console, catalog: Catalog, audit: Audit, notes: list[str]) -> None:
    """Print what each shortcut reaches, then verdicts, summary and notes, a sentence each."""
    from cxr_mlflow.data.audit_shortcuts import TITLES  # loads scikit-learn

    note = ", SYNTHETIC demo data" if audit.is_demo else ""
    rows = [
        [
            TITLES[s.name],
            "-" if s.unmeasured else str(s.balanced_accuracy),
            "-" if s.unmeasured else str(s.f1_macro),
            "! " + s.strength if s.accused else "not measured" if s.unmeasured else "no",
        ]
        for s in audit.shortcuts
    ]
    columns = ["seen", "balanced accuracy", "macro F1", "tells the class"]
    print_table(console, f"{catalog.root}{note}: {audit.num_images} images", columns, rows)
    for warning in audit.warnings:
        console.print(Text(f"! {warning}", style="bold yellow"))
    told = [s for s in audit.shortcuts if s.accused or s.unmeasured]
    lines = [f"- {TITLES[s.name]}: {s.verdict}" for s in told] + audit.summary() + notes
    if lost := catalog.problems.loc[catalog.problems["fatal"], "path"].nunique():
        lines.append(f"Files left out as unusable: {lost} (`cxr data check` lists them).")
    console.print("\n".join(lines), markup=False)


def print_duplicates(console: Console, duplicates: Duplicates) -> None:
    """Print how many groups of copies there are."""
    members = duplicates.pairs.groupby(duplicates.groups[duplicates.pairs["i"]])["exact"]
    exact, found = int(duplicates.pairs["exact"].sum()), members.ngroups
    console.print(
        f"Groups of images that show one film: {found} (exact copies: {exact}); a split keeps each "
        "together.\n"
    )


def print_problems(console: Console, problems: pd.DataFrame, report: Path | None) -> None:
    """Print the worst of what is wrong, and how much there is of each kind."""
    num_fatal = problems.loc[problems["fatal"], "path"].nunique()
    if not len(problems):
        console.print("No problems found.")
        return
    ranked = problems.sort_values("fatal", ascending=False, kind="stable")
    shown = ranked.head(MAX_SHOWN)
    fatal = ["unusable" if fatal else "" for fatal in shown["fatal"]]
    columns = (shown["path"], shown["problem"], fatal, shown["detail"])
    rows = [list(row) for row in zip(*columns, strict=True)]
    print_table(console, "Problems", ["path", "problem", "", "detail"], rows)
    if (rest := len(problems) - MAX_SHOWN) > 0:
        where = f"in {report}" if report else "not shown; --report FILE.csv writes all"
        console.print(f"... and {rest} more, {where}", markup=False)
    kinds = _most(problems["problem"].value_counts(), 99)
    advice = mask_advice(problems[problems["fatal"]])
    console.print(f"In all: {kinds}. Files that cannot be used: {num_fatal}{advice}.")
