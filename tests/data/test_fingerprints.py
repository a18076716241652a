"""Copies of training images are found from what the run kept, by the decision of the split."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cxr_mlflow.data.catalog import load_catalog
from cxr_mlflow.data.duplicates import THRESHOLD, find_groups, find_matches
from cxr_mlflow.data.fingerprints import (
    find_copies,
    load_fingerprints,
    plot_copies,
    save_fingerprints,
)
from cxr_mlflow.data.layout import read_layout
from cxr_mlflow.data.scan import hash_pixels, shrink
from cxr_mlflow.data.splits import make_split
from cxr_mlflow.errors import InputError


def jpeg(pixels, side=150, quality=60):
    buffer = io.BytesIO()
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    small.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def prints(images):
    thumbnails = np.stack([shrink(np.ascontiguousarray(image)) for image in images])
    return thumbnails, [hash_pixels(image) for image in images]


@pytest.fixture
def trained(make_dataset, cache_dir):
    """A catalog of 20 films, and a split of it."""
    catalog = load_catalog(make_dataset("ours", count=10), cache_dir=cache_dir)
    groups = np.arange(len(catalog.table))
    return catalog, make_split(catalog, groups, val_fraction=0.2, test_fraction=0.2, seed=0)


def test_two_sets_are_matched_as_one_set_is_grouped(texture):
    known = [texture(seed, side=96) for seed in range(40)]
    changed = [np.clip(known[k] * 0.8 + 20, 0, 255).astype(np.uint8) for k in (3, 7)]
    shifted = [np.roll(known[10 + k], k, axis=0) for k in range(1, 11)]
    asked = [*changed, *shifted, known[30], *(texture(seed, side=96) for seed in range(100, 120))]
    found = find_matches(*prints(asked), *prints(known))
    both = find_groups(*prints([*asked, *known]))
    across = both.pairs[(both.pairs["i"] < len(asked)) & (both.pairs["j"] >= len(asked))]
    expected = set(zip(across["i"], across["j"] - len(asked), strict=True))
    assert set(zip(found["i"], found["j"], strict=True)) == expected
    assert {(0, 3), (1, 7), (12, 30)} <= expected
    assert 3 < len(expected) < 13, "some of the shifted films are found, and some are not"
    exact = found[found["exact"]]
    assert exact[["i", "j", "similarity"]].to_numpy().tolist() == [[12, 30, 1.0]]
    assert (found["similarity"] >= THRESHOLD).all()


def test_fingerprints_hold_what_was_learnt_from_and_nothing_tested(trained, tmp_path):
    catalog, split = trained
    path = tmp_path / "data" / "fingerprints.npz"
    save_fingerprints(path, catalog, split)
    seen = load_fingerprints(path)
    kept = split.table[split.table["split"] != "test"]
    assert seen.image_ids.tolist() == kept["image_id"].tolist()
    assert seen.splits.tolist() == kept["split"].tolist()
    assert seen.pixel_hashes.tolist() == kept["pixel_hash"].tolist()
    np.testing.assert_array_equal(seen.thumbnails, catalog.thumbnails[kept.index])
    assert seen.thumbnails.dtype == np.uint8


def test_a_film_seen_in_training_goes_with_all_that_is_like_it(
    trained, make_dataset, texture, tmp_path, cache_dir
):
    catalog, split = trained
    path = tmp_path / "prints.npz"
    save_fingerprints(path, catalog, split)
    seen = load_fingerprints(path)
    other = make_dataset("theirs", classes=("sick", "well"), count=6)
    trained_on = split.table.index[split.table["split"] == "train"][:3]
    originals = [np.asarray(Image.open(catalog.table["path"][row])) for row in trained_on]
    tested = np.asarray(Image.open(catalog.table["path"][split.rows("test")[0]]))
    for number in range(1, 7):  # films of their own, unlike ours
        for label, name in enumerate(("sick", "well")):
            image = Image.fromarray(texture(1000 + 10 * label + number))
            image.save(other / name / "images" / f"{name}-{number}.png")
    Image.fromarray(originals[0]).save(other / "sick" / "images" / "sick-1.png")
    Image.fromarray(jpeg(originals[1])).save(other / "sick" / "images" / "sick-2.png")
    Image.fromarray(tested).save(other / "well" / "images" / "well-1.png")
    theirs = load_catalog(other, cache_dir=cache_dir)
    rows = np.arange(len(theirs.table))
    groups = rows.copy()
    groups[3] = groups[1]  # sick-4 shows the film of sick-2, by the search among their own
    copies = find_copies(theirs, groups, rows, seen)
    told = copies.table.set_index("image_id")
    assert told.index.tolist() == ["sick/sick-1", "sick/sick-2", "sick/sick-4"]
    assert told["found"].tolist() == ["exact", "near", "through"]
    ids = catalog.table["image_id"][trained_on].tolist()
    assert told["training_image"].tolist() == [ids[0], ids[1], ids[1]]
    assert set(told["training_split"]) == {"train"}
    assert told["similarity"].iloc[0] == 1
    assert THRESHOLD <= told["similarity"].iloc[1] < 1
    assert np.isnan(told["similarity"].iloc[2])
    assert copies.rows.tolist() == [0, 1, 3]
    part = find_copies(theirs, groups, rows[4:], seen)
    assert part.table.empty, "only rows that are to be scored are looked at"
    assert len(part.rows) == 0
    figure = plot_copies(theirs, copies, seen)
    assert "3 images" in figure.get_suptitle()
    assert sum(bool(axes.images) for axes in figure.axes) == 4, "two direct copies, in pairs"


def test_files_that_are_no_fingerprints_are_refused(trained, tmp_path):
    catalog, split = trained
    path = tmp_path / "prints.npz"
    save_fingerprints(path, catalog, split)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:80] + b"\0" * 40 + whole[120:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"prints\.npz: no readable fingerprints"):
            load_fingerprints(path)
    np.savez(path, version=np.int64(1), image_ids=np.array([b"a"]))
    with pytest.raises(InputError, match="no readable fingerprints"):
        load_fingerprints(path)
    columns = dict.fromkeys(("image_ids", "splits", "pixel_hashes"), np.array([b"a"]))
    np.savez(path, version=np.int64(2), thumbnails=np.zeros((1, 32, 32), np.uint8), **columns)
    with pytest.raises(InputError, match="version 2"):
        load_fingerprints(path)
    np.savez(path, version=np.int64(1), thumbnails=np.zeros((2, 32, 32), np.uint8), **columns)
    with pytest.raises(InputError, match="different lengths"):
        load_fingerprints(path)


def test_nothing_is_found_in_an_empty_set(texture):
    known = prints([texture(1)])
    nothing = np.empty((0, 32, 32), np.uint8), []
    for pair in ((nothing, known), (known, nothing)):
        assert find_matches(*pair[0], *pair[1]).empty


def test_names_that_are_not_ascii_come_back(trained, tmp_path):
    catalog, split = trained
    table = split.table.assign(image_id=[f"Lunge é/{k} 肺" for k in range(len(split.table))])
    save_fingerprints(tmp_path / "prints.npz", catalog, replace(split, table=table))
    kept = table[table["split"] != "test"]["image_id"]
    assert load_fingerprints(tmp_path / "prints.npz").image_ids.tolist() == kept.tolist()


def test_folders_of_plain_images_are_classes_too(make_dataset, tmp_path, cache_dir):
    ours, flat = make_dataset("kaggle", count=2), tmp_path / "flat"
    flat.mkdir()
    for name in ("COVID", "Normal"):
        (ours / name / "images").rename(flat / name)
        (ours / name / "masks").rename(flat / name / "masks")
    (flat / "notes").mkdir()
    layout = read_layout(flat)
    assert layout.classes == ("COVID", "Normal")
    catalog = load_catalog(tmp_path / "flat", cache_dir=cache_dir)
    assert catalog.table["image_id"].tolist() == [
        f"{name}/{name}-{n}" for name in ("COVID", "Normal") for n in (1, 2)
    ]
    assert (catalog.table["mask_path"] != "").all(), "masks may lie in CLASS/masks"
    assert set(catalog.problems["problem"]) == {"no_metadata", "unknown_folder"}
