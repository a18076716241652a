"""That a start from remembered readings is the same as a first one, whatever has changed since."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from cxr_mlflow.data import scan as scanning
from cxr_mlflow.data.catalog import scan_catalog
from cxr_mlflow.data.duplicates import find_groups
from cxr_mlflow.data.splits import make_split


def catalog_of(root: Path, cache_dir: Path):
    return scan_catalog(root, cache_dir=cache_dir)


def assert_same(one, other) -> None:
    pd.testing.assert_frame_equal(one.table, other.table)
    pd.testing.assert_frame_equal(one.problems, other.problems)
    np.testing.assert_array_equal(one.thumbnails, other.thumbnails)
    assert (one.digest, one.classes) == (other.digest, other.classes)


@pytest.fixture
def files_read(monkeypatch) -> list[str]:
    """Names of the files that are decoded, as they are."""
    names: list[str] = []
    read = scanning.read_file

    def noted(root, path, *told):
        names.append(path)
        return read(root, path, *told)

    monkeypatch.setattr(scanning, "read_file", noted)
    return names


def add_image(root, make_texture):
    for kind in ("images", "masks"):
        shutil.copy(root / f"COVID/{kind}/COVID-1.png", root / f"COVID/{kind}/COVID-10.png")
    Image.fromarray(make_texture(77)).save(root / "COVID/images/COVID-10.png")
    return {"COVID/images/COVID-10.png", "COVID/masks/COVID-10.png"}


def remove_image(root, make_texture):
    for kind in ("images", "masks"):
        (root / f"COVID/{kind}/COVID-2.png").unlink()
    return set()


def rename_image(root, make_texture):
    for kind in ("images", "masks"):
        (root / f"COVID/{kind}/COVID-1.png").rename(root / f"COVID/{kind}/COVID-1 (a).png")
    return {"COVID/images/COVID-1 (a).png", "COVID/masks/COVID-1 (a).png"}


def repaint_image(root, make_texture):
    Image.fromarray(make_texture(78)).save(root / "Normal/images/Normal-2.png")
    return {"Normal/images/Normal-2.png"}


def touch_mask(root, make_texture):
    os.utime(root / "Normal/masks/Normal-2.png", ns=(1, 1))
    return {"Normal/masks/Normal-2.png"}


def damage_image(root, make_texture):
    path = root / "Normal/images/Normal-1.png"
    path.write_bytes(path.read_bytes()[:-99])
    return {"Normal/images/Normal-1.png"}


def nothing(root, make_texture):
    return set()


CHANGES = [add_image, remove_image, rename_image, repaint_image, touch_mask, damage_image, nothing]


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_all_is_as_in_a_first_reading_and_only_that_is_read(
    make_dataset, texture, tmp_path, files_read, change
):
    root = make_dataset()
    before = catalog_of(root, tmp_path / "cache")
    kept = dataclasses.replace(before, thumbnails=before.thumbnails.copy())
    files_read.clear()
    wanted = change(root, texture)
    after = catalog_of(root, tmp_path / "cache")
    assert set(files_read) == wanted
    assert_same(after, catalog_of(root, tmp_path / "fresh"))
    files_read.clear()
    assert_same(catalog_of(root, tmp_path / "cache"), after)
    assert not files_read
    assert_same(before, kept)  # what an earlier call handed out is not changed under its holder


def test_rows_and_thumbnails_go_by_class_and_stem_whatever_the_order_of_files(
    make_dataset, texture, tmp_path
):
    root = make_dataset(classes=("A", "A b"))
    for number, name in enumerate(("A-1 (2)", "A-1-2", "A-1.5", "a-0"), start=50):
        Image.fromarray(texture(number)).save(root / f"A/images/{name}.png")
        shutil.copy(root / "A/masks/A-1.png", root / f"A/masks/{name}.png")
    for _ in range(2):
        catalog = catalog_of(root, tmp_path / "cache")
        stems = [(name.split("/")[0], name.split("/")[1]) for name in catalog.table["image_id"]]
        assert stems == sorted(stems)
        assert stems[0] == ("A", "A-1")  # its file comes after "A-1 (2).png" and "A-1-2.png"
        assert stems[-1] == ("A b", "A b-3")
        for path, thumbnail in zip(catalog.table["path"], catalog.thumbnails, strict=True):
            small = Image.open(path).resize((32, 32), Image.Resampling.BOX)
            np.testing.assert_array_equal(thumbnail, np.asarray(small))


def test_an_interrupted_reading_goes_on_where_it_stopped(
    make_dataset, tmp_path, monkeypatch, files_read
):
    root = make_dataset()
    catalog_of(root, tmp_path / "cache")
    for path in sorted(root.rglob("*.png"))[2:]:
        os.utime(path, ns=(1, 1))
    read = scanning.read_file

    def interrupted(root, path, *told):
        if path == "Normal/images/Normal-1.png":
            raise KeyboardInterrupt
        return read(root, path, *told)

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "read_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            catalog_of(root, tmp_path / "cache")
    files_read.clear()
    after = catalog_of(root, tmp_path / "cache")
    assert {path.split("/")[0] for path in files_read} == {"Normal"}
    assert "Normal/images/Normal-1.png" in files_read
    assert_same(after, catalog_of(root, tmp_path / "fresh"))


def test_a_file_that_could_not_be_read_is_tried_again(
    make_dataset, tmp_path, monkeypatch, files_read
):
    root = make_dataset()
    film, aside = root / "COVID/images/COVID-2.png", tmp_path / "aside.png"
    read = scanning.read_file

    def late(root, path, *told):
        if path == "COVID/images/COVID-2.png":
            film.rename(aside)  # between the listing and the reading
        return read(root, path, *told)

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "read_file", late)
        assert catalog_of(root, tmp_path / "cache").problems["problem"].tolist() == ["unreadable"]
    aside.rename(film)  # size and time of change are as they were
    files_read.clear()
    assert len(catalog_of(root, tmp_path / "cache").table) == 6
    assert files_read == ["COVID/images/COVID-2.png"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def zeroed(content: bytes) -> bytes:
    middle = len(content) // 4
    return content[:middle] + bytes(len(content) - 2 * middle) + content[-middle:]


def another_table(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"path": ["COVID/images/COVID-1.png"]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("spoil", [cut, zeroed, another_table, lambda content: b""])
def test_readings_that_are_damaged_on_the_disk_are_made_again(make_dataset, tmp_path, spoil):
    root = make_dataset()
    first = catalog_of(root, tmp_path / "cache")
    kept = dataclasses.replace(first, thumbnails=first.thumbnails.copy())
    (store,) = (tmp_path / "cache" / "scans").glob("*.arrow")
    spoiled = spoil(store.read_bytes())
    store.unlink()  # another file: what is mapped stays as it is
    store.write_bytes(spoiled)
    for _ in range(2):
        assert_same(catalog_of(root, tmp_path / "cache"), kept)


def test_films_are_read_and_divided_as_they_ever_were(make_dataset, tmp_path):
    """Digests of films drawn in whole numbers: every processor draws them alike.

    Who changes one of them on purpose ends all splits, caches and interrupted runs that users have.
    """
    root = make_dataset(count=20)
    images = root / "COVID" / "images"
    shutil.copy(images / "COVID-3.png", images / "COVID-7.png")
    catalog = catalog_of(root, tmp_path / "cache")
    groups = find_groups(catalog.thumbnails, catalog.table["pixel_hash"].tolist()).groups
    found = [catalog.digest]
    for seed in (0, 1):
        split = make_split(catalog, groups, val_fraction=0.1, test_fraction=0.2, seed=seed)
        found += [split.digest, split.test_digest]
    assert [digest[:16] for digest in found] == [
        "3db98eddb15a8ee0",
        "8f59f4e6793432e0",
        "a254a15d35aa00b2",
        "86bf7a04e6698359",
        "3c221f7b1ed699ab",
    ]


def test_a_start_loads_nothing_that_only_training_or_drawing_needs():
    heavy = ("torch", "mlflow", "matplotlib", "scipy", "sklearn", "albumentations", "cv2")
    code = f"import sys, cxr_mlflow.data.prepare; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
