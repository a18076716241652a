"""Figures of test results: confusion matrices, ROC and precision-recall curves.

All figures of the room can be had from here; the others live in `training_plots` and `sheets`.
Each function returns a matplotlib `Figure` of its own, without pyplot, and may be called from any
thread. A `subtitle` should tell what the figure was computed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    class_colors,
    class_dashes,
    label_ticks,
    new_figure,
    style_axes,
    wrap_name,
)
from cxr_mlflow.evaluation.metrics import Floats, Labels, check_predictions, class_slugs
from cxr_mlflow.evaluation.sheets import plot_samples, plot_worst_errors
from cxr_mlflow.evaluation.training_plots import plot_class_distribution, plot_draws, plot_history

__all__ = [
    "plot_class_distribution",
    "plot_confusion",
    "plot_draws",
    "plot_history",
    "plot_precision_recall",
    "plot_roc",
    "plot_samples",
    "plot_worst_errors",
]


def plot_confusion(
    matrix: NDArray[np.integer],
    classes: Sequence[str],
    *,
    normalize: bool,
    title: str | None = None,
    subtitle: str = "",
) -> Figure:
    """Draw the confusion matrix as counts, or as shares of each true class with the counts below.

    Parameters
    ----------
    matrix : integer array of shape (C, C)
        Counts, row true class, column predicted class.
    classes : sequence of C names
        In index order.
    normalize : bool
        Divide each row by its sum; a class without images gets an empty row.
    title : str, optional
        Headline; one that says which of the two it is by default.
    subtitle : str
        What the figure was computed on.

    Raises
    ------
    ValueError
        If the matrix does not fit the classes or holds a negative number.
    """
    matrix = np.asarray(matrix)
    if matrix.shape != (wanted := (len(classes), len(classes))) or matrix.min() < 0:
        raise ValueError(f"need counts of shape {wanted}, got shape {matrix.shape}")
    totals = matrix.sum(axis=1)
    rates = np.divide(
        matrix, totals[:, None], out=np.full(wanted, np.nan), where=totals[:, None] > 0
    )
    title = (
        title
        or f"Confusion matrix, {'shares of each true class' if normalize else 'number of images'}"
    )
    side = 4.2 + 1.05 * len(classes)
    figure = new_figure(side + 0.6, side, title, subtitle)
    axes = figure.add_subplot()
    colormap = matplotlib.colormaps["Blues"].with_extremes(bad="#eeeeee")
    # counts are shaded by their square root: errors are few beside the hits, and are the point
    shade = rates if normalize else np.sqrt(matrix / max(matrix.max(), 1))
    axes.imshow(shade, cmap=colormap, vmin=0, vmax=1)
    for (row, column), rate in np.ndenumerate(rates):
        style: dict[str, Any] = {"ha": "center", "va": "center", "textcoords": "offset points"}
        style["color"] = "white" if shade[row, column] > 0.55 else INK
        count = f"{matrix[row, column]:,}"
        large, small = (count, "") if not normalize else (f"{rate:.1%}", f"n = {count}")
        if normalize and np.isnan(rate):
            large, small = "", "no image"
        shift = 8 if large and small else 0  # points from the middle of the cell
        axes.annotate(large, (column, row), (0, shift), fontsize=TEXT + 2, **style)
        axes.annotate(small, (column, row), (0, -1.4 * shift), fontsize=SMALL, **style)
    style_axes(axes, "Predicted class", "True class", grid="none")
    label_ticks(axes, classes, axis="x")
    rows = [f"{wrap_name(name)}\nn = {n:,}" for name, n in zip(classes, totals, strict=True)]
    label_ticks(axes, rows, axis="y")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="both", length=0)
    return figure


def plot_roc(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    title: str = "ROC curves, each class against the rest",
    subtitle: str = "",
) -> Figure:
    """Draw the one-vs-rest ROC curve of every class, with its area in the legend.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    probabilities : float array of shape (N, C)
        One row per image, summing to 1.
    classes : sequence of C names
        In index order.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If the predictions are bad; see `metrics.check_predictions`.
    """
    axes = _square(figure := new_figure(7.6, 8.2, title, subtitle))
    curves = []
    for positive, scores, name, style in _one_vs_rest(y_true, probabilities, classes):
        if positive.all() or not positive.any():
            axes.plot([], [], label=f"{name}: not measured", **style)
            continue
        false_rate, true_rate, _ = roc_curve(positive, scores)
        area = roc_auc_score(positive, scores)
        label = f"{name}: area {area:.3f} (n = {positive.sum():,})"
        axes.plot(false_rate, true_rate, label=label, **style)
        curves.append((area, false_rate, true_rate, style))
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, label="chance: area 0.500")
    if (
        curves and len(curves) <= 6 and min(area for area, *_ in curves) > 0.94
    ):  # then no curve can cross the inset
        _enlarge_corner(axes, curves)
    style_axes(axes, "False positive rate (1 − specificity)", "True positive rate (recall)")
    axes.legend(loc="lower right", fontsize=TEXT - 1, framealpha=0.95, handlelength=3)
    return figure


def _enlarge_corner(axes: Axes, curves: Sequence[tuple[Any, ...]]) -> None:
    """Show the top left corner of a ROC figure enlarged in its middle, which is empty."""
    inset = axes.inset_axes((0.45, 0.33, 0.45, 0.45), xlim=(0, 0.15), ylim=(0.85, 1.003))
    for _, false_rate, true_rate, style in curves:
        inset.plot(false_rate, true_rate, **style)
    style_axes(inset)
    inset.set_title("top left corner, enlarged", fontsize=SMALL, color=FAINT)
    inset.tick_params(labelsize=SMALL)
    inset.set(xticks=(0, 0.05, 0.1, 0.15), yticks=(0.85, 0.9, 0.95, 1))
    inset.spines[:].set(visible=True, color=FAINT)


def plot_precision_recall(
    y_true: Labels,
    probabilities: Floats,
    classes: Sequence[str],
    title: str = "Precision and recall, each class against the rest",
    subtitle: str = "",
) -> Figure:
    """Draw the one-vs-rest precision-recall curve of every class, with its average precision.

    A dotted line of the class's colour is its share of the images: the precision of guessing.
    Parameters and errors are those of `plot_roc`.
    """
    axes = _square(figure := new_figure(7.6, 8.2, title, subtitle))
    for positive, scores, name, style in _one_vs_rest(y_true, probabilities, classes):
        if positive.all() or not positive.any():
            axes.plot([], [], label=f"{name}: not measured", **style)
            continue
        precision, recall, _ = precision_recall_curve(positive, scores)
        label = f"{name}: AP {average_precision_score(positive, scores):.3f}"
        label += f" (n = {positive.sum():,})"
        axes.plot(recall, precision, drawstyle="steps-post", label=label, **style)
        axes.axhline(positive.mean(), color=style["color"], linewidth=1.2, linestyle=":")
    axes.plot([], [], color=FAINT, linewidth=1.2, linestyle=":", label="guessing: share of images")
    style_axes(axes, "Recall", "Precision")
    axes.legend(loc="lower left", fontsize=TEXT - 1, framealpha=0.95, handlelength=3)
    return figure


def _square(figure: Figure) -> Axes:
    axes = figure.add_subplot()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    return axes


def _one_vs_rest(y_true: Labels, probabilities: Floats, classes: Sequence[str]) -> list[Any]:
    """Per class: bool (N,), float64 (N,), its name, and how its line is drawn."""
    class_slugs(classes)
    y_true, probabilities = check_predictions(y_true, probabilities, len(classes))
    looks = zip(class_colors(len(classes)), class_dashes(len(classes)), strict=True)
    return [
        (y_true == c, probabilities[:, c], name, {"color": color, "linestyle": dash, "lw": 2.2})
        for c, (name, (color, dash)) in enumerate(zip(classes, looks, strict=True))
    ]
