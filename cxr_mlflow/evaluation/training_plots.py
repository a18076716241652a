"""Figures of how a model came about: its curves over the epochs, and the images it saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    class_colors,
    new_figure,
    style_axes,
    text_color,
    wrap_name,
)

_TRAIN, _VAL, _OTHER = "#0072b2", "#d55e00", "#009e73"
# panel title -> (key, label, colour, dashes)
_PANELS: dict[str, list[tuple[str, str, str, str]]] = {
    "Loss": [
        ("train/loss", "train (as optimised)", _TRAIN, "-"),
        ("val/loss", "validation", _VAL, "--"),
    ],
    "Validation scores": [
        ("val/f1_macro", "macro F1", _VAL, "-"),
        ("val/balanced_accuracy", "balanced accuracy", "#cc79a7", "-."),
        ("val/accuracy", "accuracy", _OTHER, "--"),
    ],
    "Learning rate": [("train/lr", "", INK, "-")],
}


def plot_history(
    history: pd.DataFrame,
    *,
    best_epoch: int | None = None,
    title: str = "Training curves",
    subtitle: str = "",
) -> Figure:
    """Draw losses, validation scores and learning rate over the epochs, the best one marked.

    Parameters
    ----------
    history : DataFrame
        Column "epoch" and any of "train/loss", "val/loss", "val/f1_macro",
        "val/balanced_accuracy", "val/accuracy", "train/lr"; a panel without data is left out.
    best_epoch : int, optional
        The epoch whose weights were kept.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If there is no "epoch" column, no row, or nothing to draw.
    """
    if "epoch" not in history or history.empty:
        raise ValueError("history needs a column 'epoch' and a row per epoch")
    panels = {
        name: kept
        for name, lines in _PANELS.items()
        if (kept := [line for line in lines if line[0] in history])
    }
    if not panels:
        raise ValueError(f"nothing to draw among the columns {list(history.columns)}")
    heights = [1.0 if name == "Learning rate" else 1.8 for name in panels]
    figure = new_figure(8.4, 1.4 + 1.75 * sum(heights), title, subtitle)
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, lines) in zip(rows, panels.items(), strict=True):
        _draw_panel(axes, history, lines, best_epoch)
        axes.set_title(name, loc="left", fontsize=TEXT, color=INK)
        style_axes(axes)
    style_axes(rows[-1], "Epoch")
    rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if best_epoch is not None:
        rows[0].annotate(
            f"best epoch {best_epoch}", (best_epoch, 1), xycoords=("data", "axes fraction"),
            xytext=(0, 4), textcoords="offset points", ha="center", fontsize=SMALL, color=FAINT,
        )  # fmt: skip
    return figure


def _draw_panel(
    axes: Axes,
    history: pd.DataFrame,
    lines: Sequence[tuple[str, str, str, str]],
    best_epoch: int | None,
) -> None:
    for key, label, color, dashes in lines:
        axes.plot(
            history["epoch"], history[key], label=label, color=color, linestyle=dashes,
            linewidth=2, marker="o", markersize=4,
        )  # fmt: skip
    if best_epoch is not None:
        axes.axvline(best_epoch, color=FAINT, linewidth=1.2, linestyle=(0, (2, 2)), zorder=0.5)
    if lines[0][1]:
        axes.legend(fontsize=TEXT - 1, framealpha=0.95, handlelength=3)


def plot_class_distribution(
    counts: pd.DataFrame, *, title: str = "Images per class and split", subtitle: str = ""
) -> Figure:
    """Draw how many images of each class every split has, with their share of the split.

    Parameters
    ----------
    counts : DataFrame
        Images; index the splits, columns the classes in index order.
    title, subtitle : str
        Headline, and what the figure was computed on.
    """
    classes = [str(name) for name in counts.columns]
    width = 0.86 / len(classes)
    figure = new_figure(max(8.4, 0.8 * counts.size + 1.5), 5.6, title, subtitle)
    axes = figure.add_subplot()
    positions = np.arange(len(counts))
    totals = counts.sum(axis=1)
    for c, (name, color) in enumerate(zip(classes, class_colors(len(classes)), strict=True)):
        column = counts.iloc[:, c]
        bars = axes.bar(
            positions + (c - (len(classes) - 1) / 2) * width, column, width * 0.92,
            color=color, label=name,
        )  # fmt: skip
        shares = [f"{n:,}\n{n / max(t, 1):.0%}" for n, t in zip(column, totals, strict=True)]
        axes.bar_label(bars, shares, fontsize=SMALL, color=INK, padding=2)
    labels = [f"{name} (n = {n:,})" for name, n in zip(counts.index, totals, strict=True)]
    axes.set_xticks(positions, labels)
    axes.margins(y=0.14)
    style_axes(axes, ylabel="Images", grid="y")
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend_below(figure, axes)
    return figure


def plot_draws(
    draws: pd.DataFrame,
    classes: Sequence[str],
    *,
    available: Mapping[str, int] | None = None,
    title: str = "Images drawn per epoch and class",
    subtitle: str = "",
) -> Figure:
    """Draw how often each class was shown to the network in every epoch.

    Parameters
    ----------
    draws : DataFrame
        Column "epoch" and one column of counts per class name.
    classes : sequence of C names
        In index order.
    available : mapping, optional
        Training images per class name, shown as a first bar to compare with.
    title, subtitle : str
        Headline, and what the figure was computed on.

    Raises
    ------
    ValueError
        If a column is missing or there is no epoch.
    """
    if missing := [name for name in ("epoch", *classes) if name not in draws]:
        raise ValueError(f"draws lacks the columns {missing}")
    if draws.empty:
        raise ValueError("draws has no epoch")
    bars = {str(row["epoch"]): [row[name] for name in classes] for _, row in draws.iterrows()}
    if available is not None:
        bars = {"in the\ndata": [available[name] for name in classes], **bars}
    figure = new_figure(max(8.4, 0.75 * len(bars) + 2), 5.8, title, subtitle)
    axes = figure.add_subplot()
    positions = np.arange(len(bars), dtype=float)
    if available is not None:
        positions[1:] += 0.4  # a gap: the first bar is not an epoch
    heights = np.array(list(bars.values()))  # (bars, C)
    base = np.zeros(len(bars))
    for c, (name, color) in enumerate(zip(classes, class_colors(len(classes)), strict=True)):
        drawn = axes.bar(positions, heights[:, c], 0.84, bottom=base, color=color, label=name,
                         edgecolor="white", linewidth=0.8)  # fmt: skip
        if len(bars) <= 25:
            texts = [f"{n:,}" if n > 0.035 * heights.sum(axis=1).max() else ""
                     for n in heights[:, c]]  # fmt: skip
            axes.bar_label(
                drawn, texts, label_type="center", fontsize=SMALL, color=text_color(color)
            )
        base += heights[:, c]
    step = max(1, len(bars) // 20)
    axes.set_xticks(positions[::step], list(bars)[::step])
    style_axes(axes, "Epoch", "Images drawn", grid="y")
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend_below(figure, axes)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [wrap_name(label, 28) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = int(figure.get_figwidth() * 10 / (longest + 7))  # about 10 letters to the inch
    figure.legend(
        handles, labels, loc="outside lower center", ncols=max(1, min(columns, len(labels), 4)),
        fontsize=TEXT - 1, frameon=False,
    )  # fmt: skip
