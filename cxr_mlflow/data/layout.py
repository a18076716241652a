"""Which files a data folder holds: CLASS/images, CLASS/masks and CLASS.metadata.xlsx."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pandas as pd

from cxr_mlflow.errors import InputError
from cxr_mlflow.names import IMAGE_SUFFIXES, slug

WANTED = "the layout is CLASS/images/*.png beside CLASS/masks/*.png, as in the Kaggle download"
_DEPTH = 2  # how far below the given folder the class folders may be: zips unpack into folders


class Problem(NamedTuple):
    """One thing wrong with a data set; `fatal` if the file cannot be used."""

    path: str  # relative to the root, with slashes
    problem: str
    detail: str
    fatal: bool


class FoundFile(NamedTuple):
    """An image or mask, as the file system tells of it."""

    path: str  # relative to the root, with slashes
    class_name: str
    is_mask: bool
    stem: str  # Unicode NFC, so that names from a Mac match
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class Layout:
    """What lies in a data folder, before any file is opened."""

    root: Path
    classes: tuple[str, ...]
    files: list[FoundFile]
    problems: list[Problem]


def find_root(folder: Path) -> Path:
    """Find the folder that holds the class folders: this one, or the only one inside it.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the data with --data-dir")
    for classes_of in (class_folders, flat_class_folders):
        level = [folder]
        for _ in range(_DEPTH + 1):
            if roots := [place for place in level if classes_of(place)]:
                if len(roots) > 1:
                    names = ", ".join(map(str, roots))
                    raise InputError(
                        f"{folder}: several data sets ({names}); say which: --data-dir"
                    )
                return roots[0]
            level = [child for place in level for child in _folders(place)]
    raise InputError(f"{folder}: no class folders found; {WANTED}")


def class_folders(root: Path) -> list[str]:
    """Names of the folders that hold a folder `images`, sorted."""
    return [child.name for child in _folders(root) if (child / "images").is_dir()]


def flat_class_folders(root: Path) -> list[str]:
    """Names of the folders with images directly in them, sorted, where two or more are so.

    Other hospitals' data often come as CLASS/*.png, with no folder `images` between.
    """
    found = [
        child.name
        for child in _folders(root)
        if child.name not in ("images", "masks") and any(map(_is_image, _entries(child)))
    ]
    return found if len(found) > 1 else []


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _folders(folder: Path) -> list[Path]:
    hidden = (".", "__MACOSX")
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(hidden))
    return sorted(found)


def read_layout(root: Path) -> Layout:
    """List images and masks of every class, and whatever does not belong there.

    Raises
    ------
    InputError
        If there are not two classes, or two whose names differ only in punctuation or case.
    """
    classes = tuple(class_folders(root))
    own = "images"  # folder of a class that holds its images; "" where they lie in it directly
    if not classes:
        classes, own = tuple(flat_class_folders(root)), ""
    if len(classes) < 2:
        found = ", ".join(classes) or "none"
        raise InputError(f"{root}: two classes or more are needed, found {found}; {WANTED}")
    for name in classes:
        if reason := _why_not_a_name(name):
            raise InputError(f"{root}: class folder {name!r}: {reason}; rename it")
    if len({slug(name) for name in classes}) < len(classes):
        raise InputError(f"{root}: class names too alike: {', '.join(classes)}; rename one")
    files: list[FoundFile] = []
    problems = [
        Problem(
            _shown(folder.name), "unknown_folder", "a folder without images/ is no class", False
        )
        for folder in _folders(root)
        if folder.name not in classes
    ]
    for name in classes:
        for kind in (own, "masks"):
            for entry in _entries(root / name / kind):
                path = "/".join(part for part in (name, kind, entry.name) if part)
                if path == f"{name}/masks":
                    continue
                match _look_at(entry, path, name, kind == "masks"):
                    case FoundFile() as file:
                        files.append(file)
                    case Problem() as problem:
                        problems.append(problem)
        if not any(f.class_name == name and not f.is_mask for f in files):
            problems.append(Problem(f"{name}/images", "empty_class", "no image in it", True))
    return Layout(root, classes, files, problems)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)


