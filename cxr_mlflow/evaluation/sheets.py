"""Sheets of pictures: the worst errors, and what augmentation does to the images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    new_figure,
    shorten,
    wrap_name,
)

COLUMNS = 5


def plot_worst_errors(
    images: NDArray[np.uint8],
    rows: pd.DataFrame,
    *,
    title: str = "The most confident errors",
    subtitle: str = "",
) -> Figure:
    """Show misjudged images with their true class, the predicted one and how sure the model was.

    Parameters
    ----------
    images : uint8 array of shape (K, S, S)
        The images as the network saw them, in the order of `rows`.
    rows : DataFrame of K rows
        Columns "image_id", "true", "predicted", "confidence" (0..1), as `report.worst_errors`
        returns them. K may be 0: the figure then says that there was no error.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If the images and the rows differ in number.
    """
    if len(images) != len(rows):
        raise ValueError(f"{len(images)} images for {len(rows)} rows")
    if not len(rows):
        figure = new_figure(8.4, 2.4, title, subtitle)
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "No image was misjudged.", ha="center", va="center", fontsize=TEXT)
        return figure
    num_columns = max(3, min(COLUMNS, len(rows)))
    num_rows = math.ceil(len(rows) / num_columns)
    figure = new_figure(2.9 * num_columns, 1.0 + 3.6 * num_rows, title, subtitle)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in grid[len(rows) :]:
        axes.set_axis_off()
    for axes, image, row in zip(grid, images, rows.to_dict("records"), strict=False):
        _show(axes, image)
        true, predicted = shorten(row["true"], 26), shorten(row["predicted"], 20)
        text = f"true {true}\npredicted {predicted}, {row['confidence']:.1%}"
        axes.set_title(text, loc="left", fontsize=SMALL, color=INK)
        axes.set_xlabel(
            wrap_name(shorten(row["image_id"], 70), 36), fontsize=SMALL - 1, color=FAINT
        )
    return figure


def plot_samples(
    images: NDArray[np.uint8],
    titles: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    title: str = "Augmented training images",
    subtitle: str = "",
) -> Figure:
    """Show images and what augmentation makes of them: a row per image.

    Parameters
    ----------
    images : uint8 array of shape (R, K, S, S)
        In each row the original first, then its augmented copies.
    titles : sequence of R texts
        What stands left of each row, such as its class.
    columns : sequence of K texts, optional
        What stands above each column; "original", "augmented 1", ... by default.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If the images are not a grid, or the texts do not fit it.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"need images of shape (rows, columns, side, side), got {images.shape}")
    num_rows, num_columns = images.shape[:2]
    columns = columns or ["original", *(f"augmented {i}" for i in range(1, num_columns))]
    if (len(titles), len(columns)) != (num_rows, num_columns):
        raise ValueError(
            f"{len(titles)} row titles and {len(columns)} column titles for a grid of "
            f"{num_rows} x {num_columns} images"
        )
    figure = new_figure(max(7.0, 0.6 + 1.9 * num_columns), 1.1 + 1.95 * num_rows, title, subtitle)
    axes = figure.add_subplot()  # one for all: each axes of a grid costs as much as its picture
    sheet, step = _mosaic(images)
    _show(axes, sheet)
    middle = (images.shape[-1] - 1) / 2
    labels = [wrap_name(shorten(name, 48), 20).split("\n") for name in titles]
    axes.set_xticks(middle + step * np.arange(num_columns), columns, fontsize=TEXT - 1, color=INK)
    axes.set_yticks(
        middle + step * np.arange(num_rows),
        ["\n".join(shorten(line, 21) for line in lines) for lines in labels],
        fontsize=SMALL, color=INK, rotation=90, va="center", ha="right", multialignment="center",
    )  # fmt: skip
    axes.tick_params(length=0, pad=6, labeltop=True, labelbottom=False)
    return figure


def _mosaic(images: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], int]:
    """One picture of (R, K, S, S), white in between, and from one to the next in pixels."""
    num_rows, num_columns, side = images.shape[:3]
    step = side + max(side // 20, 2)
    sheet = np.full((num_rows, step, num_columns, step), 255, np.uint8)
    sheet[:, :side, :, :side] = images.transpose(0, 2, 1, 3)
    sheet = sheet.reshape(num_rows * step, num_columns * step)
    return sheet[: side - step, : side - step], step


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
