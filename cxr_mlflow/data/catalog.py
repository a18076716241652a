"""From a data folder to one table of usable images, and a list of everything that is wrong."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr_mlflow.data.layout import Layout, Problem, find_root, metadata_key, read_layout
from cxr_mlflow.data.locate import is_demo, resolve_data_dir
from cxr_mlflow.data.pairing import Pairs, compare_images, image_ids, pair_with_masks
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.data.scan import scan_files, scan_metadata, thumbnails_of
from cxr_mlflow.data.source_file import read_source_file
from cxr_mlflow.errors import InputError

__all__ = ["Catalog", "load_catalog", "resolve_data_dir", "scan_catalog"]

MASK_PROBLEMS = ("missing_mask", "empty_mask", "bad_mask", "several_masks", "mask_shape")
"""Reasons to refuse an image that do not count where no mask is used."""
COLUMNS: dict[str, str] = {
    "image_id": "str",
    "path": "str",
    "mask_path": "str",
    "class_name": "str",
    "label": "int64",
    "source": "str",
    "width": "int64",
    "height": "int64",
    "pixel_hash": "str",
    "mask_hash": "str",
    "mask_area": "float64",
    "file_bytes": "int64",
}


@dataclass(frozen=True)
class Catalog:
    """What a data set holds: the usable images in a fixed order, and what is wrong with the rest.

    Attributes
    ----------
    root : Path
        Folder that holds the class folders.
    classes : tuple of str
        Class names as the folders spell them, sorted; a label is a place in it.
    table : DataFrame
        One row per usable image, sorted by (class, file stem): `image_id` ("CLASS/stem"), `path`,
        `mask_path` ("" without a usable mask), `class_name`, `label`, `source` ("unknown" if no
        metadata tell), `width`, `height`, `pixel_hash` (SHA-256 of shape and grey pixels),
        `mask_hash`, `mask_area` (share of pixels, nan without mask), `file_bytes`.
    thumbnails : uint8 array of shape (N, 32, 32)
        Box-averaged grey images, in table order.
    problems : DataFrame
        `path` (relative), `problem` (kind), `detail` (words), `fatal`; sorted by path.
    digest : str
        SHA-256 in hex over (image_id, pixel_hash, mask_hash) of all rows.
    is_demo : bool
        Whether these are the synthetic demo data.
    name : str
        "demo", or the name of the root folder.
    """

    root: Path
    classes: tuple[str, ...]
    table: pd.DataFrame
    thumbnails: NDArray[np.uint8]
    problems: pd.DataFrame
    digest: str
    is_demo: bool
    name: str


def load_catalog(
    data_dir: Path,
    *,
    mask_mode: str = "lungs",
    on_bad_file: str = "fail",
    source_file: Path | None = None,
    cache_dir: Path,
    progress: bool = False,
) -> Catalog:
    """Read a data set for training: refuse bad files, or leave them out if told to.

    Parameters
    ----------
    data_dir : Path
        Folder with the class folders in it or below it.
    mask_mode : str
        One of `cxr_mlflow.config.MaskMode`; all but "none" make masks compulsory.
    on_bad_file : {"fail", "skip"}
        "skip" leaves images with a fatal problem out and keeps them in `problems`.
    source_file : Path, optional
        Tells the source of the images it names, over the metadata; see `read_source_file`.
    cache_dir : Path
        Where readings are kept for the next time.
    progress : bool
        Show a bar while files are read.

    Raises
    ------
    InputError
        If the layout is not found, a file is bad and `on_bad_file` is "fail", a class has no
        usable image, or the source file does not fit.
    """
    catalog = scan_catalog(
        data_dir,
        mask_mode=mask_mode,
        source_file=source_file,
        cache_dir=cache_dir,
        progress=progress,
    )
    fatal = catalog.problems[catalog.problems["fatal"]]
    if len(fatal) and on_bad_file != "skip":
        raise InputError(_summary(catalog.root, fatal))
    for name in catalog.classes:
        if not (catalog.table["class_name"] == name).any():
            of_class = fatal[fatal["path"].str.startswith(f"{name}/")]
            advice = mask_advice(of_class)
            raise InputError(
                f"{catalog.root / name}: no usable image in this class; add images, or take the "
                f"folder away ({_check(catalog.root)} lists what is wrong){advice}"
            )
    return catalog


def scan_catalog(
    data_dir: Path,
    *,
    mask_mode: str = "lungs",
    source_file: Path | None = None,
    cache_dir: Path,
    progress: bool = False,
) -> Catalog:
    """Read every file of a data set and list all that is wrong, without refusing anything.

    Parameters as of `load_catalog`. Images with a fatal problem are not in the table.
    """
    root = find_root(data_dir.absolute())
    layout = read_layout(root)
    told = _read_sources(source_file, layout)
    readings = scan_files(root, layout.files, cache_dir=cache_dir, progress=progress)
    tables, problems = scan_metadata(root, layout.classes, cache_dir=cache_dir)
    problems += layout.problems
    sources = _find_sources(layout, tables, told, problems)
    pairs = pair_with_masks(layout, readings, needs_mask(mask_mode), problems)
    compare_images(layout, pairs, readings, problems)
    fatal = pa.array([problem.path for problem in problems if problem.fatal], pa.large_string())
    refused = pc.is_in(readings["path"].take(pairs.images), fatal).to_numpy()
    pairs = Pairs(*(rows[~refused] for rows in pairs))
    table = _join_columns(layout, pairs, readings, sources)
    demo = is_demo(root)
    return Catalog(
        root=root,
        classes=layout.classes,
        table=table,
        thumbnails=thumbnails_of(readings, pairs.images),
        problems=_problem_table(problems),
        digest=_digest(table),
        is_demo=demo,
        name="demo" if demo else root.name,
    )


def _read_sources(source_file: Path | None, layout: Layout) -> dict[str, str]:
    """Sources that a file tells over the metadata, by image_id."""
    if source_file is None:
        return {}
    images = layout.files[~layout.files["is_mask"].to_numpy(bool)]
    return read_source_file(source_file, image_ids(images).to_pylist())


def _find_sources(
    layout: Layout,
    tables: dict[str, dict[str, str]],
    told: dict[str, str],
    problems: list[Problem],
) -> NDArray[np.object_]:
    """Source of every file as `told`, else as the metadata tell it, else "unknown"."""
    files = layout.files
    found = np.full(len(files), "unknown", object)
    for name, sources in tables.items():
        rows = np.flatnonzero((files["class_name"] == name) & ~files["is_mask"])
        keys = [metadata_key(stem) for stem in files["stem"].iloc[rows].tolist()]
        found[rows] = [sources.get(key, "unknown") for key in keys]
        places = dict(zip(keys, rows, strict=True))
        for key in sources.keys() - places.keys():
            detail = f"row {key!r} names no image"
            where = f"{name}.metadata.xlsx"
            problems.append(Problem(where, "metadata_without_file", detail, False))
        for key in places.keys() - sources.keys():
            row = places[key]
            if f"{name}/{files['stem'].iloc[row]}" not in told:
                path = files["path"].iloc[row]
                problems.append(Problem(path, "file_without_metadata", "source unknown", False))
    if told:
        ids = image_ids(files).to_pylist()
        found = np.array([told.get(i, s) for i, s in zip(ids, found, strict=True)], object)
    return found


def _join_columns(
    layout: Layout, pairs: Pairs, readings: pa.Table, sources: NDArray[np.object_]
) -> pd.DataFrame:
    files, images = layout.files, pairs.images
    masks = pa.array(pairs.masks, mask=pairs.masks < 0)
    classes = files["class_name"].iloc[images]
    folder, empty = (pa.scalar(t, pa.large_string()) for t in (os.path.join(layout.root, ""), ""))

    def places(rows: pa.Array | NDArray[np.int64]) -> pa.ChunkedArray:
        return pc.binary_join_element_wise(folder, readings["path"].take(rows), empty)

    columns = {
        "image_id": image_ids(files).take(images),
        "path": places(images),
        "mask_path": places(masks).fill_null(""),
        "class_name": pa.array(classes.astype("str")),
        "label": classes.cat.codes.to_numpy(),
        "source": pa.array(sources[images], pa.large_string()),
        "width": readings["width"].take(images),
        "height": readings["height"].take(images),
        "pixel_hash": readings["pixel_hash"].take(images),
        "mask_hash": readings["pixel_hash"].take(masks).fill_null(""),
        "mask_area": readings["area"].take(masks).fill_null(math.nan),
        "file_bytes": readings["size"].take(images),
    }
    return pa.table(columns).to_pandas().astype(COLUMNS)


def _problem_table(problems: list[Problem]) -> pd.DataFrame:
    table = pd.DataFrame(sorted(problems), columns=list(Problem._fields))
    return table.astype({"path": "str", "problem": "str", "detail": "str", "fatal": "bool"})


def _digest(table: pd.DataFrame) -> str:
    columns = [pa.array(table[name]) for name in ("image_id", "pixel_hash", "mask_hash")]
    lines = pc.binary_join_element_wise(*columns, pa.scalar("\t", pa.large_string()))
    lines = lines.take(pc.sort_indices(lines))
    return hashlib.sha256("\n".join(lines.to_pylist()).encode()).hexdigest()


def _summary(root: Path, fatal: pd.DataFrame) -> str:
    """Say in one line how many files are bad, which, and what to do."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(fatal["problem"]).most_common())
    paths = list(dict.fromkeys(fatal["path"]))
    names = ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")
    return (
        f"{root}: {len(paths)} images cannot be used ({kinds}): {names}. See all with "
        f"{_check(root)}; mend them, or go on without them: --on-bad-file skip{mask_advice(fatal)}"
    )


def _check(root: Path) -> str:
    return f"`cxr data check {shlex.quote(str(root))}`"


def mask_advice(fatal: pd.DataFrame) -> str:
    """Name the way out where masks are all that is wrong with some images; "" elsewhere.

    Parameters
    ----------
    fatal : DataFrame
        Rows of `Catalog.problems` for which images were refused.
    """
    others = fatal.loc[~fatal["problem"].isin(MASK_PROBLEMS), "path"]
    needless = fatal["path"].isin(others).all()
    return "" if needless else " (whole images need no mask: --mask-mode none)"
