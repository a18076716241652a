"""`cxr data`: draw, fetch, check, audit, decode and split data sets, without training anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_mlflow.cli.options import CxrGroup, config_options
from cxr_mlflow.config import NONE, DataConfig
from cxr_mlflow.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from cxr_mlflow.data.audit import Audit
    from cxr_mlflow.data.catalog import Catalog
    from cxr_mlflow.data.duplicates import Duplicates

MAX_SHOWN = 40
"""Problems listed on screen; the report has all."""

OutFile = click.Path(dir_okay=False, path_type=Path)


def data_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add DIR, or `--data-dir` as everywhere else, the named options, and `--cache-dir`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = config_options(DataConfig, only=("data_dir", *names, "cache_dir"))(function)
        return click.argument("folder", metavar="[DIR]", required=False)(function)

    return decorate


def _config(folder: str | None, options: dict[str, Any]) -> DataConfig:
    """Take the data from DIR, the short spelling of `--data-dir`."""
    context = click.get_current_context()
    told = context.get_parameter_source("data_dir")
    if folder is not None and told is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError(f"both DIR and --data-dir are given; leave one out ({folder})")
    return DataConfig(**options) if folder is None else DataConfig(**options | {"data_dir": folder})


@click.group(cls=CxrGroup)
def data() -> None:
    """Draw, fetch, check, audit, decode and split data sets."""


@data.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seeds every film.")
def demo(folder: Path, seed: int) -> None:
    """Write synthetic radiographs in the Kaggle layout to DIR, which must be empty or new."""
    from cxr_mlflow.data.demo import NUM_PER_CLASS, write_demo

    write_demo(folder, seed=seed)
    click.echo(
        f"{sum(NUM_PER_CLASS.values())} synthetic images (nobody's radiographs) in {folder}\n"
        f"cxr train --data-dir '{folder}'"
    )


@data.command()
@click.argument("dest", default="data", type=click.Path(file_okay=False, path_type=Path))
def download(dest: Path) -> None:
    """Fetch the COVID-19 Radiography Database from Kaggle to DEST (about 0.8 GB)."""
    from cxr_mlflow.data.download import FOLDER
    from cxr_mlflow.data.download import download as fetch

    there = (dest / FOLDER).is_dir()
    root = fetch(dest)
    click.echo(f"{root}{' was there already' if there else ''}\ncxr data check '{root}'")


@data.command()
@data_options("mask_mode")
@click.option("--report", type=OutFile, help="Write all problems to this CSV file.")
@click.option(
    "--contact-sheet", type=OutFile, help="Draw the duplicate groups to this PNG or PDF file."
)
def check(
    folder: str | None, report: Path | None, contact_sheet: Path | None, **options: Any
) -> None:
    """Decode every file of a data set and list what is wrong; status 1 if files are unusable."""
    from cxr_mlflow.data.catalog import resolve_data_dir, scan_catalog
    from cxr_mlflow.data.prepare import cache_folder, find_duplicates

    config = _config(folder, options)
    cache_dir = cache_folder(config)
    root, _ = resolve_data_dir(config.data_dir, cache_dir, progress=_on_terminal())
    catalog = scan_catalog(
        root, mask_mode=config.mask_mode, cache_dir=cache_dir, progress=_on_terminal()
    )
    duplicates = find_duplicates(catalog, config)
    console = _console()
    _print_classes(console, catalog)
    _print_duplicates(console, duplicates)
    _print_problems(console, catalog.problems, report)
    if report:
        _write(report, "--report", lambda: catalog.problems.to_csv(report, index=False))
    if contact_sheet:
        _draw_contact_sheet(contact_sheet, catalog, duplicates)
    if catalog.problems["fatal"].any():
        sys.exit(1)


@data.command()
@data_options("mask_mode", "split_seed", "val_fraction", "test_fraction", "split_file")
@click.option(
    "--output", type=OutFile, help="Write a report to this .html file, and a .json beside it."
)
def audit(folder: str | None, output: Path | None, **options: Any) -> None:
    """Say what a data set gives away before any network: copies, sources, shortcuts to the class.

    Unusable files are left out. The split is the one that `cxr train` would make, or --split-file.
    """
    from cxr_mlflow.data.audit import audit_data
    from cxr_mlflow.data.prepare import cache_folder, divide, find_duplicates, open_catalog
    from cxr_mlflow.data.splits import load_split

    if output and output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output={output}: name a .html file; the .json is written beside it")
    config = _config(folder, options | {"on_bad_file": "skip"})
    catalog = open_catalog(config, progress=_on_terminal())
    duplicates = find_duplicates(catalog, config)
    if config.split_file == NONE:
        split = divide(catalog, duplicates, config)
    else:
        path = Path(config.split_file).expanduser()
        split = load_split(path, catalog, duplicates.groups, allow_crossing=True)
    found = audit_data(
        *(catalog, duplicates),
        split=split,
        cache_dir=cache_folder(config),
        progress=_on_terminal(),
    )
    _print_audit(_console(), catalog, found)
    if output:
        from cxr_mlflow.data.audit_report import write_page

        page = write_page(found, catalog, duplicates, split=split)
        beside = output.with_suffix(".json")
        _write(output, "--output", lambda: output.write_text(page, encoding="utf-8"))
        _write(beside, "--output", lambda: beside.write_text(found.to_json(), encoding="utf-8"))
        click.echo(f"{output}: the report; {beside}: its numbers")


@data.command()
@data_options("image_size", "mask_mode", "on_bad_file")
def cache(folder: str | None, **options: Any) -> None:
    """Decode and resize a data set ahead of the first training, which then starts at once."""
    from cxr_mlflow.data.cache import load_cache
    from cxr_mlflow.data.prepare import cache_folder, open_catalog

    config = _config(folder, options)
    catalog = open_catalog(config, progress=_on_terminal())
    pixels = load_cache(
        catalog,
        image_size=config.image_size,
        mask_mode=config.mask_mode,
        cache_dir=cache_folder(config),
        progress=_on_terminal(),
    )
    size = (pixels.images.nbytes + pixels.masks.nbytes) / 1e6
    click.echo(
        f"{len(pixels.images)} images and masks at {config.image_size} px, {size:.1f} MB, "
        f"in {pixels.folder}"
    )


@data.command()
@data_options("mask_mode", "on_bad_file", "split_seed", "val_fraction", "test_fraction")
@click.option("--out", type=OutFile, required=True, help="CSV file for --split-file.")
def split(folder: str | None, out: Path, **options: Any) -> None:
    """Divide a data set into train, val and test, duplicates kept together, and save who is who."""
    from cxr_mlflow.data.prepare import divide, find_duplicates, open_catalog

    config = _config(folder, options)
    catalog = open_catalog(config, progress=_on_terminal())
    divided = divide(catalog, find_duplicates(catalog, config), config)
    _write(out, "--out", lambda: divided.save(out))
    console = _console()
    counts = divided.counts()
    rows = [list(map(str, row)) for row in counts.itertuples()]
    _print_table(console, "", ["class", *counts.columns], rows)
    click.echo(f"{out}: split {divided.digest[:12]}, test images {divided.test_digest[:12]}")


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _console() -> Console:
    """Return a console as wide as the terminal; wide enough not to fold paths in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 180, highlight=False)


