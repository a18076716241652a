"""What the audit looks at: facts of every file, and views of an image that hide the findings."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from cxr_mlflow.data.catalog import MASK_PROBLEMS, Catalog
from cxr_mlflow.data.preprocess import MASK_THRESHOLD, BadImage, Pixels, decode_grey
from cxr_mlflow.data.scan import hash_pixels
from cxr_mlflow.data.storage import in_threads, with_bar
from cxr_mlflow.errors import InputError

Floats = NDArray[np.float32]

GREY_BINS = 64
MASK_SIDE = 16
"""Lung masks are looked at on a grid of so many cells a side."""
THUMBNAIL = 8
TINY_MASK = 0.10
"""Share of lung under which a mask is called tiny; of 9,912 real masks 1 % are."""
BORDER = 3
"""Width of the border, in pixels of the 32 x 32 thumbnail: 9 % of the image on every side."""
_STANDARD_LUMA_SUM = 3688  # of the JPEG standard's luminance table (ITU-T T.81, table K.1)


class FileFacts(NamedTuple):
    """What one image file and its mask tell without a look at what is shown."""

    file_format: str  # "PNG" or "JPEG"
    pixel_mode: str  # Pillow's: "L" is grey, "RGB" colours
    bits: int  # per channel
    jpeg_quality: float  # estimated, 1..100 as libjpeg counts; nan for a PNG
    brightness: float  # mean grey, 0..255
    contrast: float  # standard deviation of the grey values
    black: float  # share of pixels at 0
    white: float  # share of pixels at 255
    mask_touches: bool  # the lungs reach the outermost row or column of pixels


@dataclass(frozen=True)
class Measured:
    """Everything read from the files of a catalog, in table order.

    Attributes
    ----------
    facts : DataFrame of N rows
        Columns as the fields of `FileFacts`.
    histograms : float32 array of shape (N, GREY_BINS)
        Shares of the grey values of the decoded image.
    masks : float32 array of shape (N, MASK_SIDE, MASK_SIDE)
        Share of lung in each cell; 0 without a mask.
    boxes : float32 array of shape (N, 5)
        Share of lung, and top, bottom, left and right end of the lungs as shares of the side.
    """

    facts: pd.DataFrame
    histograms: Floats
    masks: Floats
    boxes: Floats


def measure_files(catalog: Catalog, *, progress: bool = False) -> Measured:
    """Read every image and mask of a catalog once.

    Parameters
    ----------
    catalog : Catalog
    progress : bool
        Show a bar.

    Returns
    -------
    Measured
        Some 1.4 kB for an image.

    Raises
    ------
    InputError
        If a file cannot be decoded any more or is not what the catalog saw.
    """
    n = len(catalog.table)
    histograms = np.zeros((n, GREY_BINS), np.float32)
    masks = np.zeros((n, MASK_SIDE, MASK_SIDE), np.float32)
    boxes = np.zeros((n, 5), np.float32)
    facts: list[FileFacts] = []
    columns = ("path", "mask_path", "pixel_hash", "mask_hash")
    rows = zip(*(catalog.table[name] for name in columns), strict=True)
    read = in_threads(lambda row: _read(*row), rows)
    for i, result in enumerate(with_bar(read, "Auditing files", n, show=progress)):
        told, histograms[i], masks[i], boxes[i] = result
        facts.append(told)
    return Measured(pd.DataFrame(facts, columns=FileFacts._fields), histograms, masks, boxes)


def _read(
    path: str, mask_path: str, pixel_hash: str, mask_hash: str
) -> tuple[FileFacts, Floats, Floats, Floats]:
    """Facts, histogram, mask grid and box of one image."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadImage(path, "unreadable", f"the file cannot be read ({error.strerror})") from error
    pixels = _unchanged(decode_grey(content, name=path), pixel_hash, path)
    counts = np.bincount(pixels.ravel(), minlength=256) / pixels.size
    greys = np.arange(256)
    mean = float(counts @ greys)
    grid, box, touches = np.zeros((MASK_SIDE, MASK_SIDE), np.float32), np.zeros(5), False
    if mask_path:
        lungs = _unchanged(decode_grey(Path(mask_path)), mask_hash, mask_path) > MASK_THRESHOLD
        grid, box, touches = _look_at_mask(lungs)
    with Image.open(io.BytesIO(content)) as header:  # decodes nothing
        facts = FileFacts(
            file_format=str(header.format),
            pixel_mode=header.mode,
            bits=content[24] if header.format == "PNG" else 8,  # IHDR
            jpeg_quality=_jpeg_quality(getattr(header, "quantization", {})),
            brightness=mean,
            contrast=float(np.sqrt(counts @ (greys - mean) ** 2)),
            black=float(counts[0]),
            white=float(counts[255]),
            mask_touches=touches,
        )
    shares = counts.reshape(GREY_BINS, -1).sum(axis=1).astype(np.float32)
    return facts, shares, grid, box.astype(np.float32)


def _unchanged(pixels: Pixels, pixel_hash: str, path: str) -> Pixels:
    if hash_pixels(pixels) != pixel_hash:
        raise InputError(f"{path}: changed while it was in use; start again")
    return pixels


