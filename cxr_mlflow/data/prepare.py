"""Joins the data rooms: from a folder to everything a run is trained and tested on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.config import AUTO, NONE, DataConfig
from cxr_mlflow.data.cache import PixelCache, load_cache
from cxr_mlflow.data.catalog import Catalog, load_catalog, resolve_data_dir
from cxr_mlflow.data.duplicates import Duplicates, find_groups
from cxr_mlflow.data.splits import Split, load_split, make_split
from cxr_mlflow.environment import default_cache_dir


@dataclass(frozen=True)
class Study:
    """Images, their groups, who is tested on what, and the pixels."""

    catalog: Catalog
    duplicates: Duplicates
    split: Split
    cache: PixelCache

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class index of every image, int64 (N,), in the order of the catalog and the cache."""
        return self.catalog.table["label"].to_numpy(np.int64)

    @property
    def sources_digest(self) -> str:
        """SHA-256 in hex over (image_id, source) of all images."""
        pairs = self.catalog.table[["image_id", "source"]].agg("\t".join, axis=1)
        return hashlib.sha256("\n".join(sorted(pairs)).encode()).hexdigest()

    def counts(self) -> pd.DataFrame:
        """Images by split (rows) and class (columns)."""
        return self.split.counts().T.reindex(columns=list(self.catalog.classes))


def cache_folder(data: DataConfig) -> Path:
    """Where decoded images are kept, as the options say."""
    return default_cache_dir() if data.cache_dir == AUTO else Path(data.cache_dir).expanduser()


def source_file(data: DataConfig) -> Path | None:
    """The file that tells sources over the metadata, where the options name one."""
    return None if data.source_file == NONE else Path(data.source_file).expanduser()


def open_catalog(data: DataConfig, *, progress: bool = True) -> Catalog:
    """Find the data set the options name and read its catalog.

    Raises
    ------
    InputError
        If there is none, or files are damaged and `on_bad_file` is 'fail'.
    """
    folder = cache_folder(data)
    data_dir, _ = resolve_data_dir(data.data_dir, folder, progress=progress)
    return load_catalog(
        data_dir,
        mask_mode=data.mask_mode,
        on_bad_file=data.on_bad_file,
        source_file=source_file(data),
        cache_dir=folder,
        progress=progress,
    )


def find_duplicates(catalog: Catalog, data: DataConfig) -> Duplicates:
    """Group the images of a catalog that show one film; kept in the cache folder."""
    hashes = catalog.table["pixel_hash"].tolist()
    return find_groups(catalog.thumbnails, hashes, cache_dir=cache_folder(data))


def divide(catalog: Catalog, duplicates: Duplicates, data: DataConfig) -> Split:
    """Make the train/val/test split that the options describe."""
    return make_split(
        catalog,
        duplicates.groups,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
    )


def prepare(data: DataConfig, *, progress: bool = True) -> Study:
    """Read, group, split and decode the data set that the options name.

    Raises
    ------
    InputError
        If the data cannot be used as asked; the message names file or flag.
    """
    catalog = open_catalog(data, progress=progress)
    duplicates = find_duplicates(catalog, data)
    if data.split_file == NONE:
        split = divide(catalog, duplicates, data)
    else:
        split = load_split(Path(data.split_file).expanduser(), catalog)
    cache = load_cache(
        catalog,
        image_size=data.image_size,
        mask_mode=data.mask_mode,
        cache_dir=cache_folder(data),
        progress=progress,
    )
    return Study(catalog, duplicates, split, cache)