def _look_at(
    entry: os.DirEntry[str], path: str, class_name: str, is_mask: bool
) -> FoundFile | Problem | None:
    if entry.name.startswith(".") or entry.name.lower() in ("thumbs.db", "desktop.ini"):
        return None  # what file managers leave behind
    if reason := _why_not_a_name(entry.name):
        return Problem(_shown(path), "bad_name", f"{reason}; rename it", True)
    stem, suffix = os.path.splitext(entry.name)  # pathlib takes seconds for a large folder
    if suffix.lower() not in IMAGE_SUFFIXES:
        wanted = ", ".join(IMAGE_SUFFIXES)
        return Problem(path, "unknown_file", f"left aside: not one of {wanted}", False)
    try:
        told = entry.stat()
    except OSError as error:  # a link to nowhere
        return Problem(path, "unreadable", f"the file cannot be read ({error.strerror})", True)
    if entry.is_dir():
        return Problem(path, "unknown_file", "left aside: a folder", False)
    stem = unicodedata.normalize("NFC", stem)
    return FoundFile(path, class_name, is_mask, stem, told.st_size, told.st_mtime_ns)


def _why_not_a_name(name: str) -> str:
    """Say why a name cannot stand in a line of a table or a message; "" where it can."""
    kinds = set(map(unicodedata.category, name))
    if "Cs" in kinds:
        return "its name is not valid Unicode"
    return "its name holds a line break or another control character" if "Cc" in kinds else ""


def _shown(name: str) -> str:
    """Spell a name in one line that can be written anywhere; a line break is escaped."""
    return repr(name)[1:-1] if _why_not_a_name(name) else name


def read_metadata(path: Path) -> dict[str, str]:
    """Read CLASS.metadata.xlsx of the release.

    Returns
    -------
    dict of str to str
        File stem in lower case (the release spells Normal's in capitals) -> source of the image;
        "unknown" where the table gives two different ones.

    Raises
    ------
    InputError
        If it is not an Excel table with columns FILE NAME and URL.
    """
    try:
        table: pd.DataFrame = pd.read_excel(path, dtype=str)
    except Exception as error:  # openpyxl raises whatever comes up on damaged files
        raise InputError(f"{path}: not a readable Excel table ({error})") from error
    named: dict[str, Any] = {str(name).strip().upper(): table[name] for name in table.columns}
    if not {"FILE NAME", "URL"} <= named.keys():
        raise InputError(f"{path}: columns FILE NAME and URL are wanted, found {list(named)}")
    sources: dict[str, str] = {}
    for name, url in zip(named["FILE NAME"], named["URL"], strict=True):
        if not isinstance(name, str):
            continue
        key, source = metadata_key(name), short_source(url if isinstance(url, str) else "")
        sources[key] = source if sources.get(key, source) == source else "unknown"
    return sources


def metadata_key(name: str) -> str:
    """Spelling under which a file is looked up in the metadata: no suffix, lower case, NFC."""
    stem, suffix = os.path.splitext(name := unicodedata.normalize("NFC", name.strip()))
    return (stem if suffix.lower() in IMAGE_SUFFIXES else name).casefold()


def short_source(url: str) -> str:
    """Shorten a URL to what names the collection.

    Examples
    --------
    >>> short_source("https://github.com/ml-workgroup/covid-19-image-repository/tree/master/png")
    'github.com/ml-workgroup/covid-19-image-repository'
    >>> short_source("https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data")
    'kaggle.com/c/rsna-pneumonia-detection-challenge'
    """
    url = url.strip()
    parts = urlsplit(url if "://" in url else f"//{url}")
    host = parts.netloc.lower().removeprefix("www.")
    path = re.sub(r"/(tree|blob)/.*$", "", parts.path).rstrip("/")
    return f"{host}{re.sub(r'/data$', '', path)}" or "unknown"
