"""Figures that show whether a model may be taken at its word, and what abstaining costs.

Each function returns a matplotlib `Figure` of its own, without pyplot, as those of `plots` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm

from cxr_mlflow.evaluation.calibration import expected_calibration_error
from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    class_colors,
    label_ticks,
    new_figure,
    style_axes,
    text_color,
    wrap_name,
)
from cxr_mlflow.evaluation.intervals import Interval, group_members
from cxr_mlflow.evaluation.metrics import Floats, Labels, check_predictions, class_slugs
from cxr_mlflow.evaluation.ratios import Flags
from cxr_mlflow.evaluation.selective import Threshold, risk_coverage

SHOWN_BINS = 10
"""Of equal width, so that a diagram shows the whole range; the ECE has bins of its own."""
COLUMNS = 3


def plot_reliability(
    y_true: Labels,
    raw: Floats,
    calibrated: Floats,
    classes: Sequence[str],
    *,
    groups: Labels | None = None,
    title: str = "Reliability: what was said, and how often it was so",
    subtitle: str = "",
) -> Figure:
    """Draw observed frequency over predicted probability, before and after calibration.

    A panel for the confidence in the predicted class, then one for each class. A point is a bin of
    probabilities 0.1 wide, drawn at their mean; the bars are 95 % Wilson intervals of the
    calibrated ones, of as many trials as there are near-duplicate groups in the bin.

    Parameters
    ----------
    y_true : integer array of shape (N,)
        True class indices in [0, C).
    raw, calibrated : float arrays of shape (N, C)
        Probabilities of the same images, rows summing to 1.
    classes : sequence of C names
    groups : integer array of shape (N,), optional
        Near-duplicate groups.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If predictions or groups are bad; see `metrics.check_predictions`.
    """
    class_slugs(classes)
    y_true, raw = check_predictions(y_true, raw, len(classes))
    _, calibrated = check_predictions(y_true, calibrated, len(classes))
    members = group_members(groups, len(y_true))
    lines = -(-(len(classes) + 2) // COLUMNS)
    figure = new_figure(3.7 * COLUMNS, 4.2 * lines + 1.1, title, subtitle)
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    right = [p.argmax(axis=1) == y_true for p in (raw, calibrated)]
    shown = [("Predicted class", INK, right[0], raw.max(axis=1), right[1], calibrated.max(axis=1))]
    for c, (name, color) in enumerate(zip(classes, class_colors(len(classes)), strict=True)):
        shown.append((name, color, y_true == c, raw[:, c], y_true == c, calibrated[:, c]))
    for axes, (name, color, before, p_before, after, p_after) in zip(panels, shown, strict=False):
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
        _draw_bins(axes, before, p_before, members, color=FAINT, bars=False)
        _draw_bins(axes, after, p_after, members, color=color, bars=True)
        errors = [expected_calibration_error(*pair) for pair in ((before, p_before),
                                                                (after, p_after))]  # fmt: skip
        told = f"ECE raw {errors[0]:.3f}, calibrated {errors[1]:.3f}"  # above: no curve is there
        axes.text(0, 1.02, told, va="bottom", fontsize=SMALL, color=INK, transform=axes.transAxes)
        axes.set_title(wrap_name(name, 26), loc="left", fontsize=TEXT, color=INK, pad=19)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        style_axes(axes, "Predicted probability", "Observed frequency")
    for axes in panels[len(shown) :]:
        axes.set(xticks=(), yticks=())
        axes.set_axis_off()
    legend = panels[len(shown)]
    legend.plot([], [], color=INK, marker="o", label="calibrated, 95% interval")
    legend.plot([], [], color=FAINT, marker="s", mfc="white", linestyle="--", label="raw")
    legend.plot([], [], color=FAINT, linewidth=1, label="perfectly calibrated")
    legend.legend(loc="center", fontsize=TEXT, frameon=False, handlelength=3)
    return figure


def _draw_bins(
    axes: Axes,
    happened: Flags,
    probability: NDArray[np.float64],
    members: NDArray[np.int64],
    *,
    color: str,
    bars: bool,
) -> None:
    """Draw one line of a reliability diagram; bins without images have no point."""
    bins = np.minimum((probability * SHOWN_BINS).astype(int), SHOWN_BINS - 1)
    filled, place, count = np.unique(bins, return_inverse=True, return_counts=True)
    said = np.bincount(place, probability) / count
    seen = np.bincount(place, happened) / count
    if not bars:
        axes.plot(said, seen, color=color, marker="s", markersize=4, mfc="white", linestyle="--")
        return
    trials = np.array([len(np.unique(members[bins == b])) for b in filled])
    low, high = _wilson(seen, trials)
    axes.errorbar(
        said, seen, yerr=(seen - low, high - seen), color=color, marker="o", markersize=4.5,
        linewidth=1.8, elinewidth=1.2, capsize=2,
    )  # fmt: skip


def _wilson(
    share: NDArray[np.float64], trials: NDArray[np.int64], level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of Wilson's interval (1927) of shares; they hold the share itself."""
    z2 = norm.ppf((1 + level) / 2) ** 2
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    return np.minimum(middle - half, share), np.maximum(middle + half, share)


