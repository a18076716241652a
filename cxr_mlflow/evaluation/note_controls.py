"""Writes what control models found into the finished note of a run."""

from __future__ import annotations

import re

from cxr_mlflow.evaluation.note import BULLET, DISCLAIMER, NOTE_LIMIT, escape_markdown

_STATE = re.compile(r"(?:Not|Partly) controlled\b.*|Controlled: .*|Controls: .*")
"""Words of a note on its controls, as written by us or by `with_controls`, to the end of them."""


def with_controls(note: str, brief: str, full: str) -> str:
    """Say in a finished note what control models found, where it told of none or of earlier ones.

    Parameters
    ----------
    note : str
        Markdown, as `write_note` or this function wrote it.
    brief, full : str
        As `control_words` tells what was found: for the first line, and for what is read first.

    Returns
    -------
    str
        At most `NOTE_LIMIT` characters: where it would be longer, its last sections are left out.
    """
    head, *lines = note.split("\n")
    told = f"{escape_markdown(brief)}.**"
    head, replaced = _STATE.subn(lambda _: told, head, count=1)
    if not replaced:  # the note of a run that is a control itself
        head = f"{head} **{told}"
    for place, line in enumerate(lines):
        if line.startswith(BULLET) and _STATE.match(line.removeprefix(BULLET)):
            lines[place] = BULLET + escape_markdown(full)
    return _cut_sections("\n".join([head, *lines]))


def _cut_sections(note: str) -> str:
    """Leave out the last sections of a note that is too long."""
    end = f"\n\nLeft out here for length, see the artifacts.\n\n*{DISCLAIMER}*\n"
    if len(note) <= NOTE_LIMIT:
        return note
    kept = note[: NOTE_LIMIT - len(end)]
    return kept[: max(kept.rfind("\n\n### "), 0)] + end
