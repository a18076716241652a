"""How much of what a network looks at lies inside the lungs, and pictures of it.

The maps are coarse: one value for a cell of the network's grid, some pixels wide. A share of
saliency therefore stands beside the share that saliency spread evenly over the image would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    class_colors,
    label_ticks,
    new_figure,
    shorten,
    style_axes,
    wrap_name,
)
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.metrics import Labels, class_slugs
from cxr_mlflow.evaluation.ratios import Ratios, ratio_intervals

Array = NDArray[np.float64]
Heat = NDArray[np.floating]
Masks = NDArray[np.uint8]

OUTLINE = "#56b4e9"
_STRONGEST = 0.65  # opacity of the hottest point of an overlay: the film stays visible below it


@dataclass(frozen=True)
class Panel:
    """One image of a sheet, as the network saw it, with the heat over it."""

    image: NDArray[np.uint8]  # (S, S)
    heat: Heat  # (h, w)
    mask: Masks | None  # (S, S) of 0 and 1; None where there is none
    text: str


def enlarge(heat: Heat, size: int) -> Array:
    """Interpolate maps bilinearly to the image they belong to, as every Grad-CAM picture does.

    Parameters
    ----------
    heat : float array of shape (N, h, w)
        One value per cell; a cell's value holds at its centre.
    size : int
        Side S of the images, pixels.

    Returns
    -------
    float64 array of shape (N, S, S)
    """
    return _to_pixels(heat.shape[1], size) @ heat @ _to_pixels(heat.shape[2], size).T


def share_inside(heat: Heat, masks: Masks) -> Array:
    """Share of the positive saliency of each image that lies inside its mask.

    Parameters
    ----------
    heat : float array of shape (N, h, w)
        Saliency by cell; what is negative speaks against the class and is left out.
    masks : uint8 array of shape (N, S, S)
        1 inside, 0 outside.

    Returns
    -------
    float64 array of shape (N,)
        Of the enlarged maps, in [0, 1]; nan where nothing in a map is positive.

    Raises
    ------
    ValueError
        If maps and masks differ in number or one of them is no stack of pictures.
    """
    if heat.ndim != 3 or masks.ndim != 3 or len(heat) != len(masks):
        raise ValueError(f"need N maps and N masks, got {heat.shape} and {masks.shape}")
    rows, columns = (_to_pixels(cells, masks.shape[1]) for cells in heat.shape[1:])
    whole = np.outer(rows.sum(axis=0), columns.sum(axis=0))
    shares = np.full(len(heat), np.nan)
    for place, (cells, mask) in enumerate(zip(heat.clip(0), masks, strict=True)):
        # The sum of enlarged heat times mask is the sum of heat times mask brought to the cells.
        if (total := float((cells * whole).sum())) > 0:
            shares[place] = (cells * (rows.T @ mask @ columns)).sum() / total
    return shares


def _to_pixels(cells: int, size: int) -> Array:
    """Bilinear interpolation of one axis, float64 (size, cells); level beyond the last centres."""
    places = ((np.arange(size) + 0.5) * cells / size - 0.5).clip(0, cells - 1)
    return (1 - np.abs(places[:, None] - np.arange(cells))).clip(0)


def saliency_scores(
    shares: Array,
    areas: Array,
    labels: Labels,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> dict[str, Interval]:
    """Mean share of saliency inside the lungs by class, beside the share of the area.

    Parameters
    ----------
    shares : float array of shape (N,)
        As `share_inside` gives them; images of nan are not counted.
    areas : float array of shape (N,)
        Share of the image that its mask covers: what saliency spread evenly would have inside.
    labels : integer array of shape (N,)
        Class that each map explains.
    classes : sequence of C names
    how : Bootstrap
        Its groups are those of all N images.

    Returns
    -------
    dict of str to Interval
        For each class `in_lungs/<class>` (mean of the shares), `area/<class>` (mean of the areas)
        and `ratio/<class>` (the first over the second: 1 is what even saliency has). nan for a
        class without a counted image.
    """
    counted = ~np.isnan(shares)
    labels, areas, shares = np.asarray(labels)[counted], areas[counted], shares[counted]
    ratios: Ratios = {}
    for label, key in enumerate(class_slugs(classes)):
        own = labels == label
        ratios[f"in_lungs/{key}"] = (np.where(own, shares, 0), own)
        ratios[f"area/{key}"] = (np.where(own, areas, 0), own)
        ratios[f"ratio/{key}"] = (np.where(own, shares, 0), np.where(own, areas, 0))
    if not len(shares):
        return dict.fromkeys(ratios, Interval(np.nan, np.nan, np.nan))
    return ratio_intervals(ratios, how.of(counted))


def saliency_metrics(
    scores: dict[str, Interval], counts: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, float]:
    """Flatten to metric keys: `saliency/in_lungs/<class>`, `saliency/in_lungs_low/<class>`, ...

    Parameters
    ----------
    scores : dict
        Of `saliency_scores`.
    counts : int array of shape (C,)
        Images behind each class's scores: `saliency/support/<class>`.
    classes : sequence of C names
    """
    slugs = class_slugs(classes)
    metrics = {f"saliency/support/{key}": float(n) for key, n in zip(slugs, counts, strict=True)}
    for name, score in scores.items():
        head, _, key = name.partition("/")
        metrics[f"saliency/{name}"] = score.value
        if head != "area":  # a property of the images, not of the model
            metrics[f"saliency/{head}_low/{key}"] = score.low
            metrics[f"saliency/{head}_high/{key}"] = score.high
    return metrics


def saliency_line(
    scores: dict[str, Interval], counts: NDArray[np.int64], classes: Sequence[str]
) -> str:
    """Say in a line how much of the saliency lies inside the lungs, class by class.

    Parameters as of `saliency_metrics`.
    """
    told, missing = [], []
    for name, key, count in zip(classes, class_slugs(classes), counts, strict=True):
        if not count:
            missing.append(name)
            continue
        inside, area = scores[f"in_lungs/{key}"], scores[f"area/{key}"].value
        told.append(
            f"{name} {inside.value:.2f} ({inside.low:.2f}–{inside.high:.2f}) "
            f"where evenly spread {area:.2f}, n = {count}"
        )
    if missing:
        told.append(f"not measured for {', '.join(missing)}: no image counted")
    return f"share inside the lungs, of rightly judged images: {'; '.join(told)}"


def plot_heat_sheet(
    rows: Sequence[Sequence[Panel]],
    names: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    columns: int = 5,
    empty: str = "none",
) -> Figure:
    """Draw images with their saliency and the outline of the lungs: a row for each name.

    Each map has a colour scale of its own, from 0 to its largest value: maps tell where a network
    looked, not how strongly.

    Parameters
    ----------
    rows : sequence of R sequences of Panel
        At most `columns` in each.
    names : sequence of R texts
        What stands left of each row.
    title, subtitle : str
        Headline, and what the figure was computed on.
    columns : int
    empty : str
        What stands in a row without an image.

    Raises
    ------
    ValueError
        If rows and names differ in number, or a row is too long.
    """
    if not rows or len(rows) != len(names) or max(map(len, rows)) > columns:
        raise ValueError(f"{len(rows)} rows of at most {columns} images for {len(names)} names")
    figure = new_figure(max(7.0, 0.9 + 2.0 * columns), 1.2 + 2.35 * len(rows), title, subtitle)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, row, name in zip(grid, rows, names, strict=True):
        for axes, panel in zip(line, row, strict=False):
            _overlay(axes, panel)
        for axes in line[len(row) :]:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_box_aspect(1)
        lines = wrap_name(shorten(name, 48), 20).split("\n")
        label = "\n".join(shorten(part, 21) for part in lines)
        line[0].set_ylabel(label, fontsize=SMALL, color=INK)
        if not row:
            where = {"ha": "center", "va": "center", "transform": line[0].transAxes}
            line[0].text(0.5, 0.5, empty, fontsize=SMALL, color=FAINT, **where)
    return figure


def _overlay(axes: Axes, panel: Panel) -> None:
    size = len(panel.image)
    axes.imshow(panel.image, cmap="gray", vmin=0, vmax=255)
    heat = enlarge(panel.heat.clip(0)[None], size)[0]
    if (top := heat.max()) > 0:
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=top, alpha=_STRONGEST * heat / top)
    if panel.mask is not None and panel.mask.min() < panel.mask.max():
        axes.contour(panel.mask, levels=[0.5], colors=OUTLINE, linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(panel.text, loc="left", fontsize=SMALL - 1, color=INK)


def plot_saliency_shares(
    scores: dict[str, Interval],
    counts: NDArray[np.int64],
    classes: Sequence[str],
    *,
    title: str = "Saliency inside the lungs",
    subtitle: str = "",
) -> Figure:
    """Draw the share of saliency inside the lungs by class, against what even saliency would have.

    Parameters as of `saliency_metrics`; a class without a counted image gets no bar.
    """
    figure = new_figure(max(7.2, 1.6 + 1.4 * len(classes)), 5.4, title, subtitle)
    axes = figure.add_subplot()
    bar = axes.bar  # one call per class: each bar has its own colour and interval
    for place, (key, color) in enumerate(
        zip(class_slugs(classes), class_colors(len(classes)), strict=True)
    ):
        inside, area = scores[f"in_lungs/{key}"], scores[f"area/{key}"].value
        if np.isnan(inside.value):
            axes.text(place, 0.02, "not measured", ha="center", fontsize=SMALL, color=FAINT)
            continue
        reach = [[max(inside.value - inside.low, 0)], [max(inside.high - inside.value, 0)]]
        bar(place, inside.value, 0.6, color=color, yerr=reach, ecolor=INK, capsize=4)
        even = axes.hlines(area, place - 0.4, place + 0.4, colors=INK, linestyles=(0, (3, 1.5)))
        even.set_label("evenly spread: share of the area that is lung" if not place else None)
        top = max(inside.high, area)
        axes.text(place, top + 0.02, f"{inside.value:.2f}", ha="center", fontsize=SMALL, color=INK)
    names = [f"{wrap_name(name)}\nn = {n:,}" for name, n in zip(classes, counts, strict=True)]
    label_ticks(axes, names, axis="x")
    axes.set_ylim(0, 1.08)
    style_axes(axes, ylabel="share of positive saliency", grid="y")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right", fontsize=SMALL, frameon=False)
    return figure
