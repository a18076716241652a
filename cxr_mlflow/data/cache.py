"""Decodes and resizes every image once, to memory maps that an epoch reads at no cost."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.preprocess import (
    CROP_MARGIN,
    MASK_THRESHOLD,
    Pixels,
    crops,
    decode_grey,
    fit_to_size,
)
from cxr_mlflow.data.scan import hash_pixels
from cxr_mlflow.data.storage import build_folder, in_threads, with_bar
from cxr_mlflow.errors import InputError

CACHE_VERSION = 1
"""Raise it whenever the pixels of the same image would come out otherwise."""


@dataclass(frozen=True)
class PixelCache:
    """Images and masks of a catalog at one size, in table order, read-only.

    Attributes
    ----------
    images : uint8 array of shape (N, S, S)
    masks : uint8 array of shape (N, S, S)
        0 and 1; all 1 where an image has no mask.
    key : str
        Name of the content: equal keys, equal pixels.
    folder : Path, optional
        Where it lies; given it, a loader process opens the files again instead of getting a copy.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    key: str
    folder: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the place, not as gigabytes of pixels."""
        if self.folder is None:
            return (PixelCache, (self.images, self.masks, self.key))
        return (_open, (self.folder, self.images.shape))


def load_cache(
    catalog: Catalog, *, image_size: int, mask_mode: str, cache_dir: Path, progress: bool = False
) -> PixelCache:
    """Open the pixels of a catalog, made now if they are not there yet.

    Parameters
    ----------
    catalog : Catalog
    image_size : int
        Side S, pixels.
    mask_mode : str
        One of `cxr_mlflow.config.MaskMode`. Modes that crop alike share a cache.
    cache_dir : Path
        The cache is `pixels/KEY/` there; processes that want the same one wait for the first.
    progress : bool
        Show a bar while it is made.

    Raises
    ------
    InputError
        If an image cannot be decoded any more or is not what the catalog saw, the disk is full, or
        `cache_dir` cannot be written.
    """
    key = cache_key(catalog, image_size=image_size, mask_mode=mask_mode)
    folder = cache_dir / "pixels" / key
    shape = (len(catalog.table), image_size, image_size)
    for _ in range(2):
        build_folder(folder, lambda target: _build(target, catalog, shape, mask_mode, progress))
        try:
            return _open(folder, shape)
        except (OSError, EOFError, ValueError):  # somebody cut or removed a file: it is made again
            shutil.rmtree(folder, ignore_errors=True)
    raise InputError(f"{folder}: cannot be read back; name another disk with --cache-dir")


def cache_key(catalog: Catalog, *, image_size: int, mask_mode: str) -> str:
    """Name the pixels by all that decides them."""
    parts = (CACHE_VERSION, catalog.digest, image_size, crops(mask_mode))
    rules = (CROP_MARGIN, MASK_THRESHOLD)
    return hashlib.sha256(repr(parts + rules).encode()).hexdigest()[:24]


def _open(folder: Path, shape: tuple[int, ...]) -> PixelCache:
    arrays = [np.load(folder / name, mmap_mode="r") for name in ("images.npy", "masks.npy")]
    if any(array.shape != tuple(shape) or array.dtype != np.uint8 for array in arrays):
        raise ValueError(f"{folder}: not the arrays that its name promises")
    return PixelCache(arrays[0], arrays[1], folder.name, folder)


def _build(
    target: Path, catalog: Catalog, shape: tuple[int, int, int], mask_mode: str, progress: bool
) -> None:
    target.mkdir()
    about = {
        "root": str(catalog.root),
        "catalog": catalog.digest,
        "shape": shape,
        "mask_mode": mask_mode,
    }
    (target / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    columns = ("path", "mask_path", "pixel_hash", "mask_hash")
    rows = zip(*(catalog.table[name] for name in columns), strict=True)
    fitted = in_threads(lambda row: _fit(*row, size=shape[1], mask_mode=mask_mode), rows)
    fitted = with_bar(fitted, "Preparing pixels", shape[0], show=progress)
    # Written in order, not through a memory map: a full disk is then an error, not a SIGBUS.
    with open(target / "images.npy", "wb") as images, open(target / "masks.npy", "wb") as masks:
        _write_arrays((images, masks), fitted, shape)


def _write_arrays(
    files: tuple[BinaryIO, BinaryIO],
    fitted: Iterable[tuple[Pixels, Pixels]],
    shape: tuple[int, int, int],
) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    for file in files:
        npy.write_array_header_1_0(file, header)
    for pair in fitted:
        for file, pixels in zip(files, pair, strict=True):
            file.write(np.ascontiguousarray(pixels).data)
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _fit(
    path: str, mask_path: str, pixel_hash: str, mask_hash: str, *, size: int, mask_mode: str
) -> tuple[Pixels, Pixels]:
    image = _decode_unchanged(path, pixel_hash)
    mask = None
    if mask_path:
        mask = (_decode_unchanged(mask_path, mask_hash) > MASK_THRESHOLD).astype(np.uint8)
    return fit_to_size(image, mask, size, mask_mode)


def _decode_unchanged(path: str, pixel_hash: str) -> Pixels:
    pixels = decode_grey(Path(path))
    if hash_pixels(pixels) != pixel_hash:
        raise InputError(f"{path}: changed while it was in use; start again")
    return pixels
