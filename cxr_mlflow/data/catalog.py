"""From a data folder to one table of usable images, and a list of everything that is wrong."""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.data.layout import (
    FoundFile,
    Layout,
    Problem,
    find_root,
    metadata_key,
    read_layout,
)
from cxr_mlflow.data.locate import resolve_data_dir
from cxr_mlflow.data.preprocess import MASK_THRESHOLD, needs_mask
from cxr_mlflow.data.scan import THUMBNAIL_SIDE, Reading, scan_files, scan_metadata
from cxr_mlflow.errors import InputError

__all__ = ["Catalog", "load_catalog", "resolve_data_dir", "scan_catalog"]

ASPECT_TOLERANCE = 0.03
"""Largest relative difference between the aspect ratios of an image and its mask."""
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
    cache_dir : Path
        Where readings are kept for the next time.
    progress : bool
        Show a bar while files are read.

    Raises
    ------
    InputError
        If the layout is not found, a file is bad and `on_bad_file` is "fail", or a class has no
        usable image.
    """
    catalog = scan_catalog(data_dir, mask_mode=mask_mode, cache_dir=cache_dir, progress=progress)
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
    data_dir: Path, *, mask_mode: str = "lungs", cache_dir: Path, progress: bool = False
) -> Catalog:
    """Read every file of a data set and list all that is wrong, without refusing anything.

    Parameters as of `load_catalog`. Images with a fatal problem are not in the table.
    """
    root = find_root(data_dir.absolute())
    layout = read_layout(root)
    readings = scan_files(root, layout.files, cache_dir=cache_dir, progress=progress)
    tables, problems = scan_metadata(root, layout.classes, cache_dir=cache_dir)
    problems += layout.problems
    problems += _problems_of_metadata(layout, tables)
    images = _pair_with_masks(layout, readings, needs_mask(mask_mode), problems)
    _compare_images(images, problems)
    fatal = {problem.path for problem in problems if problem.fatal}
    rows = [
        _row(root, layout.classes, image, mask, tables.get(file.class_name, {}), file)
        for file, image, mask in images
        if file.path not in fatal
    ]
    thumbnails = b"".join(i.thumbnail for f, i, _ in images if f.path not in fatal)
    side = THUMBNAIL_SIDE
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    demo = (root / "DEMO").is_file()  # as data.demo marks what it wrote
    return Catalog(
        root=root,
        classes=layout.classes,
        table=table,
        thumbnails=np.frombuffer(thumbnails, np.uint8).reshape(-1, side, side),
        problems=_problem_table(problems),
        digest=_digest(table),
        is_demo=demo,
        name="demo" if demo else root.name,
    )


Images = list[tuple[FoundFile, Reading, Reading | None]]


def _pair_with_masks(
    layout: Layout, readings: dict[str, Reading], masks_needed: bool, problems: list[Problem]
) -> Images:
    """Join images to masks; each comes with its reading, the mask None where it is not usable."""
    masks: dict[tuple[str, str], list[FoundFile]] = defaultdict(list)
    pictures: dict[tuple[str, str], list[FoundFile]] = defaultdict(list)
    for file in layout.files:
        (masks if file.is_mask else pictures)[file.class_name, file.stem].append(file)
    for key, found in masks.items():
        if key not in pictures:
            problems += [Problem(f.path, "mask_without_image", "not used", False) for f in found]
    images: Images = []
    for key, found in sorted(pictures.items()):
        for file in found:
            reading = readings[file.path]
            if len(found) > 1:
                names = ", ".join(f.path for f in found)
                reason = f"{names} share one name, and so one mask; rename or remove all but one"
                problems.append(Problem(file.path, "same_name", reason, True))
            if reading.problem:
                problems.append(Problem(file.path, reading.problem, reading.detail, True))
                continue
            if reading.darkest == reading.brightest:
                reason = f"every pixel is {reading.darkest}"
                problems.append(Problem(file.path, "blank_image", reason, True))
            mask, complaint = _usable_mask(reading, [readings[m.path] for m in masks[key]])
            if complaint:
                problems.append(Problem(file.path, *complaint, masks_needed))
            images.append((file, reading, mask))
    return images


def _usable_mask(
    image: Reading, masks: list[Reading]
) -> tuple[Reading | None, tuple[str, str] | None]:
    """Take the mask of an image, or say what is wrong with it."""
    if not masks:
        return None, ("missing_mask", "no file of this name in masks/")
    if len(masks) > 1:
        return None, ("several_masks", ", ".join(mask.path for mask in masks))
    mask = masks[0]
    if mask.problem:
        return None, ("bad_mask", f"{mask.path}: {mask.problem}, {mask.detail}")
    if not mask.area:
        found = f"its brightest pixel is {mask.brightest}, lung is above {MASK_THRESHOLD}"
        return None, ("empty_mask", f"{mask.path}: {found}")
    ratio = (mask.width * image.height) / (mask.height * image.width)
    if abs(math.log(ratio)) > math.log1p(ASPECT_TOLERANCE):
        shapes = f"{mask.width}x{mask.height} for an image of {image.width}x{image.height}"
        return None, ("mask_shape", f"{mask.path}: mask of another image's shape, {shapes}")
    return mask, None


def _compare_images(images: Images, problems: list[Problem]) -> None:
    """Find images with exactly the same pixels, within a class and across."""
    same: dict[str, list[FoundFile]] = defaultdict(list)
    for file, reading, _ in images:
        same[reading.pixel_hash].append(file)
    for found in same.values():
        if len({file.class_name for file in found}) > 1:
            for file in found:
                others = ", ".join(f.path for f in found if f.class_name != file.class_name)
                reason = f"same pixels as {others}: at most one class can be right"
                problems.append(Problem(file.path, "image_in_two_classes", reason, True))
            continue
        for file in found[1:]:
            reason = f"same pixels as {found[0].path}; they stay together in the split"
            problems.append(Problem(file.path, "exact_duplicate", reason, False))


def _problems_of_metadata(layout: Layout, tables: dict[str, dict[str, str]]) -> Iterable[Problem]:
    for name, sources in tables.items():
        files = {metadata_key(f.stem): f for f in layout.files if _is_image(f, name)}
        told = f"{name}.metadata.xlsx"
        for key in sources.keys() - files.keys():
            yield Problem(told, "metadata_without_file", f"row {key!r} names no image", False)
        for key in files.keys() - sources.keys():
            yield Problem(files[key].path, "file_without_metadata", "source unknown", False)


def _is_image(file: FoundFile, class_name: str) -> bool:
    return file.class_name == class_name and not file.is_mask


def _row(
    root: Path,
    classes: tuple[str, ...],
    image: Reading,
    mask: Reading | None,
    sources: dict[str, str],
    file: FoundFile,
) -> dict[str, Any]:
    return {
        "image_id": f"{file.class_name}/{file.stem}",
        "path": os.path.join(root, image.path),
        "mask_path": os.path.join(root, mask.path) if mask else "",
        "class_name": file.class_name,
        "label": classes.index(file.class_name),
        "source": sources.get(metadata_key(file.stem), "unknown"),
        "width": image.width,
        "height": image.height,
        "pixel_hash": image.pixel_hash,
        "mask_hash": mask.pixel_hash if mask else "",
        "mask_area": mask.area if mask else math.nan,
        "file_bytes": image.size,
    }


def _problem_table(problems: list[Problem]) -> pd.DataFrame:
    table = pd.DataFrame(sorted(problems), columns=list(Problem._fields))
    return table.astype({"path": "str", "problem": "str", "detail": "str", "fatal": "bool"})


def _digest(table: pd.DataFrame) -> str:
    columns = (table[name] for name in ("image_id", "pixel_hash", "mask_hash"))
    lines = sorted("\t".join(row) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
