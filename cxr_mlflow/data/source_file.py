"""A file that says where images come from, over what the metadata of their class list."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

import pandas as pd

from cxr_mlflow.data.layout import short_source
from cxr_mlflow.errors import InputError

COLUMNS = ("image_id", "source")


def read_source_file(path: Path, images: Collection[str]) -> dict[str, str]:
    """Read a source file, and make sure that it speaks of images that are there.

    Parameters
    ----------
    path : Path
        CSV with columns `image_id` ("CLASS/stem", as in split.csv) and `source`; others are not
        looked at, so the split.csv of a run is such a file. A URL is shortened as those of the
        metadata are.
    images : collection of str
        The image_id of every image in the folder, usable or not.

    Returns
    -------
    dict of str to str
        image_id -> source. It need not name all images.

    Raises
    ------
    InputError
        If the file is no such table, names an image that is not there or one twice, or leaves a
        source empty.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # the parser's errors are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(f"--source-file={path}: cannot be read ({reason})") from error
    for column in COLUMNS:
        if column not in table:
            raise InputError(f"--source-file={path}: no column {column!r}")
    ids = [unicodedata.normalize("NFC", name) for name in table["image_id"]]
    sources = table["source"].str.strip()
    known = set(images)
    twice = pd.Index(ids)[pd.Index(ids).duplicated()]
    _refuse(path, (name for name in ids if name not in known), "images that are not in the data")
    _refuse(path, twice, "more than one row for")
    _refuse(path, table["image_id"][sources == ""], "no source for")
    told = (short_source(source) if "://" in source else source for source in sources)
    return dict(zip(ids, told, strict=True))


def _refuse(path: Path, images: Iterable[str], what: str) -> None:
    if found := list(images):
        names = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(
            f"--source-file={path}: {what} ({len(found)}): {names}; an image is named as in "
            "split.csv, CLASS/NAME without suffix"
        )
