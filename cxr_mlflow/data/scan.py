"""Opens every image and mask once, and remembers what it found for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from cxr_mlflow.data.layout import Problem, read_metadata
from cxr_mlflow.data.preprocess import MASK_THRESHOLD, BadImage, Pixels, decode_grey
from cxr_mlflow.data.storage import in_threads, with_bar, write_whole
from cxr_mlflow.errors import InputError

SCAN_VERSION = 1
"""Raise it whenever a `Reading` of the same file would come out otherwise."""
THUMBNAIL_SIDE = 32
_THUMBNAIL_BYTES = THUMBNAIL_SIDE**2
_BATCH = 4096  # readings held as Python objects at once


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


_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.large_string(), bytes: pa.large_binary()}
_SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Reading).items()])


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
    root: Path, files: pd.DataFrame, *, cache_dir: Path, progress: bool = False
) -> pa.Table:
    """Read every file that is new or changed since the last scan of this folder.

    Parameters
    ----------
    root : Path
    files : DataFrame
        `Layout.files`.
    cache_dir : Path
        Readings are kept in `scans/` there; one is used again while path, size and time of change
        are the same.
    progress : bool
        Show a bar.

    Returns
    -------
    pyarrow.Table
        One `Reading` per file, in the order of `files`. Where nothing has changed it is mapped from
        the disk: a column takes memory when it is looked at.
    """
    store = cache_dir / "scans" / f"v{SCAN_VERSION}-{_root_key(root)}.arrow"
    known = _load(store)
    rows = _find(files, known)
    if np.array_equal(rows, np.arange(len(known))):
        return known
    missing = np.flatnonzero(rows < 0)
    wanted = files.iloc[missing]
    gathered = _Gathered()
    try:
        results = in_threads(
            lambda told: read_file(root, *told),
            zip(wanted["path"], wanted["is_mask"], wanted["size"], wanted["mtime_ns"], strict=True),
        )
        for reading in with_bar(results, "Reading images", len(missing), show=progress):
            gathered.add(reading)
    finally:  # an interrupted scan goes on where it stopped
        fresh = gathered.table()
        rows[missing[: len(fresh)]] = len(known) + np.arange(len(fresh))
        parts = [table for table in (known, fresh) if len(table)]
        readings = _take(pa.concat_tables(parts or [known]), rows[rows >= 0])
        lasting = np.flatnonzero(pc.not_equal(readings["problem"], "unreadable"))
        _save(store, _take(readings, lasting))
    return readings


def read_file(root: Path, path: str, is_mask: bool, size: int, mtime_ns: int) -> Reading:
    """Decode one file and describe it; what is wrong with it goes into the reading.

    Parameters
    ----------
    root : Path
        Folder of the data set.
    path : str
        Below it.
    is_mask : bool
        Of a mask no thumbnail is kept.
    size, mtime_ns : int
        Bytes and time of change: while the file has these, the reading holds.
    """
    try:
        pixels = decode_grey(root / path)
    except BadImage as error:
        return Reading(path, size, mtime_ns, error.problem, error.reason)
    return Reading(
        *(path, size, mtime_ns),
        width=pixels.shape[1],
        height=pixels.shape[0],
        darkest=int(pixels.min()),
        brightest=int(pixels.max()),
        area=float((pixels > MASK_THRESHOLD).mean()),
        pixel_hash=hash_pixels(pixels),
        thumbnail=b"" if is_mask else shrink(pixels).tobytes(),
    )


def thumbnails_of(readings: pa.Table, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Thumbnails of some readings of images, uint8 (M, 32, 32); mapped, not copied, if in a row."""
    column = readings["thumbnail"].chunk(0)
    pixels = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    pixels = pixels.reshape(-1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    places = _starts(column)[rows] // _THUMBNAIL_BYTES
    if len(places) and (np.diff(places) == 1).all():
        return pixels[places[0] : places[-1] + 1]
    return pixels[places]


def _starts(column: pa.LargeBinaryArray) -> NDArray[np.int64]:
    """Byte from which each value stands in the column's buffer, and the end: int64 (N + 1,)."""
    return np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, 8 * column.offset)


