"""Which files a data folder holds: CLASS/images, CLASS/masks and CLASS.metadata.xlsx."""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
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


@dataclass(frozen=True)
class Layout:
    """What lies in a data folder, before any file is opened.

    Attributes
    ----------
    root : Path
    classes : tuple of str
    files : DataFrame
        One row per image or mask, by class, images first, then by name: `path` (relative to the
        root, with slashes), `class_name`, `is_mask`, `stem` (Unicode NFC), `size` (bytes),
        `mtime_ns`.
    problems : list of Problem
    """

    root: Path
    classes: tuple[str, ...]
    files: pd.DataFrame
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
    problems = [
        Problem(
            _shown(folder.name), "unknown_folder", "a folder without images/ is no class", False
        )
        for folder in _folders(root)
        if folder.name not in classes
    ]
    tables = []
    for name in classes:
        images = _list_files(root, "/".join(filter(None, (name, own))), problems)
        if images.empty:
            problems.append(Problem(f"{name}/images", "empty_class", "no image in it", True))
        masks = _list_files(root, f"{name}/masks", problems)
        for table, is_mask in ((images, False), (masks, True)):
            class_name = pd.Categorical([name] * len(table), classes)
            tables.append(table.assign(class_name=class_name, is_mask=is_mask))
    return Layout(root, classes, pd.concat(tables, ignore_index=True), problems)


def _list_files(root: Path, folder: str, problems: list[Problem]) -> pd.DataFrame:
    """List the images in a folder, sorted by name; what else is in it goes into `problems`."""
    names, sizes, times = list[str](), array("q"), array("q")
    for entry in _entries(root / folder):
        name = entry.name
        if not _is_plain(name) and _pass_over(name, folder, problems):
            continue
        try:
            told = entry.stat()
        except OSError as error:  # a link to nowhere
            reason = f"the file cannot be read ({error.strerror})"
            problems.append(Problem(f"{folder}/{name}", "unreadable", reason, True))
            continue
        if S_ISDIR(told.st_mode):
            reason = "left aside: a folder"
            problems.append(Problem(f"{folder}/{name}", "unknown_file", reason, False))
            continue
        names.append(name)
        sizes.append(told.st_size)
        times.append(told.st_mtime_ns)
    stems = [unicodedata.normalize("NFC", name.rpartition(".")[0]) for name in names]
    table = pd.DataFrame(
        {
            "path": f"{folder}/" + pd.Series(names, dtype="str"),
            "stem": pd.Series(stems, dtype="str"),
            "size": np.array(sizes, np.int64),
            "mtime_ns": np.array(times, np.int64),
        }
    )
    return table.sort_values("path", ignore_index=True)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from entries


def _is_plain(name: str) -> bool:
    """Whether nothing can be wrong with a name: of a million, few need a closer look."""
    return name.lower().endswith(IMAGE_SUFFIXES) and name.isprintable() and name[0] != "."


def _pass_over(name: str, folder: str, problems: list[Problem]) -> bool:
    """Whether a file is no image by its name; a user who should know it is told in `problems`."""
    if name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini"):
        return True  # what file managers leave behind
    if name == "masks" and "/" not in folder:
        return True  # beside images that lie in the class folder itself
    path = f"{folder}/{name}"
    if reason := _why_not_a_name(name):
        problems.append(Problem(_shown(path), "bad_name", f"{reason}; rename it", True))
        return True
    if not name.lower().endswith(IMAGE_SUFFIXES):
        wanted = ", ".join(IMAGE_SUFFIXES)
        reason = f"left aside: not one of {wanted}"
        problems.append(Problem(path, "unknown_file", reason, False))
        return True
    return False


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
    name = unicodedata.normalize("NFC", name.strip()).casefold()
    return os.path.splitext(name)[0] if name.endswith(IMAGE_SUFFIXES) else name


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