def _print_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print plain text in columns; brackets in file names are not markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    for name in columns:
        numbers = all(row[columns.index(name)].isdigit() for row in rows)
        table.add_column(name, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_classes(console: Console, catalog: Catalog) -> None:
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
    _print_table(console, title, columns, rows)


def _most(counts: pd.Series, shown: int = 6) -> str:
    """Name the most frequent values and how often each occurs."""
    parts = [f"{value}: {count}" for value, count in counts.head(shown).items()]
    return ", ".join(parts + [f"{len(counts) - shown} more"] * (len(counts) > shown))


def _print_audit(console: Console, catalog: Catalog, audit: Audit) -> None:
    from cxr_mlflow.data.audit_shortcuts import TITLES

    note = ", SYNTHETIC demo data" if audit.is_demo else ""
    rows = [
        [
            TITLES[s.name],
            "-" if s.unmeasured else str(s.balanced_accuracy),
            "-" if s.unmeasured else str(s.f1_macro),
            "! " + s.strength if s.accused else "not measured" if s.unmeasured else "no",
            s.verdict,
        ]
        for s in audit.shortcuts
    ]
    columns = ["seen", "balanced accuracy", "macro F1", "tells the class", "verdict"]
    _print_table(console, f"{catalog.root}{note}: {audit.num_images} images", columns, rows)
    lines = audit.summary()
    if lost := catalog.problems.loc[catalog.problems["fatal"], "path"].nunique():
        lines.append(f"Files left out as unusable: {lost} (`cxr data check` lists them).")
    console.print("\n".join(lines), markup=False)


def _print_duplicates(console: Console, duplicates: Duplicates) -> None:
    members = duplicates.pairs.groupby(duplicates.groups[duplicates.pairs["i"]])["exact"]
    exact, found = int(duplicates.pairs["exact"].sum()), members.ngroups
    console.print(
        f"Groups of images that show one film: {found} (exact copies: {exact}); a split keeps each "
        "together.\n"
    )


def _print_problems(console: Console, problems: pd.DataFrame, report: Path | None) -> None:
    num_fatal = problems.loc[problems["fatal"], "path"].nunique()
    if not len(problems):
        console.print("No problems found.")
        return
    ranked = problems.sort_values("fatal", ascending=False, kind="stable")
    shown = ranked.head(MAX_SHOWN)
    fatal = ["unusable" if fatal else "" for fatal in shown["fatal"]]
    columns = (shown["path"], shown["problem"], fatal, shown["detail"])
    rows = [list(row) for row in zip(*columns, strict=True)]
    _print_table(console, "Problems", ["path", "problem", "", "detail"], rows)
    if (rest := len(problems) - MAX_SHOWN) > 0:
        where = f"in {report}" if report else "not shown; --report FILE.csv writes all"
        console.print(f"... and {rest} more, {where}", markup=False)
    kinds = _most(problems["problem"].value_counts(), 99)
    console.print(f"In all: {kinds}. Files that cannot be used: {num_fatal}.")


def _draw_contact_sheet(path: Path, catalog: Catalog, duplicates: Duplicates) -> None:
    from cxr_mlflow.data.duplicates import plot_contact_sheet

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--contact-sheet={path}: name a .png, .pdf or .svg file")
    figure = plot_contact_sheet(catalog.table, duplicates)
    _write(path, "--contact-sheet", lambda: figure.savefig(path, dpi=120))
    click.echo(f"{path}: the duplicate groups")


def _write(path: Path, flag: str, write: Callable[[], object]) -> None:
    """Write a file, its folder made; a full or forbidden disk is an `InputError` with the flag."""
    from cxr_mlflow.data.storage import explained

    with explained(path.parent, f"name another file with {flag}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write()