class _Gathered:
    """Readings in columns: an object for each of a million files would take gigabytes."""

    def __init__(self) -> None:
        self._schema = _SCHEMA.remove(_SCHEMA.get_field_index("thumbnail"))
        self._tables = [self._schema.empty_table()]
        self._batch: list[tuple[Any, ...]] = []
        self._thumbnails, self._starts = bytearray(), array("q", [0])

    def add(self, reading: Reading) -> None:
        *told, thumbnail = reading
        self._thumbnails += thumbnail
        self._starts.append(len(self._thumbnails))
        self._batch.append(tuple(told))
        if len(self._batch) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self._batch, strict=True))
        self._tables.append(pa.table(columns, schema=self._schema))
        self._batch.clear()

    def table(self) -> pa.Table:
        """Return what was gathered; nothing can be added after it."""
        if self._batch:
            self._flush()
        buffers = [None, pa.py_buffer(self._starts), pa.py_buffer(self._thumbnails)]
        thumbnails = pa.Array.from_buffers(pa.large_binary(), len(self._starts) - 1, buffers)
        return pa.concat_tables(self._tables).append_column(_SCHEMA.field("thumbnail"), thumbnails)


def _find(files: pd.DataFrame, known: pa.Table) -> NDArray[np.int64]:
    """Row of the reading of each file, -1 where there is none or the file has changed since."""
    places = pc.index_in(pa.array(files["path"], pa.large_string()), known["path"])
    rows = places.fill_null(-1).to_numpy().astype(np.int64)
    there = np.flatnonzero(rows >= 0)
    for name in ("size", "mtime_ns"):
        same = known[name].to_numpy()[rows[there]] == files[name].to_numpy()[there]
        rows[there[~same]] = -1
        there = there[same]
    return rows


def _take(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Rows of a table, every column in one piece; not copied where it is that already."""
    if not np.array_equal(rows, np.arange(len(table))):
        table = table.take(rows)
    return table.combine_chunks()


def _load(store: Path) -> pa.Table:
    """Open what `_save` wrote; empty if there is none or it is damaged: all is read again."""
    nothing = _SCHEMA.empty_table().combine_chunks()
    if not store.is_file():
        return nothing
    opened = pa.memory_map if os.name == "posix" else pa.OSFile  # Windows locks what is mapped
    try:
        with opened(str(store)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all()
        whole = table.schema == _SCHEMA and table.schema.metadata == _checksum(table)
    except (pa.ArrowException, OSError, ValueError, IndexError):
        return nothing
    return table if whole else nothing


def _save(store: Path, readings: pa.Table) -> None:
    readings = readings.replace_schema_metadata(_checksum(readings))
    with (
        write_whole(store) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, readings.schema) as writer,
    ):
        writer.write_table(readings)


def _checksum(readings: pa.Table) -> dict[bytes, bytes]:
    """CRC-32 of all columns, but of the thumbnails only their places: most of the file is they."""
    total = 0
    for name in readings.column_names:
        column = readings[name].chunk(0)
        if pa.types.is_primitive(column.type):
            total = zlib.crc32(column.to_numpy(), total)
            continue
        starts = _starts(column)
        total = zlib.crc32(starts - starts[0], total)
        if name != "thumbnail":
            text = memoryview(column.buffers()[2] or b"")
            total = zlib.crc32(text[starts[0] : starts[-1]], total)
    return {b"crc32": str(total).encode()}


def scan_metadata(
    root: Path, classes: Sequence[str], *, cache_dir: Path
) -> tuple[dict[str, dict[str, str]], list[Problem]]:
    """Read the metadata table of every class, again only where it changed.

    Parameters
    ----------
    root : Path
        Folder of the data set.
    classes : sequence of str
    cache_dir : Path
        What was read is kept there.

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
