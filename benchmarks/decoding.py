"""Core time from the bytes of a film and its mask to the network's input, step by step.

python -m benchmarks.decoding --data-dir data/mini
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.machine import machine, markdown, versions
from benchmarks.serving_speed import find_films
from cxr_mlflow.data.preprocess import apply_mask, decode_grey, decode_mask, fit_to_size


@click.command()
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--films", "count", default=120, help="Most images that are read.")
@click.option("--rounds", default=9, help="Rounds; the fastest counts.")
def main(data_dir: Path, count: int, rounds: int) -> None:
    """Print a table: microseconds an image."""
    cv2.setNumThreads(1)
    found = find_films(data_dir, count)
    films, masks = ([path.read_bytes() for path in paths] for paths in (found.images, found.masks))
    greys, lungs = [decode_grey(film) for film in films], [decode_mask(mask) for mask in masks]

    def by_opencv(files: list[bytes], flag: int) -> list[object]:
        return [cv2.imdecode(np.frombuffer(file, np.uint8), flag) for file in files]

    def fitted(size: int) -> None:
        for grey, lung in zip(greys, lungs, strict=True):
            apply_mask(*fit_to_size(grey, lung, size, "lungs"), "lungs")

    steps: dict[str, Callable[[], object]] = {
        "film: decode_grey": lambda: [decode_grey(film) for film in films],
        "film: cv2.imdecode": lambda: by_opencv(films, cv2.IMREAD_UNCHANGED),
        "film: inflating alone": lambda: [zlib.decompress(pixels_of(film)) for film in films],
        "mask: decode_mask": lambda: [decode_mask(mask) for mask in masks],
        "mask: cv2.imdecode": lambda: by_opencv(masks, cv2.IMREAD_GRAYSCALE),
        "mask: inflating alone": lambda: [zlib.decompress(pixels_of(mask)) for mask in masks],
        "both to 112 px, masked": lambda: fitted(112),
        "both to 224 px, masked": lambda: fitted(224),
    }
    lines = [
        [what, f"{1e6 * min(own_seconds(step) for _ in range(rounds)) / len(films):.0f}"]
        for what, step in steps.items()
    ]
    click.echo(markdown([f"{len(films)} pairs", "core µs an image"], lines))
    equal = map(np.array_equal, greys, by_opencv(films, cv2.IMREAD_UNCHANGED))
    click.echo(f"\nOpenCV has the same pixels in {sum(equal)} films")
    click.echo(f"{machine()}, {versions('pillow', 'opencv-python-headless', 'numpy')}")


def own_seconds(step: Callable[[], object]) -> float:
    """Core time of this thread."""
    begun = time.thread_time()
    step()
    return time.thread_time() - begun


def pixels_of(png: bytes) -> bytes:
    """The deflated part of a PNG."""
    found, at = [], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            found.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(found)


if __name__ == "__main__":
    main()
