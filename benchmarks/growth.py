"""Time and memory from a data folder to training batches as the data set grows to a million images.

Every size is a data set in the Kaggle layout: grey noise of 32 x 32 pixels, all images different,
each with a mask (hard links to a few masks) and a row in the metadata. So the figures are of the
number of files, not of their size: decoding real films takes longer. Every measurement runs in a
process of its own.

    python benchmarks/growth.py --sizes 1000,10000,21165,100000
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import click
import psutil

CHILD = "CXR_GROWTH_CHILD"
CLASSES = {"COVID": 0.17, "Lung_Opacity": 0.28, "Normal": 0.49, "Viral Pneumonia": 0.06}
SIDE, SEVERAL = 32, 1000  # pixels; names of one mask, which file systems limit
STAGES = {
    "catalog.find_root": "listing",
    "catalog.read_layout": "listing",
    "catalog.scan_files": "readings",
    "catalog.scan_metadata": "metadata",
    "prepare.open_catalog": "catalog",
    "prepare.find_duplicates": "duplicates",
    "prepare.divide": "split",
    "prepare.load_cache": "pixels",
}
"""Function -> stage; `open_catalog` less what runs in it is the joining of the table."""
JOINED = ("listing", "readings", "metadata")


def write_images(root: Path, count: int) -> None:
    """Write `count` images with masks and metadata, in the shares of the release."""
    import numpy as np
    from openpyxl import Workbook
    from PIL import Image

    rng = np.random.default_rng(count)
    mask, buffer = np.zeros((SIDE, SIDE), np.uint8), io.BytesIO()
    mask[8:24, 6:14] = mask[8:24, 18:26] = 255
    Image.fromarray(mask).save(buffer, "PNG")
    firsts = [0, *(round(share * count) for share in np.cumsum(list(CLASSES.values())))]
    for name, first, last in zip(CLASSES, firsts[:-1], firsts[1:], strict=True):
        images, masks = root / name / "images", root / name / "masks"
        images.mkdir(parents=True)
        masks.mkdir()
        book = Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(["FILE NAME", "URL"])
        for number in range(1, last - first + 1):
            file = f"{name}-{number}.png"
            pixels = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(images / file, compress_level=0)
            if number % SEVERAL == 1:
                (origin := masks / file).write_bytes(buffer.getvalue())
            else:
                os.link(origin, masks / file)
            sheet.append([f"{name}-{number}", f"https://hospital-{number % 3}.example.org/"])
        book.save(root / f"{name}.metadata.xlsx")


def memory() -> dict[str, float]:
    """MiB of this process: most so far; now; and now without pages of mapped files."""
    from cxr_mlflow.serving.gate_child import peak_memory_mb

    now = psutil.Process().memory_info()
    mapped = getattr(now, "shared", 0)  # on Linux; files are handed back when memory is short
    return {"peak": peak_memory_mb(), "rss": now.rss / 2**20, "own": (now.rss - mapped) / 2**20}


def start(config: dict[str, Any], with_duplicates: bool) -> dict[str, float]:
    """Prepare a study in this process; seconds of CPU by stage, and until all is ready."""
    spans = {"import": 0.0}
    from cxr_mlflow.config import DataConfig
    from cxr_mlflow.data import catalog, prepare

    spans["import"] = time.process_time()  # with the start of the interpreter
    rooms = {"catalog": catalog, "prepare": prepare}

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            before = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spans[stage] = spans.get(stage, 0.0) + time.process_time() - before

        return call

    if not with_duplicates:
        prepare.find_duplicates = no_duplicates
    for place, stage in STAGES.items():
        room, name = place.split(".")
        setattr(rooms[room], name, timed(stage, getattr(rooms[room], name)))
    study = prepare.prepare(DataConfig(**config), progress=False)
    spans["ready"] = time.time() - psutil.Process().create_time()
    spans["cpu"] = time.process_time()
    spans["catalog"] -= sum(spans[stage] for stage in JOINED)
    spans["torch"] = float("torch" in sys.modules)
    return spans | memory() | {"images": len(study.catalog.table)}


def no_duplicates(catalog: Any, data: Any) -> Any:
    """Take every image for a film of its own: the search is not run."""
    import numpy as np
    import pandas as pd

    from cxr_mlflow.data.duplicates import Duplicates

    columns = ["i", "j", "similarity", "exact"]
    return Duplicates(np.arange(len(catalog.table)), pd.DataFrame(columns=columns))


def read_epoch(folder: Path) -> dict[str, float]:
    """Read one epoch of training batches from a pixel cache, without augmentation."""
    import numpy as np
    import torch

    from cxr_mlflow.data.cache import PixelCache
    from cxr_mlflow.data.dataset import EpochSampler, RadiographDataset, build_loader

    torch.set_num_threads(1)
    images, masks = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks"))
    cache = PixelCache(images, masks, folder.name, folder)
    rows, labels = np.arange(len(images)), np.zeros(len(images), np.int64)
    dataset = RadiographDataset(cache, rows, labels, mask_mode="lungs")
    sampler = EpochSampler(len(rows), seed=0, draw_weights=None)
    loader = build_loader(dataset, sampler, batch_size=64, workers=0)
    sampler.start_at(1)
    before, begun = memory(), time.perf_counter()
    seen = sum(len(targets) for _, targets in loader)
    seconds, after = time.perf_counter() - begun, memory()
    beyond = {f"{name} beyond": after[name] - before[name] for name in ("rss", "own")}
    return {"images a second": seen / seconds, "seconds": seconds} | beyond


def in_child(result: Path, **request: Any) -> dict[str, float]:
    """Answer a request in a fresh process."""
    environment = {**os.environ, CHILD: json.dumps(request | {"result": str(result)})}
    subprocess.run([sys.executable, __file__], env=environment, check=True)
    told: dict[str, float] = json.loads(result.read_text())
    return told


def measure(place: Path, size: int, with_duplicates: bool, warm: int) -> Iterator[list[str]]:
    """Rows of the table for one size: cold, warm several times, an epoch."""
    root, result = place / f"{size}", place / "result.json"
    if not root.exists():  # a folder that is given is kept for the next call
        write_images(root, size)
    config = {
        "data_dir": str(root),
        "cache_dir": str(place / f"cache-{size}"),
        "image_size": SIDE,
    }
    for number in range(warm + 1):
        told = in_child(result, config=config, with_duplicates=with_duplicates)
        if not with_duplicates:
            told["duplicates"] = float("nan")
        yield [f"{size:,}", "warm" if number else "cold", *figures(told, START)]
    (folder,) = (place / f"cache-{size}" / "pixels").glob("[!.]*")
    told = in_child(result, folder=str(folder))
    yield [f"{size:,}", "an epoch", *figures(told, EPOCH)]


START = {
    "ready": "ready, s",
    "cpu": "CPU, s",
    "import": "import",
    "listing": "listing",
    "readings": "readings",
    "metadata": "metadata",
    "catalog": "catalog",
    "duplicates": "duplicates",
    "split": "split",
    "pixels": "pixels",
    "peak": "peak, MiB",
    "own": "own, MiB",
}
EPOCH = {
    "images a second": "images/s",
    "seconds": "s",
    "rss beyond": "MiB beyond start",
    "own beyond": "own, MiB beyond start",
}


def figures(told: dict[str, float], names: dict[str, str]) -> list[str]:
    """Spell figures: three digits or so."""
    found = []
    for name in names:
        value = told[name]
        text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
        found.append("NOT RUN" if value != value else text)
    return found


@click.command()
@click.option("--sizes", default="1000,10000,21165,100000", help="Numbers of images.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps the data sets made.")
@click.option("--warm", default=2, help="Warm starts of each size.")
@click.option(
    "--without-duplicates-from",
    "limit",
    default=200_001,
    help="The search grows with the square of the number: from this one on it is left out.",
)
def main(sizes: str, folder: Path | None, warm: int, limit: int) -> None:
    """Print what a start takes, cold and warm, and how fast an epoch is read."""
    from benchmarks.machine import machine, markdown, versions

    numbers, rows = list(map(int, sizes.split(","))), []
    with tempfile.TemporaryDirectory() as temporary:
        for number in numbers:
            if number >= limit:
                click.echo(f"{number:,} images: the search for duplicates is NOT RUN", err=True)
            for row in measure(folder or Path(temporary), number, number < limit, warm):
                click.echo(" ".join(row), err=True)
                rows.append(row)
    starts, epochs = (
        [row for row in rows if (row[1] == "an epoch") == is_epoch] for is_epoch in (False, True)
    )
    click.echo(markdown(["images", "start", *START.values()], starts))
    click.echo(markdown(["images", "", *EPOCH.values()], epochs))
    if skipped := [f"{number:,}" for number in numbers if number >= limit]:
        click.echo(f"Duplicates were NOT searched for at {', '.join(skipped)} images.")
    click.echo(f"{machine()}; {versions('numpy', 'pandas', 'pyarrow', 'pillow', 'torch')}")


def answer(request: dict[str, Any]) -> None:
    """Do what the parent asks, and write down what was measured."""
    if "folder" in request:
        told = read_epoch(Path(request["folder"]))
    else:
        told = start(request["config"], request["with_duplicates"])
    Path(request["result"]).write_text(json.dumps(told))


if __name__ == "__main__":
    if CHILD in os.environ:
        answer(json.loads(os.environ[CHILD]))
    else:
        main()
