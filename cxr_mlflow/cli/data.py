"""`cxr data`: draw, fetch, check, audit, decode and split data sets, without training anything."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cxr_mlflow.cli.options import CxrGroup, config_options
from cxr_mlflow.config import NONE, DataConfig
from cxr_mlflow.errors import InputError

if TYPE_CHECKING:
    from cxr_mlflow.data.catalog import Catalog
    from cxr_mlflow.data.duplicates import Duplicates
    from cxr_mlflow.data.splits import Split

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
@data_options("mask_mode", "source_file")
@click.option("--report", type=OutFile, help="Write all problems to this CSV file.")
@click.option(
    "--contact-sheet", type=OutFile, help="Draw the duplicate groups to this PNG or PDF file."
)
def check(
    folder: str | None, report: Path | None, contact_sheet: Path | None, **options: Any
) -> None:
    """Decode every file of a data set and list what is wrong; status 1 if files are unusable."""
    from cxr_mlflow.cli.data_tables import (
        open_console,
        print_classes,
        print_duplicates,
        print_problems,
    )
    from cxr_mlflow.data.catalog import resolve_data_dir, scan_catalog
    from cxr_mlflow.data.prepare import cache_folder, find_duplicates, source_file

    config = _config(folder, options)
    cache_dir = cache_folder(config)
    root, _ = resolve_data_dir(config.data_dir, cache_dir, progress=_on_terminal())
    catalog = scan_catalog(
        root,
        mask_mode=config.mask_mode,
        source_file=source_file(config),
        cache_dir=cache_dir,
        progress=_on_terminal(),
    )
    duplicates = find_duplicates(catalog, config)
    console = open_console()
    print_classes(console, catalog)
    print_duplicates(console, duplicates)
    print_problems(console, catalog.problems, report)
    if report:
        _write(report, "--report", lambda path: catalog.problems.to_csv(path, index=False))
    if contact_sheet:
        _draw_contact_sheet(contact_sheet, catalog, duplicates)
    if catalog.problems["fatal"].any():
        sys.exit(1)


@data.command()
@data_options(
    *("mask_mode", "source_file", "split_seed", "val_fraction", "test_fraction", "split_file")
)
@click.option(
    "--output", type=OutFile, help="Write a report to this .html file, and a .json beside it."
)
def audit(folder: str | None, output: Path | None, **options: Any) -> None:
    """Say what a data set gives away before any network: copies, sources, shortcuts to the class.

    Unusable files are left out; where no image has a mask, whole images are audited. The split is
    the one that `cxr train` would make, or --split-file.
    """
    from cxr_mlflow.cli.data_tables import open_console, print_audit
    from cxr_mlflow.data.audit import audit_data
    from cxr_mlflow.data.prepare import cache_folder, find_duplicates

    if output and output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output={output}: name a .html file; the .json is written beside it")
    config = _config(folder, options | {"on_bad_file": "skip"})
    catalog, notes = _open_for_audit(config)
    duplicates = find_duplicates(catalog, config)
    split = _split_for_audit(catalog, duplicates, config, notes)
    found = audit_data(
        *(catalog, duplicates),
        split=split,
        cache_dir=cache_folder(config),
        progress=_on_terminal(),
    )
    print_audit(open_console(), catalog, found, notes)
    if output:
        from cxr_mlflow.data.audit_report import write_page

        page = write_page(found, catalog, duplicates, split=split)
        beside = output.with_suffix(".json")
        _write(output, "--output", lambda path: path.write_text(page, encoding="utf-8"))
        _write(beside, "--output", lambda path: path.write_text(found.to_json(), encoding="utf-8"))
        click.echo(f"{output}: the report; {beside}: its numbers")


def _open_for_audit(config: DataConfig) -> tuple[Catalog, list[str]]:
    """Read a catalog, without masks where there are none at all; and what is to be said of it."""
    from cxr_mlflow.data.prepare import open_catalog

    try:
        return open_catalog(config, progress=_on_terminal()), []
    except InputError:
        catalog = open_catalog(replace(config, mask_mode="none"), progress=_on_terminal())
        if (catalog.table["mask_path"] != "").any():
            raise
    return catalog, ["No image has a lung mask: audited, and to be trained, with --mask-mode none."]


def _split_for_audit(
    catalog: Catalog, duplicates: Duplicates, config: DataConfig, notes: list[str]
) -> Split | None:
    """Make or read the split; where none can be made, note why and do without."""
    from cxr_mlflow.data.prepare import divide
    from cxr_mlflow.data.splits import load_split

    if config.split_file != NONE:
        path = Path(config.split_file).expanduser()
        return load_split(path, catalog, duplicates.groups, allow_crossing=True)
    try:
        return divide(catalog, duplicates, config)
    except InputError as error:
        notes.append(f"Audited without a split, for none can be made: {error}.")
        return None


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
@data_options(
    *("mask_mode", "on_bad_file", "source_file", "split_seed", "val_fraction", "test_fraction")
)
@click.option("--out", type=OutFile, required=True, help="CSV file for --split-file.")
def split(folder: str | None, out: Path, **options: Any) -> None:
    """Divide a data set into train, val and test, duplicates kept together, and save who is who."""
    from cxr_mlflow.cli.data_tables import open_console, print_table
    from cxr_mlflow.data.prepare import divide, find_duplicates, open_catalog

    config = _config(folder, options)
    catalog = open_catalog(config, progress=_on_terminal())
    divided = divide(catalog, find_duplicates(catalog, config), config)
    divided.save(out, _elsewhere("--out"))
    console = open_console()
    counts = divided.counts()
    rows = [list(map(str, row)) for row in counts.itertuples()]
    print_table(console, "", ["class", *counts.columns], rows)
    click.echo(f"{out}: split {divided.digest[:12]}, test images {divided.test_digest[:12]}")


def _on_terminal() -> bool:
    return sys.stderr.isatty()


def _draw_contact_sheet(path: Path, catalog: Catalog, duplicates: Duplicates) -> None:
    from cxr_mlflow.data.contact_sheet import plot_contact_sheet

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"--contact-sheet={path}: name a .png, .pdf or .svg file")
    figure, kind = plot_contact_sheet(catalog.table, duplicates), path.suffix[1:].lower()
    _write(path, "--contact-sheet", lambda path: figure.savefig(path, dpi=120, format=kind))
    click.echo(f"{path}: the duplicate groups")


def _write(path: Path, flag: str, write: Callable[[Path], object]) -> None:
    """Write a file whole; a full or forbidden disk is an `InputError` with the flag."""
    from cxr_mlflow.data.storage import write_whole

    with write_whole(path, _elsewhere(flag)) as temporary:
        write(temporary)


def _elsewhere(flag: str) -> str:
    return f"name another file with {flag}"
