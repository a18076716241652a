"""Shows groups of duplicates side by side, so that a reader can check what the search found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

from cxr_mlflow.data.duplicates import Duplicates
from cxr_mlflow.data.preprocess import decode_grey

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS_PER_ROW = 3
_CELL, _STEP, _ROW, _HEAD = 128, 134, 172, 26  # pixels: an image, to the next, a row, the title
_MARGIN = 6
_DPI = 110
_LONGEST = 21  # characters of a name that fit above an image


def plot_contact_sheet(
    table: pd.DataFrame, duplicates: Duplicates, *, max_groups: int = 24, per_group: int = 3
) -> Figure:
    """Show groups side by side, the most doubtful first.

    Parameters
    ----------
    table : DataFrame
        The catalog's, with `path` and `image_id`.
    duplicates : Duplicates
        Found on the same rows.
    max_groups, per_group : int
        Most groups, and most members of one, that are drawn; the title says how many there are.

    Returns
    -------
    matplotlib.figure.Figure
        Three groups to a row. A group's number is the lowest similarity of the links in it.
    """
    from matplotlib.figure import Figure

    weakest = duplicates.pairs.groupby(duplicates.groups[duplicates.pairs["i"]])["similarity"].min()
    chosen = weakest.sort_values(kind="stable").head(max_groups)
    block = per_group * _STEP + _CELL // 5  # a gap behind each group
    width = _MARGIN + _GROUPS_PER_ROW * block
    height = _HEAD + max(1, -(-len(chosen) // _GROUPS_PER_ROW)) * _ROW + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all: each axes costs as much as its picture
    axes.set_axis_off()
    sheet = np.full((height, width), 255, np.uint8)
    for place, (group, similarity) in enumerate(chosen.items()):
        top = _HEAD + place // _GROUPS_PER_ROW * _ROW + _ROW - _CELL
        members = np.flatnonzero(duplicates.groups == group)
        for column, row in enumerate(members[:per_group]):
            left = _MARGIN + place % _GROUPS_PER_ROW * block + column * _STEP
            small = _fitted(decode_grey(Path(table["path"].iloc[row])))
            sheet[top : top + _CELL, left : left + _CELL] = small
            note = f"{similarity:.3f}" if column == 0 else ""
            if column == 1 and len(members) > per_group:
                note = f"{len(members)} images"
            name = str(table["image_id"].iloc[row]).rpartition("/")[2]
            name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
            middle = left + _CELL / 2
            axes.text(middle, top - 4, f"{note}\n{name}", fontsize=7, ha="center", va="bottom")
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    sizes = np.bincount(duplicates.groups) if len(duplicates.groups) else np.zeros(0, np.int64)
    figure.suptitle(
        f"{(sizes > 1).sum()} groups of duplicates hold {sizes[sizes > 1].sum()} images; "
        f"the {len(chosen)} least certain groups",
        fontsize=10,
        y=1 - 6 / height,
        va="top",
    )
    return figure


def _fitted(image: np.ndarray) -> np.ndarray:
    """Shrink or enlarge an image into a white cell, its proportions kept."""
    height, width = image.shape
    scale = _CELL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cell = np.full((_CELL, _CELL), 255, np.uint8)
    top, left = (_CELL - size[1]) // 2, (_CELL - size[0]) // 2
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    cell[top : top + size[1], left : left + size[0]] = small
    return cell
