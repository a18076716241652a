"""Joins images to their masks and to their copies, and says what is wrong with them.

A million images are compared in columns; only those that may be at fault are looked at one by one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr_mlflow.data.layout import Layout, Problem
from cxr_mlflow.data.preprocess import MASK_THRESHOLD
from cxr_mlflow.data.scan import Reading

ASPECT_TOLERANCE = 0.03
"""Largest relative difference between the aspect ratios of an image and its mask."""
_MEASURED = ("width", "height", "darkest", "brightest", "area")


class Pairs(NamedTuple):
    """Images that can be read, sorted by (class, stem), and their masks: rows of the files."""

    images: NDArray[np.int64]
    masks: NDArray[np.int64]  # -1 where none can be used


def pair_with_masks(
    layout: Layout, readings: pa.Table, masks_needed: bool, problems: list[Problem]
) -> Pairs:
    """Join images to masks: all at once where nothing is wrong, else one by one.

    Parameters
    ----------
    layout : Layout
    readings : pa.Table
        Of `layout.files`, row by row.
    masks_needed : bool
        Whether an image without a usable mask cannot be used.
    problems : list of Problem
        What is found is added to it.
    """
    ids, is_mask = image_ids(layout.files), layout.files["is_mask"].to_numpy()
    images, masks = _sort(layout, np.flatnonzero(~is_mask)), np.flatnonzero(is_mask)
    names, mask_names = ids.take(images), ids.take(masks)
    for row in masks[~pc.is_in(mask_names, names).to_numpy(zero_copy_only=False)]:
        path = readings["path"][row].as_py()
        problems.append(Problem(path, "mask_without_image", "not used", False))
    first = pc.index_in(names, mask_names).fill_null(-1).to_numpy()
    found = np.append(masks, -1)[first]
    several = np.append(_repeated(mask_names), False)[first]
    plain = ~_repeated(names) & ~several & _fit_plainly(readings, images, found)
    readable = np.ones(len(images), bool)

    doubtful = np.flatnonzero(~plain)
    asked = names.take(doubtful)
    theirs: dict[str, list[Reading]] = defaultdict(list)
    rows = masks[pc.is_in(mask_names, asked).to_numpy(zero_copy_only=False)]
    for name, mask in zip(ids.take(rows).to_pylist(), _readings(readings, rows), strict=True):
        theirs[name].append(mask)
    told = list(zip(asked.to_pylist(), _readings(readings, images[doubtful]), strict=True))
    namesakes: dict[str, list[str]] = defaultdict(list)
    for name, image in told:
        namesakes[name].append(image.path)
    for place, (name, image) in zip(doubtful, told, strict=True):
        if len(namesakes[name]) > 1:
            paths = ", ".join(namesakes[name])
            reason = f"{paths} share one name, and so one mask; rename or remove all but one"
            problems.append(Problem(image.path, "same_name", reason, True))
        if image.problem:
            problems.append(Problem(image.path, image.problem, image.detail, True))
            readable[place] = False
            continue
        if image.darkest == image.brightest:
            reason = f"every pixel is {image.darkest}"
            problems.append(Problem(image.path, "blank_image", reason, True))
        if complaint := _why_not_usable(image, theirs[name]):
            problems.append(Problem(image.path, *complaint, masks_needed))
            found[place] = -1
    return Pairs(images[readable], found[readable])


def image_ids(files: pd.DataFrame) -> pa.Array:
    """CLASS/stem of every file."""
    names = files["class_name"].astype("str") + "/" + files["stem"]
    return pa.table({"id": names})["id"].combine_chunks()


def _sort(layout: Layout, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort rows of the files by (class, stem)."""
    files = layout.files.iloc[rows]
    keys = {"class": files["class_name"].cat.codes.to_numpy(), "stem": pa.array(files["stem"])}
    order = pc.sort_indices(pa.table(keys), [("class", "ascending"), ("stem", "ascending")])
    return rows[order.to_numpy()]


def _repeated(values: pa.Array) -> NDArray[np.bool_]:
    """Whether a value occurs more than once."""
    codes = values.dictionary_encode().indices.to_numpy()
    return np.bincount(codes)[codes] > 1 if len(codes) else np.zeros(0, bool)


def _fit_plainly(
    readings: pa.Table, images: NDArray[np.int64], masks: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether nothing can be wrong with an image and its mask, -1 for none."""
    told = {name: readings[name].to_numpy() for name in _MEASURED}
    good = pc.equal(readings["problem"], "").to_numpy()
    good_image = good & (told["darkest"] < told["brightest"])
    good_mask = good & (told["area"] > 0)
    across = told["width"][masks] * told["height"][images]
    down = told["height"][masks] * told["width"][images]
    same_shape = np.maximum(across, down) <= np.minimum(across, down) * (1 + ASPECT_TOLERANCE / 2)
    return good_image[images] & (masks >= 0) & good_mask[masks] & same_shape


def _readings(readings: pa.Table, rows: NDArray[np.int64]) -> list[Reading]:
    """Readings as objects, without their thumbnails."""
    columns = readings.drop_columns("thumbnail").take(rows).to_pydict().values()
    return [Reading(*told) for told in zip(*columns, strict=True)]


def _why_not_usable(image: Reading, masks: list[Reading]) -> tuple[str, str] | None:
    """Say what is wrong with the mask of an image: kind and words."""
    if not masks:
        return "missing_mask", "no file of this name in masks/"
    if len(masks) > 1:
        return "several_masks", ", ".join(mask.path for mask in masks)
    mask = masks[0]
    if mask.problem:
        return "bad_mask", f"{mask.path}: {mask.problem}, {mask.detail}"
    if not mask.area:
        found = f"its brightest pixel is {mask.brightest}, lung is above {MASK_THRESHOLD}"
        return "empty_mask", f"{mask.path}: {found}"
    ratio = (mask.width * image.height) / (mask.height * image.width)
    if abs(math.log(ratio)) > math.log1p(ASPECT_TOLERANCE):
        shapes = f"{mask.width}x{mask.height} for an image of {image.width}x{image.height}"
        return "mask_shape", f"{mask.path}: mask of another image's shape, {shapes}"
    return None


def compare_images(
    layout: Layout, pairs: Pairs, readings: pa.Table, problems: list[Problem]
) -> None:
    """Find images with exactly the same pixels, within a class and across.

    Parameters
    ----------
    layout, readings, problems
        As of `pair_with_masks`.
    pairs : Pairs
        What that returned.
    """
    hashes = readings["pixel_hash"].combine_chunks().take(pairs.images)
    rows = pairs.images[_repeated(hashes)]
    names = layout.files["class_name"].iloc[rows]
    same: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for reading, class_name in zip(_readings(readings, rows), names, strict=True):
        same[reading.pixel_hash].append((reading.path, class_name))
    for found in same.values():
        if len({class_name for _, class_name in found}) > 1:
            for path, class_name in found:
                others = ", ".join(other for other, its in found if its != class_name)
                reason = f"same pixels as {others}: at most one class can be right"
                problems.append(Problem(path, "image_in_two_classes", reason, True))
            continue
        for path, _ in found[1:]:
            reason = f"same pixels as {found[0][0]}; they stay together in the split"
            problems.append(Problem(path, "exact_duplicate", reason, False))
