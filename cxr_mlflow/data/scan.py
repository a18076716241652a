"""Opens every image and mask once, and remembers what it found for the next time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cxr_mlflow.data.layout import FoundFile, Problem, read_metadata
from cxr_mlflow.data.preprocess import MASK_THRESHOLD, BadImage, Pixels, decode_grey
from cxr_mlflow.data.storage import in_threads, with_bar, write_whole
from cxr_mlflow.errors import InputError

SCAN_VERSION = 1
"""Raise it whenever a `Reading` of the same file would come out otherwise."""
THUMBNAIL_SIDE = 32


class Reading(NamedTuple):
    """What one file holds, in so far as the catalog asks."""

    path: str
    size: int
    mtime_ns: int
    problem: str = ""  # kind, as `BadImage.problem`; all below is empty then
    detail: str = ""
    width: int = 0
    height: int = 0
    darkest: int = 0
    brightest: int = 0
    area: float = 0.0  # share of pixels above MASK_THRESHOLD
    pixel_hash: str = ""
    thumbnail: bytes = b""  # 32 x 32 grey values; images only


def hash_pixels(pixels: Pixels) -> str:
    """SHA-256 in hex of shape and grey values: the same for every lossless encoding."""
    digest = hashlib.sha256(np.array(pixels.shape, "<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def shrink(pixels: Pixels) -> Pixels:
    """Average to the 32 x 32 thumbnail by which duplicates are found."""
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BOX))


def scan_files(
    root: Path, files: Sequence[FoundFile], *, cache_dir: Path, progress: bool = False
) -> dict[str, Reading]:
    """Read every file that is new or changed since the last scan of this folder.

    Parameters
    ----------
    root : Path
    files : sequence of FoundFile
    cache_dir : Path
        Readings are kept in `scans/` there; one is used again while path, size and time of change
        are the same.
    progress : bool
        Show a bar.

    Returns
    -------
    dict of str to Reading
        One per file, by its path.
    """
    store = cache_dir / "scans" / f"v{SCAN_VERSION}-{_root_key(root)}.parquet"
    known = _load(store)
    wanted = {file.path: (file.size, file.mtime_ns) for file in files}
    readings = {
        path: reading
        for path, reading in known.items()
        if wanted.get(path) == (reading.size, reading.mtime_ns)
    }
    missing = [file for file in files if file.path not in readings]
    try:
        results = in_threads(lambda file: read_file(root, file), missing)
        for reading in with_bar(results, "Reading images", len(missing), show=progress):
            readings[reading.path] = reading
    finally:  # an interrupted scan goes on where it stopped
        lasting = {p: r for p, r in readings.items() if r.problem != "unreadable"}
        if lasting.keys() != known.keys() or missing:
            _save(store, lasting)
    return readings


def read_file(root: Path, file: FoundFile) -> Reading:
    """Decode one file and describe it; what is wrong with it goes into the reading."""
    try:
        pixels = decode_grey(root / file.path)
    except BadImage as error:
        return Reading(file.path, file.size, file.mtime_ns, error.problem, error.reason)
    return Reading(
        *(file.path, file.size, file.mtime_ns),
        width=pixels.shape[1],
        height=pixels.shape[0],
        darkest=int(pixels.min()),
        brightest=int(pixels.max()),
        area=float((pixels > MASK_THRESHOLD).mean()),
        pixel_hash=hash_pixels(pixels),
        thumbnail=b"" if file.is_mask else shrink(pixels).tobytes(),
    )


def _load(store: Path) -> dict[str, Reading]:
    if not store.is_file():
        return {}
    try:
        columns = pq.read_table(store).to_pydict()
        rows = zip(*(columns[name] for name in Reading._fields), strict=True)
    except (pa.ArrowException, OSError, KeyError):
        return {}  # not ours or damaged: everything is read again
    return {row[0]: Reading(*row) for row in rows}


def _save(store: Path, readings: dict[str, Reading]) -> None:
    columns = {
        name: [getattr(reading, name) for reading in readings.values()] for name in Reading._fields
    }
    columns["thumbnail"] = pa.array(columns["thumbnail"], pa.binary())
    with write_whole(store) as temporary:
        pq.write_table(pa.table(columns), temporary)


def scan_metadata(
    root: Path, classes: Sequence[str], *, cache_dir: Path
) -> tuple[dict[str, dict[str, str]], list[Problem]]:
    """Read the metadata table of every class, again only where it changed.

    Returns
    -------
    sources : dict
        Class -> what `layout.read_metadata` returns; a class without a readable table is missing.
    problems : list of Problem
    """
    store = cache_dir / "scans" / f"metadata-v{SCAN_VERSION}-{_root_key(root)}.json"
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    fresh: dict[str, list[Any]] = {}
    problems: list[Problem] = []
    for name in classes:
        path = root / f"{name}.metadata.xlsx"
        if not path.is_file():
            problems.append(Problem(path.name, "no_metadata", "sources are unknown", False))
            continue
        told = path.stat()
        entry = known.get(name, [])
        if entry[:2] != [told.st_size, told.st_mtime_ns]:
            try:
                entry = [told.st_size, told.st_mtime_ns, read_metadata(path)]
            except InputError as error:
                detail = f"sources are unknown: {str(error).removeprefix(f'{path}: ')}"
                problems.append(Problem(path.name, "metadata_unreadable", detail, False))
                continue
        fresh[name] = entry
    if fresh != known:
        with write_whole(store) as temporary:
            temporary.write_text(json.dumps(fresh), encoding="utf-8")
    return {name: entry[2] for name, entry in fresh.items()}, problems


def _root_key(root: Path) -> str:
    return hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
