"""That copies of a film are found in whatever shape, and that other films are left apart."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_mlflow.data import duplicates
from cxr_mlflow.data.catalog import load_catalog
from cxr_mlflow.data.contact_sheet import plot_contact_sheet
from cxr_mlflow.data.duplicates import find_groups
from cxr_mlflow.data.scan import hash_pixels, shrink


def jpeg(pixels, quality=40):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def scaled(pixels, side):
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def cut(pixels, top, bottom, left, right):
    height, width = pixels.shape
    return pixels[top : height - bottom, left : width - right]


def labelled(pixels):
    written = pixels.copy()
    written[8:24, 8:64] = 255
    return written


CHANGES = {
    "scaled and compressed": lambda p: jpeg(scaled(p, 150)),
    "scaled up": lambda p: scaled(p, 400),
    "cropped by 4 % all round": lambda p: cut(p, 9, 9, 9, 9),
    "cropped on two sides": lambda p: cut(p, 9, 0, 0, 9),
    "brighter and flatter": lambda p: (p * 0.7 + 60).astype(np.uint8),
    "another gamma": lambda p: (255 * (p / 255.0) ** 1.6).astype(np.uint8),
    "a label burnt in": labelled,
    "turned by a degree": lambda p: np.asarray(
        Image.fromarray(p).rotate(1, Image.Resampling.BILINEAR)
    ),
}


def search(images, **options):
    thumbnails = np.stack([shrink(np.ascontiguousarray(image)) for image in images])
    return find_groups(thumbnails, [hash_pixels(image) for image in images], **options)


@pytest.fixture
def films(texture):
    return [texture(seed, side=224) for seed in range(30)]


def test_unrelated_images_stay_apart(films):
    found = search(films)
    assert found.groups.tolist() == list(range(30))
    assert found.pairs.empty
    assert found.groups.dtype == np.int64


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_joins_its_original_and_nothing_else(films, change):
    found = search([*films, *map(change, films)])
    assert found.groups.tolist() == [*range(30), *range(30)]
    assert not found.pairs["exact"].any()
    assert (found.pairs["i"] < found.pairs["j"]).all()


def test_exact_copies_are_marked_and_linked_through_one(films):
    found = search([films[0], films[1], films[0], films[0], jpeg(films[0])])
    assert found.groups.tolist() == [0, 1, 0, 0, 0]
    assert found.pairs[["i", "j", "exact"]].to_numpy().tolist() == [
        [0, 2, True],
        [0, 3, True],
        [0, 4, False],
    ]


def test_chains_of_copies_are_one_group(films):
    once = cut(films[0], 7, 0, 7, 0)
    twice = cut(once, 7, 0, 7, 0)
    assert search([films[0], twice]).pairs.empty  # too far by themselves
    assert search([films[0], twice, once]).groups.tolist() == [0, 0, 0]


def test_the_result_does_not_depend_on_order_or_block_size(films, monkeypatch):
    images = [*films, *map(CHANGES["cropped on two sides"], films[:9]), films[3], films[3]]
    whole = search(images)
    monkeypatch.setattr(duplicates, "_TILE", 7)
    monkeypatch.setattr(duplicates, "_BATCH", 2)
    pd.testing.assert_frame_equal(search(images).pairs, whole.pairs)
    order = np.random.default_rng(0).permutation(len(images))
    turned = search([images[k] for k in order])

    def partition(groups):
        return {frozenset(np.flatnonzero(groups == g)) for g in groups}

    back = {frozenset(order[list(part)]) for part in partition(turned.groups)}
    assert back == partition(whole.groups)


def test_flat_thumbnails_are_like_nothing():
    flat = np.zeros((3, 32, 32), np.uint8)
    assert find_groups(flat, ["a", "b", "c"]).groups.tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_few_images_are_no_special_case(films, count):
    thumbnails = np.zeros((count, 32, 32), np.uint8)
    assert find_groups(thumbnails, ["a"] * count).groups.tolist() == [0] * count


def test_the_result_is_kept_and_belongs_to_its_input(films, tmp_path):
    images = [*films[:5], jpeg(films[2])]
    first = search(images, cache_dir=tmp_path)
    (store,) = (tmp_path / "duplicates").iterdir()
    kept = pd.read_parquet(store).assign(similarity=0.5)
    kept.to_parquet(store)
    assert search(images, cache_dir=tmp_path).pairs["similarity"].tolist() == [0.5]  # from there
    assert search(images[:-1], cache_dir=tmp_path).pairs.empty
    assert search(images, cache_dir=tmp_path, threshold=0.7).pairs.equals(first.pairs)


def test_the_contact_sheet_shows_the_doubtful_groups_first(films, tmp_path):
    images = [films[0], films[1], films[0], CHANGES["cropped on two sides"](films[1]), films[2]]
    paths = [tmp_path / f"{k}.png" for k in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    table = pd.DataFrame({"path": map(str, paths), "image_id": [f"COVID/{k}" for k in range(5)]})
    found = search(images)
    figure = plot_contact_sheet(table, found, max_groups=1)
    assert "2 groups of duplicates hold 4 images" in figure.get_suptitle()
    (axes,) = figure.axes
    assert [text.get_text().split()[-1] for text in axes.texts] == ["1", "3"]
    sheet = np.asarray(axes.images[0].get_array())
    for text, image in zip(axes.texts, (images[1], images[3]), strict=True):
        x, y = map(int, text.get_position())
        cell = Image.fromarray(sheet[y + 4 : y + 132, x - 64 : x + 64])
        shown = np.asarray(cell.resize(image.shape[::-1]))
        assert np.corrcoef(shown.ravel(), image.ravel())[0, 1] > 0.98
    plot_contact_sheet(table.iloc[[4]], search(images[4:]))  # nothing to show is no error


@pytest.mark.data
@pytest.mark.slow
def test_known_copies_in_the_real_data_are_found_and_no_two_classes_joined(repo, cache_dir):
    root = repo / "data" / "full" / "COVID-19_Radiography_Dataset"
    if not root.is_dir():
        pytest.skip("no real X-rays here: data/full is not unpacked")
    catalog = load_catalog(root, cache_dir=cache_dir)
    groups = find_groups(catalog.thumbnails, catalog.table["pixel_hash"]).groups
    assert pd.Series(groups).groupby(groups).size().max() < 12
    classes = catalog.table.groupby(groups)["class_name"].nunique()
    assert (classes == 1).all()  # no film of this pack is in two classes
    group_of = dict(zip(catalog.table["image_id"], groups, strict=True))
    seen_by_eye = [
        ("COVID-379", "COVID-460"),  # "day 1" written on one
        ("COVID-1562", "COVID-452"),  # cropped otherwise
        ("COVID-1173", "COVID-464"),  # other contrast
        ("COVID-1076", "COVID-369"),  # date and arrows on one
    ]
    for one, other in seen_by_eye:
        assert group_of[f"COVID/{one}"] == group_of[f"COVID/{other}"]
    lookalikes = [
        ("COVID/COVID-1933", "Normal/Normal-8989"),
        ("COVID/COVID-2099", "Normal/Normal-8663"),
    ]
    for one, other in lookalikes:
        assert group_of[one] != group_of[other]
