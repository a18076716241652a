"""Time and memory of the search for duplicates as the data set grows to 200,000 images.

A pack of real images is turned, mirrored and cropped to 24 times its size: films that are as much
alike as films are, with the copies that the pack has. Every size runs in a process of its own.

    python benchmarks/duplicates_growth.py --data-dir DIR --sizes 1000,10000,100000,200000
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.config import DataConfig
from cxr_mlflow.data.duplicates import find_groups
from cxr_mlflow.data.prepare import open_catalog
from cxr_mlflow.data.preprocess import decode_grey
from cxr_mlflow.data.scan import hash_pixels, shrink
from cxr_mlflow.data.storage import in_threads
from cxr_mlflow.serving.gate_child import peak_memory_mb

SHARES = (1.0, 0.8, 0.64)  # of the side that is kept
TURNS = 8  # of a square, mirrored ones included


class Measured(NamedTuple):
    """What one search took."""

    seconds: float
    cpu_seconds: float
    loaded_mb: float  # the process with the thumbnails, before the search
    peak_mb: float
    groups: int
    images: int


def variants(path: str) -> tuple[NDArray[np.uint8], list[str]]:
    """24 thumbnails of one image and their hashes: (24, 32, 32)."""
    film = decode_grey(Path(path))
    found = []
    for share in SHARES:
        rows, columns = (round(side * (1 - share) / 2) for side in film.shape)
        part = film[rows : film.shape[0] - rows, columns : film.shape[1] - columns]
        for turn in range(TURNS):
            turned = np.rot90(part.T if turn >= 4 else part, turn)
            found.append(shrink(np.ascontiguousarray(turned)))
    return np.stack(found), [hash_pixels(film) + f"{number:02}" for number in range(len(found))]


def search(folder: str, size: int) -> Measured:
    """Search the first `size` images; run in a process of its own."""
    thumbnails = np.array(np.load(Path(folder) / "thumbnails.npy", mmap_mode="r")[:size])
    hashes = np.load(Path(folder) / "hashes.npy", mmap_mode="r")[:size].tolist()
    loaded, begun, cpu = peak_memory_mb(), time.perf_counter(), time.process_time()
    groups = np.bincount(find_groups(thumbnails, hashes).groups)
    seconds, used = time.perf_counter() - begun, time.process_time() - cpu
    several = groups[groups > 1]
    return Measured(seconds, used, loaded, peak_memory_mb(), len(several), int(several.sum()))


@click.command(cls=CxrCommand)
@config_options(DataConfig, only=["data_dir", "cache_dir"])
@click.option("--sizes", default="1000,10000,100000,200000", help="Numbers of images.")
def main(data_dir: str, cache_dir: str, sizes: str) -> None:
    """Print time and memory for every size, and how they grow per image and per pair."""
    catalog = open_catalog(DataConfig(data_dir=data_dir, cache_dir=cache_dir))
    paths = catalog.table["path"].sample(frac=1, random_state=0).tolist()
    made = list(in_threads(variants, paths))
    with tempfile.TemporaryDirectory() as folder:
        stacked = np.stack([thumbnails for thumbnails, _ in made], axis=1)  # originals first
        np.save(Path(folder) / "thumbnails.npy", stacked.reshape(-1, *stacked.shape[2:]))
        np.save(Path(folder) / "hashes.npy", np.array([h for _, h in made]).T.ravel())
        most = stacked.shape[0] * stacked.shape[1]
        del made, stacked
        click.echo(f"{len(paths)} real images, {most} with their variants, {os.cpu_count()} cores")
        for size in map(int, sizes.split(",")):
            if size > most:
                raise click.UsageError(f"--sizes: {size} is more than the {most} images there are")
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                told = pool.submit(search, folder, size).result()
            click.echo(
                f"{size:7}: {told.seconds:7.1f} s ({told.cpu_seconds:.1f} s of CPU), "
                f"{told.cpu_seconds / size * 1e6:.0f} us an image, "
                f"{told.cpu_seconds / (size * size / 2) * 1e9:.0f} ns a pair; "
                f"peak {told.peak_mb:.0f} MiB, {(told.peak_mb - told.loaded_mb) * 1024 / size:.1f} "
                f"KiB an image beyond the thumbnails; {told.groups} groups with {told.images}"
            )


if __name__ == "__main__":
    main()
