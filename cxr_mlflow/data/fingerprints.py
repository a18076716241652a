"""What is kept of the training images so that others can be held against them: no file is needed.

A training run logs the fingerprints of the images it has seen. A later test of the model on other
data finds near-copies of them by it, also where the training images are not at hand.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.duplicates import find_matches
from cxr_mlflow.data.preprocess import decode_grey
from cxr_mlflow.data.splits import Split
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError

SEEN = ("train", "val")
"""Splits whose images a model has learned from, or was chosen by."""
VERSION = 1
_NAMES = ("version", "image_ids", "splits", "pixel_hashes", "thumbnails")
_PAIRS_PER_ROW, _MOST_PAIRS = 4, 24


@dataclass(frozen=True)
class Fingerprints:
    """Images that a model has seen, in as far as copies of them can be told by it.

    Attributes
    ----------
    image_ids, splits, pixel_hashes : str arrays of shape (M,)
        As in `Split.table`; `splits` holds "train" and "val".
    thumbnails : uint8 array of shape (M, 32, 32)
        As in `Catalog.thumbnails`.
    """

    image_ids: NDArray[np.str_]
    splits: NDArray[np.str_]
    pixel_hashes: NDArray[np.str_]
    thumbnails: NDArray[np.uint8]


def save_fingerprints(path: Path, catalog: Catalog, split: Split) -> None:
    """Write the fingerprints of the training and validation images as an .npz file.

    About 1 KB an image. A thumbnail of 32 x 32 pixels is a picture of a patient all the same:
    where the films must not leave a house, neither must this file.

    Parameters
    ----------
    path : Path
        Replaced where it exists.
    catalog : Catalog
    split : Split
        Of this catalog.
    """
    rows = np.sort(np.concatenate([split.rows(name) for name in SEEN]))
    table = split.table.iloc[rows]
    with write_whole(path, "write it elsewhere") as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            version=np.int64(VERSION),
            image_ids=_as_bytes(table["image_id"]),
            splits=_as_bytes(table["split"]),
            pixel_hashes=_as_bytes(table["pixel_hash"]),
            thumbnails=catalog.thumbnails[rows],
        )


def load_fingerprints(path: Path) -> Fingerprints:
    """Read what `save_fingerprints` wrote.

    Raises
    ------
    InputError
        If it is not such a file, or damaged.
    """
    try:
        # np.load leaves a damaged file open that it opened itself
        with path.open("rb") as file, np.load(file, allow_pickle=False) as told:
            version, ids, splits, hashes, thumbnails = (told[name] for name in _NAMES)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: no readable fingerprints ({error})") from error
    if version != VERSION:
        raise InputError(f"{path}: fingerprints of version {version}; this one reads {VERSION}")
    if thumbnails.ndim != 3 or {len(ids), len(splits), len(hashes)} != {len(thumbnails)}:
        raise InputError(f"{path}: damaged, its columns are of different lengths")
    return Fingerprints(_as_text(ids), _as_text(splits), _as_text(hashes), thumbnails)


def _as_bytes(column: pd.Series) -> NDArray[np.bytes_]:
    """UTF-8, a quarter of what NumPy's text takes."""
    return np.char.encode(column.to_numpy(str), "utf-8")


def _as_text(column: NDArray[np.bytes_]) -> NDArray[np.str_]:
    return np.char.decode(column, "utf-8")


@dataclass(frozen=True)
class Copies:
    """Which images of a set a model has seen already.

    Attributes
    ----------
    rows : int64 array
        Rows of the catalog that must not be scored, ascending: copies of images seen in training,
        and whatever is a near-duplicate of such a copy.
    table : DataFrame
        One line for each of them: `image_id`, `class_name`, `found` ("exact", "near", or "through"
        another image of its group), `similarity` (nan where "through"), `training_image`,
        `training_split`.
    pairs : DataFrame
        The best match of each direct copy: `i` (row of the catalog), `j` (row of the fingerprints),
        `similarity`, `exact`.
    """

    rows: NDArray[np.int64]
    table: pd.DataFrame
    pairs: pd.DataFrame


