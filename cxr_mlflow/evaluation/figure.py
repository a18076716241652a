"""The look that all figures share: size, fonts, class colours; no pyplot, so no global state."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation

DPI = 150
TITLE, TEXT, SMALL = 15, 12, 10  # font sizes in points; small is the least that is read on a page
INK, FAINT = "#222222", "#6b6b6b"
GRID = "#dddddd"

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow that is lost
# on white. The line style differs as well, so that a grey print can be read.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES: tuple[tuple[int, tuple[float, ...]], ...] = (
    (0, ()),
    (0, (6, 1.5)),
    (0, (3, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
)


def new_figure(width: float, height: float, title: str, subtitle: str = "") -> Figure:
    """Empty figure with a headline at its top left, and under it what it was computed on.

    Parameters
    ----------
    width, height : float
        In inches.
    title, subtitle : str
        The headline and the smaller grey line below it.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    columns = int(width * 8)  # characters of the headline that fit
    lines = textwrap.wrap(title, columns) or [""]
    notes = textwrap.wrap(subtitle, int(columns * 1.3))
    headline = figure.suptitle(
        "\n".join(lines + [" "] * len(notes)),
        x=0.02, ha="left", fontsize=TITLE, fontweight="bold", color=INK, linespacing=1.25,
    )  # fmt: skip
    note = Annotation(
        "\n".join(notes), xy=(0, 0), xycoords=headline, va="bottom",
        fontsize=TEXT, color=FAINT, linespacing=1.4,
    )  # fmt: skip
    note.set_in_layout(False)  # its room is held by the blank lines of the headline
    figure.add_artist(note)
    return figure


def class_colors(num_classes: int) -> list[str]:
    """Colour of each class by its index: the same in every figure of a run."""
    return [_COLORS[c % len(_COLORS)] for c in range(num_classes)]


def class_dashes(num_classes: int) -> list[tuple[int, tuple[float, ...]]]:
    """Line style of each class by its index."""
    return [_DASHES[(c + c // len(_COLORS)) % len(_DASHES)] for c in range(num_classes)]


def text_color(background: str) -> str:
    """Ink or white, whichever is read better on a colour."""
    red, green, blue = to_rgb(background)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.52 else "white"


def style_axes(
    axes: Axes,
    xlabel: str = "",
    ylabel: str = "",
    *,
    grid: Literal["none", "both", "x", "y"] = "both",
) -> None:
    """Give axes readable labels, a faint grid behind the data, and no box."""
    axes.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    axes.tick_params(labelsize=TEXT - 1, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if grid != "none":
        axes.grid(axis=grid, color=GRID, linewidth=0.8)


def wrap_name(name: str, width: int = 14) -> str:
    """Break a long name into lines at spaces, underscores and slashes; never lose a letter."""
    lines = [""]
    for part in re.split(r"(?<=[\s_/])", name):
        if lines[-1] and len(lines[-1] + part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a long text: both ends of a file name tell something."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def label_ticks(axes: Axes, names: Sequence[str], *, axis: str) -> None:
    """Put class names at ticks 0..C-1, broken into lines, slanted where they would collide.

    A name that is broken already is taken as it is.
    """
    wrapped = [name if "\n" in name else wrap_name(name) for name in names]
    longest = max(len(line) for name in wrapped for line in name.split("\n"))
    if axis == "y":
        axes.set_yticks(range(len(names)), wrapped)
    elif len(names) <= 6 and longest <= 14:
        axes.set_xticks(range(len(names)), wrapped)
    else:
        axes.set_xticks(range(len(names)), wrapped, rotation=40, ha="right", rotation_mode="anchor")
