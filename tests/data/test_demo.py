from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from openpyxl import load_workbook
from PIL import Image

from cxr_mlflow.data import demo, phantom
from cxr_mlflow.data.catalog import load_catalog
from cxr_mlflow.data.demo import NUM_PER_CLASS, write_demo
from cxr_mlflow.data.duplicates import find_groups
from cxr_mlflow.data.locate import is_demo
from cxr_mlflow.data.preprocess import decode_mask
from cxr_mlflow.errors import InputError

SMALL = {"COVID": 2, "Lung_Opacity": 2, "Normal": 3, "Viral Pneumonia": 2}


def digests(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes_other_seed_other_films(tmp_path: Path, monkeypatch):
    first = digests(write_demo(tmp_path / "a", num_per_class=SMALL, seed=3))
    with monkeypatch.context() as patch:  # xlsx files carry dates, threads come in any order
        patch.setattr("cxr_mlflow.data.storage.NUM_THREADS", 1)
        patch.setattr("time.localtime", lambda *_: (2031, 5, 5, 5, 5, 5, 0, 125, 0))
        again = digests(write_demo(tmp_path / "b", num_per_class=SMALL, seed=3))
    other = digests(write_demo(tmp_path / "c", num_per_class=SMALL, seed=4))
    assert again == first
    assert first.keys() == other.keys()
    films = [name for name in first if name.endswith(".png")]
    assert len(films) == 2 * sum(SMALL.values())
    assert not [name for name in films if first[name] == other[name]]


def test_metadata_hold_no_date_of_the_day(demo_dir: Path):
    for path in demo_dir.glob("*.xlsx"):
        properties = load_workbook(path).properties
        assert (properties.created.year, properties.modified.year) == (2020, 2020)


def test_layout_is_that_of_the_release(demo_dir: Path):
    assert is_demo(demo_dir)
    assert "SYNTHETIC" in (demo_dir / "README.md.txt").read_text()
    modes = set()
    for name in NUM_PER_CLASS:
        images = {p.name for p in (demo_dir / name / "images").iterdir()}
        assert images == {f"{name}-{k}.png" for k in range(1, 25)}
        assert images == {p.name for p in (demo_dir / name / "masks").iterdir()}
        for file in images:
            with Image.open(demo_dir / name / "images" / file) as image:
                assert image.size == (299, 299)
                modes.add(image.mode)
            with Image.open(demo_dir / name / "masks" / file) as mask:
                assert (mask.size, mask.mode) == ((256, 256), "RGB")
                assert set(np.unique(np.asarray(mask))) == {0, 255}
            assert 0.1 < decode_mask(demo_dir / name / "masks" / file).mean() < 0.45
        told = pd.read_excel(demo_dir / f"{name}.metadata.xlsx")
        assert list(told.columns) == ["FILE NAME", "FORMAT", "SIZE", "URL"]
        spelled = "NORMAL" if name == "Normal" else name
        assert list(told["FILE NAME"]) == [f"{spelled}-{k}" for k in range(1, 25)]
    assert modes == {"L", "RGB"}


def test_the_reader_takes_it_without_a_complaint(demo_dir: Path, cache_dir: Path):
    catalog = load_catalog(demo_dir, cache_dir=cache_dir)
    assert len(catalog.table) == 96
    assert catalog.is_demo
    assert not catalog.problems["fatal"].any()
    sources = catalog.table.groupby("source")["class_name"].agg(set)
    assert "unknown" not in sources
    assert {"Normal", "Lung_Opacity"} in sources.tolist(), "one source is shared"
    assert catalog.table.groupby("class_name")["source"].nunique().max() > 1


def test_copies_are_found_and_nothing_else(tmp_path: Path, cache_dir: Path):
    root = write_demo(tmp_path / "demo", num_per_class={"COVID": 45, "Normal": 100}, seed=1)
    catalog = load_catalog(root, cache_dir=cache_dir)
    pairs = find_groups(catalog.thumbnails, catalog.table["pixel_hash"].tolist()).pairs
    names = catalog.table["class_name"].to_numpy()
    assert (names[pairs["i"]] == names[pairs["j"]]).all()
    assert list(pairs["exact"]).count(True) == 1
    assert sorted(names[pairs["i"]]) == ["COVID", "Normal", "Normal", "Normal"]


@pytest.mark.parametrize("class_name", NUM_PER_CLASS)
def test_a_class_shows_inside_the_lungs_and_nowhere_else(class_name: str):
    changes = []
    for number in range(12):
        clean, clean_mask = phantom.draw_film("Normal", (9, number))
        film, mask = phantom.draw_film(class_name, (9, number))
        assert (mask == clean_mask).all(), "the outline of the lungs tells the class"
        inside = np.asarray(Image.fromarray(mask).resize(film.shape)) > 0
        outside = ~grown(inside, by=2)
        assert (film[outside] == clean[outside]).all(), "something outside of the lungs tells it"
        changes.append(np.abs(film.astype(int) - clean)[inside].mean())
    assert (max(changes) == 0) if class_name == "Normal" else (min(changes) > 0.5)


def grown(area: np.ndarray, by: int) -> np.ndarray:
    for _ in range(by):
        padded = np.pad(area, 1)
        area = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | area
    return area


def test_classes_have_streams_of_their_own(demo_dir: Path):
    """Film k of one class is not film k of another with a finding drawn into it."""
    masks = [decode_mask(demo_dir / n / "masks" / f"{n}-1.png") for n in NUM_PER_CLASS]
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_films_are_radiograph_like(demo_dir: Path):
    """Dark lungs beside a bright middle, black air in the corners, and no film like another."""
    for path in sorted((demo_dir / "Normal" / "images").iterdir())[:12]:
        image = np.asarray(Image.open(path).convert("L")).astype(float)
        mask = Image.open(demo_dir / "Normal" / "masks" / path.name).convert("L")
        lungs = np.asarray(mask.resize(image.shape)) > 127
        middle = image[150:200, 130:170][~lungs[150:200, 130:170]].mean()
        assert image[lungs].mean() < 0.6 * middle
        assert image[lungs].std() > 5, "ribs and vessels"
        assert min(image[:12, :12].mean(), image[:12, -12:].mean()) < 60


def test_refusals_name_the_folder_or_the_number(tmp_path: Path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="full: not an empty folder"):
        write_demo(tmp_path / "full", num_per_class=SMALL)
    with pytest.raises(InputError, match=r"thesis\.txt: not an empty folder"):
        write_demo(tmp_path / "full" / "thesis.txt", num_per_class=SMALL)
    with pytest.raises(InputError, match="at least one"):
        write_demo(tmp_path / "new", num_per_class=0)
    with pytest.raises(InputError, match="no class 'Flu'"):
        write_demo(tmp_path / "new", num_per_class={"Flu": 3})
    with pytest.raises(InputError, match="--seed=-1"):
        write_demo(tmp_path / "new", num_per_class=SMALL, seed=-1)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_metadata", stop)
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "demo", num_per_class=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_and_a_twin_is_kept(tmp_path: Path, monkeypatch):
    folder = tmp_path / "demo"
    folder.mkdir()
    assert write_demo(folder, num_per_class=SMALL) == folder
    assert is_demo(folder)
    before = digests(folder)

    def be_late(root: Path, *args: object) -> None:  # another process finishes while we draw
        if not folder.exists():
            shutil.copytree(twin, folder)
        draw(root, *args)

    draw, twin = demo._write_class, folder.rename(tmp_path / "twin")
    monkeypatch.setattr(demo, "_write_class", be_late)
    assert write_demo(folder, num_per_class=SMALL) == folder
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="not an empty folder"):
        write_demo(folder, num_per_class=SMALL, seed=1)
    assert digests(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo", "twin"]


def test_drawing_needs_no_torch():
    code = (
        "import sys; from cxr_mlflow.data.demo import write_demo; "
        "sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