def plot_risk_coverage(
    y_true: Labels,
    probabilities: Floats,
    *,
    threshold: Threshold | None = None,
    scores: Mapping[str, Interval] | None = None,
    title: str = "Risk and coverage, if the least sure images are left out",
    subtitle: str = "",
) -> Figure:
    """Draw the share of errors among the answers over the share of images answered.

    Parameters
    ----------
    y_true : integer array of shape (N,)
    probabilities : float array of shape (N, C)
        Calibrated, of the images that the threshold is checked on.
    threshold : Threshold, optional
        Its stated risk is drawn as a line.
    scores : mapping of str to Interval, optional
        As `selective.selective_scores` returns it; drawn as a point with intervals.
    title, subtitle : str
        Headline, and what the figure was computed on.
    """
    y_true, probabilities = check_predictions(y_true, probabilities, np.shape(probabilities)[-1])
    correct = probabilities.argmax(axis=1) == y_true
    coverage, risk, area = risk_coverage(probabilities.max(axis=1), correct)
    figure = new_figure(8.6, 6.4, title, subtitle)
    axes = figure.add_subplot()
    blue, orange = class_colors(2)
    axes.step(coverage, risk, where="post", color=blue, linewidth=2.2,
              label=f"this model: AURC {area:.4f}")  # fmt: skip
    ideal = np.linspace(0, 1, 201)[1:]
    axes.plot(ideal, np.maximum(1 - correct.mean() / ideal, 0), color=FAINT, linewidth=1.2,
              linestyle=":", label="all errors left out first")  # fmt: skip
    if threshold:
        told = f"stated risk {threshold.risk:g}"
        told += "" if threshold.attainable else ": out of reach, it always abstains"
        axes.axhline(threshold.risk, color=INK, linewidth=1.2, linestyle="--", label=told)
    if scores and threshold and threshold.attainable:
        x, y = scores["selective_coverage"], scores["selective_risk"]
        ends: dict[str, Any] = {
            f"{axis}err": [[max(i.value - i.low, 0)], [max(i.high - i.value, 0)]]
            for axis, i in (("x", x), ("y", y))
        }
        if np.isfinite(y.value):
            label = f"confidence from {threshold.threshold:.3f} on: {x.value:.0%} answered"
            axes.errorbar([x.value], [y.value], **ends, color=orange, marker="o", markersize=7,
                          capsize=3, linewidth=0, elinewidth=1.8, label=label)  # fmt: skip
    top = max(1.25 * risk[-1], 1.6 * threshold.risk if threshold else 0, 0.02)
    axes.set(xlim=(0, 1.01), ylim=(0, min(top, 1.02)))
    style_axes(
        axes, "Coverage: share of images answered", "Risk: share of errors among the answers"
    )
    axes.legend(loc="upper left", fontsize=TEXT - 1, framealpha=0.95, handlelength=3)
    return figure


def plot_sets(
    y_true: Labels,
    sets: Flags,
    scores: Mapping[str, Interval],
    classes: Sequence[str],
    *,
    coverage: float,
    title: str = "Prediction sets: how often they hold the truth, and how large they are",
    subtitle: str = "",
) -> Figure:
    """Draw the coverage of prediction sets, and the shares of their sizes, for each true class.

    Parameters
    ----------
    y_true : integer array of shape (N,)
    sets : bool array of shape (N, C)
    scores : mapping of str to Interval
        As `conformal.set_scores` returns it for these sets.
    classes : sequence of C names
    coverage : float
        Stated.
    title, subtitle : str
        Headline, and what the figure was computed on.
    """
    y_true, size = np.asarray(y_true), np.asarray(sets).sum(axis=1)
    tails = ["", *(f"/{key}" for key in class_slugs(classes))]
    kept = [np.ones(len(y_true), bool), *(y_true == c for c in range(len(classes)))]
    figure = new_figure(11.5, 2.6 + 0.75 * len(tails), title, subtitle)
    left, right = figure.subplots(1, 2, sharey=True)
    left.axvline(coverage, color=INK, linewidth=1.2, linestyle="--")
    for place, (tail, color) in enumerate(
        zip(tails, [INK, *class_colors(len(classes))], strict=True)
    ):
        found = scores[f"set_coverage{tail}"]
        if not np.isfinite(found.value):
            continue
        ends = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
        left.errorbar([found.value], [place], xerr=ends, color=color, marker="o", capsize=3,
                      linewidth=1.8)  # fmt: skip
    style_axes(left, f"Share of sets with the true class (dashed: stated {coverage:g})", grid="x")
    shades = matplotlib.colormaps["Blues"](np.linspace(0.15, 0.9, len(classes) + 1))
    begun = np.zeros(len(tails))
    for count, shade in enumerate(map(matplotlib.colors.to_hex, shades)):
        share = np.array([(size[rows] == count).mean() if rows.any() else 0.0 for rows in kept])
        if not share.any():
            continue
        label = "empty" if count == 0 else f"{count} class{'es' * (count > 1)}"
        right.barh(range(len(tails)), share, left=begun, color=shade, height=0.6, label=label)
        for place in np.flatnonzero(share >= 0.12).tolist():
            right.text(begun[place] + share[place] / 2, place, f"{share[place]:.0%}", ha="center",
                       va="center", fontsize=SMALL, color=text_color(shade))  # fmt: skip
        begun += share
    style_axes(right, "Share of sets by size", grid="none")
    right.set_xlim(0, 1.001)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right",
                  ncols=len(classes) + 1, fontsize=TEXT - 1, frameon=False)  # fmt: skip
    named = [f"{wrap_name(name, 18)}\nn = {rows.sum():,}"
             for name, rows in zip(["All", *classes], kept, strict=True)]  # fmt: skip
    label_ticks(left, named, axis="y")
    left.invert_yaxis()
    right.tick_params(axis="y", labelleft=False, length=0)
    return figure
