"""Small pieces of Markdown that no name can break out of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cxr_mlflow.evaluation.note import escape_markdown

NOT_MEASURED = "not measured"
"""What stands where there is no number, and in a cell that would be empty."""


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def escape(text: str) -> str:
    """One line of Markdown that shows `text` as it is, whatever a class or file may be called."""
    if isinstance(text, Markdown):
        return text
    return escape_markdown(plain(text))


def plain(text: str) -> str:
    """The same text in one line that can be written as UTF-8; a file name need not be text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int | None = None) -> str:
    """A Markdown table; the first `words` columns are aligned as words, the others as numbers.

    Cells are escaped, unless they are `Markdown`.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequences of str
        Each as long as `head`; an empty cell reads as not measured.
    words : int, optional
        All columns by default.
    """
    words = len(head) if words is None else words
    lines = [[escape(cell) or NOT_MEASURED for cell in row] for row in (head, *rows)]
    first, *rest = (f"| {' | '.join(cells)} |" for cells in lines)
    return "\n".join([first, f"|{'---|' * words}{'---:|' * (len(head) - words)}", *rest])


def pairs(told: Mapping[str, str], head: tuple[str, str] = ("what", "value")) -> str:
    """A mapping as a table of two columns."""
    return table(head, [[name, value] for name, value in told.items()])


def bullets(sentences: Sequence[str]) -> str:
    """A list; each sentence is escaped."""
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)
