"""An audit as one HTML file, with the pictures that show where a class gives itself away."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from cxr_mlflow.data.audit import Audit
from cxr_mlflow.data.audit_features import GREY_BINS
from cxr_mlflow.data.audit_shortcuts import LEVEL, SEES, TITLES
from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.contact_sheet import plot_contact_sheet
from cxr_mlflow.data.duplicates import Duplicates
from cxr_mlflow.data.splits import Split

IMAGE_DPI = 100
MAX_GROUPS = 12
"""Groups on a contact sheet."""
MAX_ROWS = 30
"""Sources listed in the page; the JSON has all."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_CHUNK = 4096  # images held as floats at once


def write_page(
    audit: Audit, catalog: Catalog, duplicates: Duplicates, *, split: Split | None = None
) -> str:
    """Write an audit as one HTML 5 page that needs no other file, no script and no network.

    Parameters
    ----------
    audit : Audit
    catalog, duplicates
        What was audited; the pictures are taken from them.
    split : Split, optional
        The one that was audited; groups that it cuts get a contact sheet.

    Returns
    -------
    str
    """
    table, groups = catalog.table, duplicates.groups
    crossing = {"across classes": table["class_name"].to_numpy()}
    if split is not None:
        crossing["across splits"] = split.table["split"].to_numpy()
    sheets = [("", duplicates)] if audit.copies.groups else []
    for where, parts in crossing.items():
        several = table.assign(part=parts).groupby(groups)["part"].nunique() > 1
        if several.any():
            sheets.append((where, _only(duplicates, several.index[several].to_numpy())))
    environment = Environment(
        loader=PackageLoader("cxr_mlflow.data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("audit.html.j2").render(
        audit=audit,
        level=LEVEL,
        titles=TITLES,
        sees=SEES,
        sources=_source_rows(audit),
        max_rows=MAX_ROWS,
        means=_image(
            plot_class_means(catalog),
            "Mean image of each class, and the share of each pixel's variance the class explains",
        ),
        greys=_image(plot_histograms(audit), "Mean grey histogram of each class"),
        sheets=[_contact_sheet(catalog, found, where) for where, found in sheets],
    )


def _only(duplicates: Duplicates, wanted: NDArray[np.int64]) -> Duplicates:
    """Keep some groups; every other image is alone."""
    groups = duplicates.groups
    alone = len(groups) + np.arange(len(groups))
    kept = np.unique(np.where(np.isin(groups, wanted), groups, alone), return_inverse=True)[1]
    pairs = duplicates.pairs[np.isin(groups[duplicates.pairs["i"]], wanted)]
    return Duplicates(kept.astype(np.int64), pairs.reset_index(drop=True))


def _contact_sheet(catalog: Catalog, found: Duplicates, where: str) -> dict[str, Any]:
    figure = plot_contact_sheet(catalog.table, found, max_groups=MAX_GROUPS)
    title = f"Groups {where}" if where else "The least certain groups"
    return {"title": title, **_image(figure, f"{title}: images side by side")}


def _source_rows(audit: Audit) -> list[tuple[str, list[int], str]]:
    """Source, images of each class, and the class it is taken for; the largest first."""
    total: dict[str, int] = {}
    for counts in audit.sources.values():
        for source, count in counts.items():
            total[source] = total.get(source, 0) + count
    return [
        (source, [audit.sources[c].get(source, 0) for c in audit.classes], audit.floor.rule[source])
        for source in sorted(total, key=lambda name: (-total[name], name))
    ]


def plot_class_means(catalog: Catalog) -> Figure:
    """Draw the mean image of each class, and where in the image the class shows.

    The last map is the correlation ratio eta squared of each pixel of the 32 x 32 thumbnails: the
    share of its variance over all images that lies between the class means. A corner that a marker
    gives away is bright in it.

    References
    ----------
    Fisher, Statistical Methods for Research Workers, 1925 (analysis of variance).
    """
    labels = catalog.table["label"].to_numpy()
    means = [catalog.thumbnails[labels == k].mean(0) for k in range(len(catalog.classes))]
    between = sum(
        (labels == k).mean() * (mean - catalog.thumbnails.mean(0)) ** 2
        for k, mean in enumerate(means)
    )
    squares = np.zeros(catalog.thumbnails.shape[1:])
    for start in range(0, len(labels), _CHUNK):
        squares += (catalog.thumbnails[start : start + _CHUNK].astype(float) ** 2).sum(0)
    variance = squares / len(labels) - catalog.thumbnails.mean(0) ** 2
    shown = np.divide(between, variance, out=np.zeros_like(squares), where=variance > 1e-6)

    columns = min(5, len(means) + 1)
    rows = -(-(len(means) + 1) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, name, mean in zip(grid, catalog.classes, means, strict=False):
        axes.imshow(mean, cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=11)
    last = grid[len(means)]
    drawn = last.imshow(shown, cmap="viridis", vmin=0, vmax=max(0.1, float(shown.max())))
    last.set_title("told by the class", fontsize=11)
    figure.colorbar(
        drawn, ax=last, shrink=0.75, format=PercentFormatter(1, decimals=0)
    ).outline.set_visible(False)
    return figure


def plot_histograms(audit: Audit) -> Figure:
    """Draw the mean grey histogram of each class."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    greys = (np.arange(GREY_BINS) + 0.5) * 256 / GREY_BINS
    for k, (name, shares) in enumerate(audit.histograms.items()):
        color, dashes = _COLORS[k % len(_COLORS)], ("-", "--", "-.", ":")[k % 4]
        axes.plot(*(greys, np.array(shares) * 100, dashes), color=color, label=name, linewidth=1.8)
    axes.set_xlabel("grey value, 0 black to 255 white", fontsize=11)
    axes.set_ylabel("share of pixels, %", fontsize=11)
    axes.set_xlim(0, 255)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.legend(fontsize=10, frameon=False)
    return figure


def _image(figure: Figure, alt: str) -> dict[str, Any]:
    """What an <img> needs to show a figure without another file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=IMAGE_DPI)
    width, height = figure.get_size_inches() * IMAGE_DPI
    return {
        "src": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "alt": alt,
        "width": round(width),
        "height": round(height),
    }
