"""A comparison as Markdown, as one HTML file, and in a terminal; what is said is the same."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cxr_mlflow.evaluation.comparison import Comparison
from cxr_mlflow.evaluation.comparison_verdicts import ONE_SEED
from cxr_mlflow.evaluation.comparison_words import (
    MANY,
    Missing,
    Sheet,
    write_sections,
    write_warnings,
)
from cxr_mlflow.evaluation.note import escape_markdown

__all__ = ["Missing", "print_comparison", "to_html", "to_markdown", "to_note"]

IMAGE_DPI = 110
"""Of the figures in the HTML file: sharp on a page, some 50 kB each."""


def to_markdown(
    c: Comparison, *, title: str, about: Mapping[str, str], missing: Sequence[Missing] = ()
) -> str:
    """Write a comparison as Markdown: warnings, headline, tables, verdicts, how to read them.

    Parameters
    ----------
    c : Comparison
        What was found.
    title : str
        Headline of the page.
    about : mapping of str to str
        What it was found on, shown first: data, test images, settings, commit, date.
    missing : sequence of Missing
        Cells without a score. They are listed, and counted beside the seeds of their row.

    Returns
    -------
    str
        Names of rows and classes cannot act as Markdown or HTML in it.
    """
    parts = [
        f"# {escape_markdown(title)}",
        "\n>\n".join(f"> **! {escape_markdown(warning)}**" for warning in write_warnings(c)),
        _markdown_facts(about),
        f"**{escape_markdown(c.headline())}**",
        *_markdown_sections(c, missing),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_note(c: Comparison, *, about: Mapping[str, str], missing: Sequence[Missing] = ()) -> str:
    """Write a comparison as the note of a run, which a page folds after a few lines.

    It is `to_markdown` without the title, which the page has already; what must stand beside a
    score and the headline, which tells of single seeds itself, are one paragraph, the first.

    Parameters
    ----------
    c, about, missing
        As in `to_markdown`.
    """
    told = [remark for remark in write_warnings(c) if not remark.startswith(ONE_SEED)]
    remarks = escape_markdown("; ".join(told).removesuffix("."))
    gaps = f" {len(missing)} cells without a score." if missing else ""
    first = f"**! {remarks}.** **{escape_markdown(c.headline())}**{gaps}"
    parts = [first, *_markdown_sections(c, missing), _markdown_facts(about)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_facts(about: Mapping[str, str]) -> str:
    return _markdown_table(Sheet(("what", "value"), list(about.items()), words=2)) if about else ""


def _markdown_sections(c: Comparison, missing: Sequence[Missing]) -> list[str]:
    parts = []
    for section in write_sections(c, missing):
        if section.sheet or section.sentences:
            parts.append(f"## {escape_markdown(section.title)}")
        if section.sheet:
            parts.append(_markdown_table(section.sheet))
        parts.append("\n".join(f"- {escape_markdown(sentence)}" for sentence in section.sentences))
    return parts


def to_html(
    c: Comparison,
    *,
    title: str,
    about: Mapping[str, str],
    figures: Mapping[str, Figure],
    missing: Sequence[Missing] = (),
) -> str:
    """Write a comparison as one HTML file that needs no other file, no script and no network.

    Parameters
    ----------
    c, title, about, missing
        As in `to_markdown`.
    figures : mapping of str to Figure
        "rows", "classes" and "pairs" (see `comparison_plots`) stand where they belong, any other
        below the scores.

    Returns
    -------
    str
        An HTML 5 page; its figures are PNG images in the text.
    """
    sections = write_sections(c, missing)
    placed = {name for section in sections for name in section.figures}
    environment = Environment(
        loader=PackageLoader("cxr_mlflow.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html.j2").render(
        title=title,
        about=about,
        warnings=write_warnings(c),
        headline=c.headline(),
        sections=sections,
        images={name: _image(figure) for name, figure in figures.items()},
        others=[name for name in figures if name not in placed],
        many=MANY,
    )


def print_comparison(
    console: Console,
    c: Comparison,
    *,
    title: str,
    about: Mapping[str, str],
    missing: Sequence[Missing] = (),
) -> None:
    """Print a comparison in a terminal: as `to_markdown`, without what is only looked up.

    Parameters
    ----------
    console : rich.console.Console
        Where to. A table that is too wide for it is printed in parts.
    c, title, about, missing
        As in `to_markdown`.
    """
    console.print(Text(title, style="bold"))
    console.print(_grid(about.items()))
    warnings = _grid(("!", warning) for warning in write_warnings(c))
    console.print(warnings, style="bold yellow")
    console.print()
    console.print(Text(c.headline(), style="bold"))
    for section in write_sections(c, missing):
        if section.lookup or not (section.sheet or section.sentences):
            continue
        console.print()
        console.print(Text(section.title, style="bold"))
        for part in _terminal_tables(console, section.sheet) if section.sheet else ():
            console.print(part)
        if section.sheet:
            for note in section.sentences:
                console.print(Text(note))
            continue
        console.print(_grid(("-", sentence) for sentence in section.sentences[:MANY]))
        if (left := len(section.sentences) - MANY) > 0:
            console.print(Text(f"and {left} more in the written report"))


def _markdown_table(sheet: Sheet) -> str:
    lines = [list(map(escape_markdown, cells)) for cells in (sheet.head, *sheet.lines)]
    for place in sheet.strong:
        cells = lines[place + 1]
        cells[: sheet.words] = [f"**{cell}**" for cell in cells[: sheet.words]]
    head, *rest = (f"| {' | '.join(cells)} |" for cells in lines)
    numbers = len(sheet.head) - sheet.words
    return "\n".join([head, f"|{'---|' * sheet.words}{'---:|' * numbers}", *rest])


def _image(figure: Figure) -> dict[str, Any]:
    """What an <img> needs to show a figure without another file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=IMAGE_DPI)
    width, height = figure.get_size_inches() * IMAGE_DPI
    return {
        "src": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "alt": f"Figure: {' '.join(figure.get_suptitle().split())}. Its numbers are in the tables.",
        "width": round(width),
        "height": round(height),
    }