def _look_at_mask(lungs: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.float64], bool]:
    """Cells, box and whether the lungs reach the edge, of a mask that is not empty."""
    shrunk = Image.fromarray(lungs.astype(np.uint8) * 255).resize(
        (MASK_SIDE, MASK_SIDE), Image.Resampling.BOX
    )
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    height, width = lungs.shape
    box = [rows[0] / height, (rows[-1] + 1) / height, columns[0] / width, (columns[-1] + 1) / width]
    touches = bool(box[0] == 0 or box[1] == 1 or box[2] == 0 or box[3] == 1)
    return np.asarray(shrunk, np.float32) / np.float32(255), np.array([lungs.mean(), *box]), touches


def _jpeg_quality(tables: dict[int, list[int]]) -> float:
    """Quality setting of libjpeg that gives a luminance table of this size; nan without one."""
    if not tables:
        return float("nan")
    scale = 100 * sum(tables[min(tables)]) / _STANDARD_LUMA_SUM
    return round(5000 / scale if scale > 100 else max(1, (200 - scale) / 2))


def build_views(
    catalog: Catalog, measured: Measured
) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
    """Make the inputs of the shortcut predictors: what may not tell a class, or only in part.

    Parameters
    ----------
    catalog : Catalog
    measured : Measured
        Of the same catalog.

    Returns
    -------
    dict of str to (float32 array of shape (N, F), bool array of shape (N,))
        Inputs and which rows have them:

        - "source": the source's number, one column;
        - "file": width, height, format, colours, bits and JPEG quality of the file;
        - "mask": the lungs' outline on a 16 x 16 grid, their share and box; rows with a mask;
        - "histogram": shares of 64 grey levels, without any place;
        - "thumbnail": 8 x 8 means, 37 px of a Kaggle image each;
        - "border": the outer 9 % of the image on every side.
    """
    table, facts = catalog.table, measured.facts
    n = len(table)
    small = catalog.thumbnails
    step = small.shape[1] // THUMBNAIL
    cells = small.reshape(n, THUMBNAIL, step, THUMBNAIL, step)
    ring = np.ones(small.shape[1:], bool)
    ring[BORDER:-BORDER, BORDER:-BORDER] = False
    codes = [pd.factorize(facts[name])[0] for name in ("file_format", "pixel_mode")]
    numbers = [table["width"], table["height"], facts["bits"], facts["jpeg_quality"].fillna(0)]
    views = {
        "source": pd.factorize(table["source"], sort=True)[0][:, None],
        "file": np.column_stack([*numbers, *codes]),
        "mask": np.hstack([measured.masks.reshape(n, -1), measured.boxes]),
        "histogram": measured.histograms,
        "thumbnail": cells.mean((2, 4), dtype=np.float32).reshape(n, -1),
        "border": small[:, ring],
    }
    everything = np.ones(n, bool)
    masked = (table["mask_path"] != "").to_numpy(bool)
    return {
        name: (np.asarray(view, np.float32), masked if name == "mask" else everything)
        for name, view in views.items()
    }


def describe_files(
    table: pd.DataFrame, measured: Measured, rows: NDArray[np.int64]
) -> dict[str, Any]:
    """Resolution, format, compression and brightness of one class."""
    mine, facts = table.iloc[rows], measured.facts.iloc[rows]
    stored = (
        facts["file_format"] + " " + facts["pixel_mode"] + " " + facts["bits"].astype(str) + " bit"
    )
    quality = facts["jpeg_quality"].dropna()
    pixels = mine["width"] * mine["height"]
    return {
        "images": len(mine),
        "sizes": count_values(mine["width"].astype(str) + " x " + mine["height"].astype(str)),
        "stored_as": count_values(stored),
        "jpeg_quality": count_values(quality.astype(int)),
        "bytes_per_pixel_median": float((mine["file_bytes"] / pixels).median()),
        "brightness_mean": float(facts["brightness"].mean()),
        "brightness_sd": float(facts["brightness"].std()),
        "contrast_mean": float(facts["contrast"].mean()),
        "black_share_mean": float(facts["black"].mean()),
        "white_share_mean": float(facts["white"].mean()),
    }


def describe_masks(catalog: Catalog, measured: Measured, class_name: str) -> dict[str, Any]:
    """Masks of one class: how many there are, and how many are tiny or touch the edge."""
    mine = (catalog.table["class_name"] == class_name).to_numpy(bool)
    area, listed = catalog.table["mask_area"][mine], catalog.problems
    of_class = listed["path"].str.startswith(f"{class_name}/")
    return {
        "with_mask": int(area.notna().sum()),
        "unusable": count_values(
            listed["problem"][of_class & listed["problem"].isin(MASK_PROBLEMS)]
        ),
        "tiny": int((area < TINY_MASK).sum()),
        "touching_edge": int(measured.facts["mask_touches"][mine].sum()),
        "area_median": float(area.median()),
        "area_p05": float(area.quantile(0.05)),
        "area_p95": float(area.quantile(0.95)),
    }


def count_values(values: Iterable[Any]) -> dict[str, int]:
    """Count each value, most frequent first."""
    return {str(value): int(count) for value, count in Counter(values).most_common()}
