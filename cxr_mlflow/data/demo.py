"""Writes the demo data: synthetic radiographs in the Kaggle layout, for a run with no download."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from openpyxl import Workbook
from PIL import Image

from cxr_mlflow.data.phantom import Pixels, draw_film
from cxr_mlflow.data.storage import explained, in_threads
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import DEMO_MARKER

DEMO_VERSION = "2"
"""Part of the cache folder's name: raise it whenever a drawn pixel changes."""
NUM_PER_CLASS = {"COVID": 90, "Lung_Opacity": 110, "Normal": 180, "Viral Pneumonia": 60}
SOURCES = {  # pretend hospitals and their shares; two are shared by classes, as in the release
    "COVID": {"https://coast.example.org/films": 0.6, "https://harbour.example.org/films": 0.4},
    "Lung_Opacity": {"https://plains.example.org/challenge": 1.0},
    "Normal": {"https://plains.example.org/challenge": 0.8, "https://hills.example.org/": 0.2},
    "Viral Pneumonia": {"https://hills.example.org/": 1.0},
}
RGB_SHARE = 0.06
"""Share of the films stored as RGB, in every class alike."""
README = """SYNTHETIC DATA - NOT RADIOGRAPHS OF ANYBODY

Drawn by cxr_mlflow (cxr_mlflow/data/demo.py), version {version}, seed {seed}, in the layout of the
COVID-19 Radiography Database, so that the whole pipeline can be tried without a download.
Scores on these images say that the software works. They say nothing about medicine.
"""


def write_demo(
    folder: Path, *, num_per_class: Mapping[str, int] | int | None = None, seed: int = 0
) -> Path:
    """Write the demo data set; `folder` itself becomes the data set root.

    Everything is drawn into a temporary folder beside it, which is renamed at the end: a killed
    run leaves no half data set. The same arguments give the same files, byte for byte, with the
    same versions of NumPy, SciPy and Pillow on the same kind of processor: one with AVX-512 rounds
    a few grey values otherwise.

    Parameters
    ----------
    folder : Path
        Must be empty or not there yet.
    num_per_class : mapping or int, optional
        Images per class, `NUM_PER_CLASS` by default; an int stands for every class.
    seed : int
        Seeds every film: film k of a class depends on (seed, class, k) alone.

    Returns
    -------
    Path
        `folder`, with CLASS/images, CLASS/masks, CLASS.metadata.xlsx, README.md.txt and `DEMO`.

    Raises
    ------
    InputError
        If the folder holds something, or a number of images is below 1 or of an unknown class.
    """
    if num_per_class is None:
        num_per_class = NUM_PER_CLASS
    elif isinstance(num_per_class, int):
        num_per_class = dict.fromkeys(NUM_PER_CLASS, num_per_class)
    if unknown := sorted(set(num_per_class) - set(NUM_PER_CLASS)):
        raise InputError(f"the demo has no class {unknown[0]!r}; it has {', '.join(NUM_PER_CLASS)}")
    if min(num_per_class.values(), default=0) < 1:
        raise InputError("the demo needs at least one image per class")
    if seed < 0:
        raise InputError(f"--seed={seed} must not be negative")
    _check_empty(folder)
    marker = f"cxr_mlflow demo data, version {DEMO_VERSION}, seed {seed}, {dict(num_per_class)}\n"
    with explained(folder.parent, "name another folder for the demo data"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name.lstrip('.')}-"
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            temporary.chmod(0o755)  # mkdtemp keeps others out
            for name, count in num_per_class.items():
                _write_class(temporary, name, count, seed)
            readme = README.format(version=DEMO_VERSION, seed=seed)
            (temporary / "README.md.txt").write_text(readme, encoding="utf-8")
            (temporary / DEMO_MARKER).write_text(marker, encoding="utf-8")
            _move_into_place(temporary, folder, marker)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: not an empty folder; name a new one for the demo data")


def _move_into_place(temporary: Path, folder: Path, marker: str) -> None:
    """Rename; if another process put the same demo set there meanwhile, that one stays."""
    try:
        if folder.exists():
            folder.rmdir()
        os.rename(temporary, folder)
    except OSError:
        there = folder / DEMO_MARKER
        if there.is_file() and there.read_text(encoding="utf-8") == marker:
            return
        _check_empty(folder)
        raise


def _write_class(root: Path, name: str, count: int, seed: int) -> None:
    """Write images, masks and the table of one class."""
    index = sorted(NUM_PER_CLASS).index(name)
    rng = np.random.default_rng((seed, index))
    copies = _choose_copies(count, rng)
    urls = rng.choice(list(SOURCES[name]), size=count, p=list(SOURCES[name].values()))
    for kind in ("images", "masks"):
        (root / name / kind).mkdir(parents=True)

    def write_film(number: int) -> tuple[str, str, str, str]:
        original, near = copies.get(number, (number, False))
        pixels, lungs = draw_film(name, (seed, index, original))
        rng = np.random.default_rng((seed, index, number, 2))  # of the file, not of the film
        image = Image.fromarray(_store_again(pixels, rng) if near else pixels)
        if rng.random() < RGB_SHARE:
            image = image.convert("RGB")
        image.save(root / name / "images" / f"{name}-{number}.png", compress_level=1)
        mask = Image.fromarray(lungs).convert("RGB")
        mask.save(root / name / "masks" / f"{name}-{number}.png", compress_level=1)
        told = name.upper() if name == "Normal" else name  # spelled and sized as in the release
        return f"{told}-{number}", "PNG", "256*256", str(urls[original - 1])

    rows = list(in_threads(write_film, range(1, count + 1)))
    _write_metadata(root / f"{name}.metadata.xlsx", rows)


def _choose_copies(count: int, rng: np.random.Generator) -> dict[int, tuple[int, bool]]:
    """Say which numbers show another film again: number -> (its number, whether it changed)."""
    kinds = [False] * (count // 100) + [True] * round(count / 45)
    numbers = rng.permutation(np.arange(1, count + 1))[: 2 * len(kinds)].reshape(-1, 2).tolist()
    return {copy: (original, near) for (original, copy), near in zip(numbers, kinds, strict=True)}


def _store_again(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Scale a film down and up, shift its contrast a little and compress it, as archives do."""
    side = int(rng.integers(200, 260))
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR)
    gain, offset = rng.uniform(0.92, 1.05), rng.uniform(-5, 10)
    levels = np.clip(np.asarray(small.resize(pixels.shape[::-1])) * gain + offset, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(75, 93)))
    return np.asarray(Image.open(buffer))


def _write_metadata(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    """Write the class's table, with the dates that openpyxl puts in taken out."""
    book = Workbook()
    sheet = book.active
    for row in (("FILE NAME", "FORMAT", "SIZE", "URL"), *rows):
        sheet.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as dated, zipfile.ZipFile(path, "w") as dateless:
        for name in dated.namelist():
            content = re.sub(
                rb"20\d\d-\d\d-\d\dT[\d:.]+Z", b"2020-01-01T00:00:00Z", dated.read(name)
            )
            member = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            dateless.writestr(member, content, zipfile.ZIP_DEFLATED)