def _grid(lines: Iterable[tuple[str, str]]) -> Table:
    """Pairs of texts in two columns, so that a long second one is broken below itself."""
    grid = Table.grid(padding=(0, 1))
    for line in lines:
        grid.add_row(*map(Text, line))
    return grid


def _terminal_tables(console: Console, sheet: Sheet) -> list[Table]:
    """One table; or several that repeat the words, where the terminal is too narrow for it."""

    def fits(columns: Sequence[int]) -> bool:
        unbounded = console.options.update(max_width=10_000)
        table = _terminal_table(sheet, columns)
        return console.measure(table, options=unbounded).maximum <= console.width

    everything = range(len(sheet.head))
    if sheet.words == len(sheet.head) or fits(everything):
        return [_terminal_table(sheet, everything)]
    parts: list[list[int]] = []
    for place in range(sheet.words, len(sheet.head)):
        longer = [*(parts[-1] if parts else range(sheet.words)), place]
        if parts and fits(longer) and place != sheet.cut:
            parts[-1] = longer
        else:
            parts.append([*range(sheet.words), place])
    return [_terminal_table(sheet, part) for part in parts]


def _terminal_table(sheet: Sheet, columns: Sequence[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True)
    for i in columns:
        if i < sheet.words:
            table.add_column(Text(sheet.head[i]), overflow="fold")
        else:
            texts = [*sheet.head[i].split(), *(line[i] for line in sheet.lines)]
            width = max(map(len, texts))  # the head may be broken, the numbers may not
            table.add_column(Text(sheet.head[i]), justify="right", width=width)
    for line in sheet.lines:
        table.add_row(*(Text(line[i]) for i in columns))
    return table
