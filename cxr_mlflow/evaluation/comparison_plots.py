"""Figures of a comparison: rows with their intervals, F1 of each class, differences of pairs.

A dashed interval says that a row has one seed, so that the chance of training is not in it.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cxr_mlflow.evaluation import comparison_words as words
from cxr_mlflow.evaluation.comparison import Comparison, Pair
from cxr_mlflow.evaluation.comparison_verdicts import ONE_SEED
from cxr_mlflow.evaluation.figure import (
    FAINT,
    INK,
    SMALL,
    TEXT,
    class_colors,
    new_figure,
    style_axes,
    wrap_name,
)
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.metrics import class_slugs

_BLUE, _GREY = "#0072b2", "#858585"
_DASHES = (0, (3, 1.5))
_WIDTH = 10.4  # inches
_NAME_WIDTH = 28  # characters of a row's name in one line
_LINE, _GAP = 0.22, 0.24  # inches: a line of text, and what is left free below it


def plot_rows(c: Comparison, *, subtitle: str) -> Figure:
    """Draw the macro F1 of every row: its mean with its interval, and a small dot for each run.

    Parameters
    ----------
    c : Comparison
        Its rows are drawn from the top.
    subtitle : str
        What the figure was computed on.
    """
    names = _row_names(c)
    colors, handles = _row_colors(c)
    if any(len(row.runs) > 1 for row in c.rows):
        handles.append(_handle("a single run", FAINT, markersize=4, mfc="none", linewidth=0))
    figure = _figure(c, (_WIDTH, _height(names)), "Macro F1 of each row", subtitle, handles)
    axes = figure.add_subplot()
    for place, row in enumerate(c.rows):
        mean, runs = row.scores["f1_macro"], row.per_run["f1_macro"]
        _draw_interval(axes, mean, place, color=colors[row.row], dashed=row.num_seeds == 1)
        if len(runs) > 1:
            axes.scatter(
                runs, np.full(len(runs), place + 0.27), s=16,
                facecolor="none", edgecolor=colors[row.row], linewidth=1,
            )  # fmt: skip
        _write_beside(axes, place, f"{words.score(mean.value)}  ({words.span(mean)})")
    style_axes(axes, f"Macro F1 on the test images, with {c.level:.0%} intervals", grid="x")
    _name_places(axes, names)
    return figure


def plot_classes(c: Comparison, *, subtitle: str) -> Figure:
    """Draw the F1 of every class: a panel for each, with a line for each row.

    Parameters are those of `plot_rows`. A panel has a scale of its own: the point is how the rows
    differ, and rare classes have intervals that are several times wider.
    """
    names = _row_names(c)
    columns = min(len(c.classes), 4)
    lines = math.ceil(len(c.classes) / columns)
    height = lines * (_height(names) + 0.3) + 0.25 * (lines - 1)
    told = f"F1 on the test images, with its {c.level:.0%} interval; each class on its own scale"
    handles = [_handle(told, INK)]
    size = (2.8 + 2 * columns, height)
    figure = _figure(c, size, "F1 of each class", subtitle, handles)
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    looks = zip(c.classes, class_slugs(c.classes), class_colors(len(c.classes)), strict=True)
    for axes, (name, key, color) in zip(panels, looks, strict=False):
        for place, row in enumerate(c.rows):
            score = row.scores[f"f1/{key}"]
            _draw_interval(axes, score, place, color=color, dashed=row.num_seeds == 1)
        axes.set_title(_in_lines(name, 18), loc="left", fontsize=TEXT, color=INK)
        style_axes(axes, grid="x")
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        _name_places(axes, names)
    for axes in panels[len(c.classes) :]:
        axes.remove()
    return figure


def plot_pairs(c: Comparison, *, subtitle: str) -> Figure:
    """Draw the difference in macro F1 of every pair with its interval, and a line at zero.

    Parameters are those of `plot_rows`.

    Raises
    ------
    ValueError
        If there is no pair: a row alone has nothing to be compared with.
    """
    if not c.pairs:
        raise ValueError("one row alone has no pairs to draw")
    lines = _pair_lines(c)
    names = [name for name, _ in lines]
    holm = f" after Holm's correction for {len(c.pairs)} pairs" if len(c.pairs) > 1 else ""
    handles = [
        _handle(f"distinguishable{holm}", **_DIFFERS),
        _handle(f"not distinguishable{holm}", **_DOES_NOT),
    ]
    figure = _figure(c, (_WIDTH, _height(names)), "Differences in macro F1", subtitle, handles)
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
    once = {row.row for row in c.rows if row.num_seeds == 1}
    for place, (_, pair) in enumerate(lines):
        if pair is None:
            continue
        style = _DIFFERS if pair.distinguishable else _DOES_NOT
        dashed = bool(once & {pair.a, pair.b})
        _draw_interval(axes, pair.difference, place, dashed=dashed, **style)
        span = words.difference_span(pair.difference)
        told = f"{words.difference(pair.difference.value)}  ({span})"
        _write_beside(axes, place, told, INK if pair.distinguishable else FAINT)
    told = f"Macro F1 of one row minus that of the other, with {c.level:.0%} intervals"
    style_axes(axes, told, grid="x")
    _name_places(axes, names)
    for label, (_, pair) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if pair is None else "normal")
    return figure


_DIFFERS: dict[str, Any] = {"color": _BLUE}
_DOES_NOT: dict[str, Any] = {"color": _GREY, "mfc": "white"}


def _pair_lines(c: Comparison) -> list[tuple[str, Pair | None]]:
    """Lines of the figure of pairs: what is the same in several pairs is a headline over them."""
    marks = words.row_marks(c)
    lines: list[tuple[str, Pair | None]] = []
    for pair in c.pairs:
        a, b = pair.a + marks[pair.a], pair.b + marks[pair.b]
        told = (f"… minus {b}", a) if c.baseline else (a, f"minus {b}")
        head, name = (_in_lines(text, _NAME_WIDTH + 6) for text in told)
        if (head, None) not in lines:
            lines.append((head, None))
        lines.append((name, pair))
    return lines


def _row_names(c: Comparison) -> list[str]:
    return [_in_lines(row + marks, _NAME_WIDTH) for row, marks in words.row_marks(c).items()]


def _row_colors(c: Comparison) -> tuple[dict[str, str], list[Line2D]]:
    """Colour of each row, which says how it stands to the leader or the baseline; the legend."""
    reference = c.baseline or c.rows[0].row
    colors = {reference: INK if c.baseline else _BLUE}
    for pair in c.pairs:
        if reference in (pair.a, pair.b):
            other = pair.b if pair.a == reference else pair.a
            colors[other] = _BLUE if pair.distinguishable == bool(c.baseline) else _GREY
    if c.baseline:
        meaning = {
            INK: f"the baseline, {c.baseline}",
            _BLUE: "differs from the baseline",
            _GREY: "is not distinguishable from the baseline",
        }
    else:
        meaning = {
            _BLUE: "leads, or is not distinguishable from the row that leads",
            _GREY: "differs from the row that leads",
        }
    if len(c.rows) == 1:
        meaning = {_BLUE: "mean over runs"} if len(c.rows[0].runs) > 1 else {}
    told = [_handle(text, color) for color, text in meaning.items() if color in colors.values()]
    return colors, told


def _figure(
    c: Comparison,
    size: tuple[float, float],
    title: str,
    subtitle: str,
    handles: Sequence[Line2D],
) -> Figure:
    """Empty figure with `size` inches for its panels; below them, what the marks mean.

    The remarks that all rows share are added to the subtitle, where it does not tell them.
    """
    width, height = size
    unsaid = [text for text in c.remarks if text.lower() not in subtitle.lower()]
    subtitle = ", ".join([subtitle, *unsaid])
    handles = [*handles, *_note_handles(c)]
    above = 0.65 + 0.24 * len(textwrap.wrap(subtitle, int(width * 10)))
    below = 0.75 + 0.21 * sum(str(handle.get_label()).count("\n") + 1 for handle in handles)
    figure = new_figure(width, above + height + below, title, subtitle)
    figure.legend(
        handles=handles, loc="outside lower left", fontsize=SMALL, frameon=False,
        labelcolor=INK, handlelength=2.6,
    )  # fmt: skip
    return figure


def _note_handles(c: Comparison) -> list[Line2D]:
    """Footnotes of the rows, in short, as lines of the legend."""
    told = {
        remark: f"{mark} {words.in_short(remark)}" for remark, mark in words.footnotes(c).items()
    }
    if ONE_SEED in words.shared_remarks(c):
        told[ONE_SEED] = ONE_SEED
    return [
        _handle(
            "\n".join(textwrap.wrap(note, 120)), FAINT,
            marker="", linestyle=_DASHES if remark == ONE_SEED else "",
        )
        for remark, note in told.items()
    ]  # fmt: skip


def _height(names: Sequence[str]) -> float:
    """Inches that lines with these names take; many lines stand closer."""
    gap = _GAP if len(names) <= 20 else _GAP / 2
    return 0.3 + len(names) * (_LINE * max(name.count("\n") + 1 for name in names) + gap)


def _in_lines(name: str, width: int) -> str:
    """Name in lines of at most `width` characters; a longer word is broken."""
    lines = wrap_name(name, width).split("\n")
    return _plain("\n".join(part for line in lines for part in textwrap.wrap(line, width)))


def _plain(text: str) -> str:
    """Keep dollars in a name from opening a formula."""
    return text.replace("$", r"\$")


def _draw_interval(
    axes: Axes,
    interval: Interval,
    place: int,
    *,
    color: str,
    mfc: str | None = None,
    dashed: bool,
) -> None:
    """Draw a dot at the value and a line from end to end."""
    ends = [interval.low, interval.high]
    line = _DASHES if dashed else "-"
    axes.plot(ends, [place, place], color=color, linewidth=2.4, linestyle=line, zorder=2)
    axes.plot(
        interval.value, place, color=color, marker="o", markersize=7,
        markerfacecolor=mfc or color, markeredgewidth=1.8, zorder=3,
    )  # fmt: skip


def _write_beside(axes: Axes, place: int, text: str, color: str = INK) -> None:
    axes.annotate(
        text, (1, place), (10, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center", fontsize=TEXT - 1, color=color,
    )  # fmt: skip


def _name_places(axes: Axes, names: Sequence[str]) -> None:
    """Name the lines at the left, the first at the top."""
    axes.set_yticks(range(len(names)), names, multialignment="right")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _handle(label: str, color: str, **style: Any) -> Line2D:
    look: dict[str, Any] = {"marker": "o", "markersize": 7, "linewidth": 2.4} | style
    return Line2D([], [], label=_plain(label), color=color, **look)