def find_copies(
    catalog: Catalog, groups: NDArray[np.int64], rows: NDArray[np.int64], seen: Fingerprints
) -> Copies:
    """Find the images of a catalog that a model has seen in training.

    The rule is that of the split: whoever shows one film stays together. So the whole group of
    near-duplicates goes of which one image is a copy.

    Parameters
    ----------
    catalog : Catalog
    groups : int64 array of shape (N,)
        Near-duplicate groups of the catalog.
    rows : int64 array
        Rows that are to be scored; the others are not looked at.
    seen : Fingerprints
    """
    matches = find_matches(
        catalog.thumbnails[rows],
        catalog.table["pixel_hash"].iloc[rows].tolist(),
        seen.thumbnails,
        seen.pixel_hashes.tolist(),
    )
    pairs = matches.assign(i=rows[matches["i"]]).drop_duplicates("i", ignore_index=True)
    taken = rows[np.isin(groups[rows], groups[pairs["i"]])]
    best = pairs.assign(group=groups[pairs["i"]]).set_index("i")
    lines = []
    for row in taken.tolist():
        direct = row in best.index
        match = best.loc[row] if direct else best[best["group"] == groups[row]].iloc[0]
        found = ("exact" if match["exact"] else "near") if direct else "through"
        lines.append(
            {
                "image_id": catalog.table["image_id"].iloc[row],
                "class_name": catalog.table["class_name"].iloc[row],
                "found": found,
                "similarity": match["similarity"] if direct else np.nan,
                "training_image": seen.image_ids[int(match["j"])],
                "training_split": seen.splits[int(match["j"])],
            }
        )
    columns = ["image_id", "class_name", "found", "similarity", "training_image", "training_split"]
    return Copies(np.sort(taken), pd.DataFrame(lines, columns=columns), pairs)


def plot_copies(catalog: Catalog, copies: Copies, seen: Fingerprints) -> Figure:
    """Show copies beside the thumbnails of the training images they match, most doubtful first.

    Parameters
    ----------
    catalog : Catalog
    copies : Copies
        Found in it.
    seen : Fingerprints

    Returns
    -------
    matplotlib.figure.Figure
        Pairs, four to a row: the image, then the thumbnail of 32 x 32 pixels that is kept.
    """
    shown = copies.pairs.sort_values(["similarity", "i"], kind="stable").head(_MOST_PAIRS)
    num_rows = max(1, -(-len(shown) // _PAIRS_PER_ROW))
    figure = Figure(figsize=(_PAIRS_PER_ROW * 2.9, num_rows * 1.75 + 0.6))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(
        *(num_rows, _PAIRS_PER_ROW * 3),
        squeeze=False,
        width_ratios=[1.0, 1.0, 0.2] * _PAIRS_PER_ROW,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for place, pair in enumerate(shown.to_dict("records")):
        line, first = grid[place // _PAIRS_PER_ROW], place % _PAIRS_PER_ROW * 3
        image = catalog.table.iloc[pair["i"]]
        left = decode_grey(Path(image["path"]))
        names = (image["image_id"], str(seen.image_ids[pair["j"]]))
        notes = ("exact" if pair["exact"] else f"{pair['similarity']:.3f}", "in training")
        for axes, pixels, name, note in zip(
            line[first : first + 2], (left, seen.thumbnails[pair["j"]]), names, notes, strict=True
        ):
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{note}\n{name.rpartition('/')[2][:22]}", fontsize=7)
    figure.suptitle(
        f"{len(copies.rows)} images show films the model was trained on; "
        f"the {len(shown)} least certain of {len(copies.pairs)} direct copies",
        fontsize=10,
    )
    return figure
