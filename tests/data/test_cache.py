"""That cached pixels are the prepared pixels, are made once, and are never half there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_mlflow.data.cache import PixelCache, cache_key, load_cache
from cxr_mlflow.data.catalog import load_catalog
from cxr_mlflow.data.preprocess import decode_grey, decode_mask, fit_to_size
from cxr_mlflow.errors import InputError


@pytest.fixture
def catalog(make_dataset, tmp_path):
    return load_catalog(make_dataset(), cache_dir=tmp_path / "cache")


def load(catalog, tmp_path, mask_mode="lungs", size=32):
    cache_dir = tmp_path / "cache"
    return load_cache(catalog, image_size=size, mask_mode=mask_mode, cache_dir=cache_dir)


def made(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "pixels").iterdir() if p.is_dir())


@pytest.mark.parametrize("mask_mode", ["lungs", "none", "crop", "lungs-crop"])
def test_the_cache_holds_what_preprocessing_gives(catalog, tmp_path, mask_mode):
    cache = load(catalog, tmp_path, mask_mode)
    assert cache.images.shape == cache.masks.shape == (6, 32, 32)
    for row in catalog.table.itertuples():
        image, mask = decode_grey(Path(row.path)), decode_mask(Path(row.mask_path))
        image, mask = fit_to_size(image, mask, 32, mask_mode)
        np.testing.assert_array_equal(cache.images[row.Index], image)
        np.testing.assert_array_equal(cache.masks[row.Index], mask)


def test_an_image_without_a_mask_gets_ones(make_dataset, tmp_path):
    root = make_dataset()
    (root / "COVID/masks/COVID-2.png").unlink()
    catalog = load_catalog(root, mask_mode="none", cache_dir=tmp_path / "cache")
    cache = load(catalog, tmp_path, "none")
    assert (cache.masks[1] == 1).all()
    assert (cache.masks[0] == 0).any()


def test_nobody_can_write_into_it(catalog, tmp_path):
    cache = load(catalog, tmp_path)
    for array in (cache.images, cache.masks):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_it_is_made_once(catalog, tmp_path):
    first = load(catalog, tmp_path)
    for path in [*catalog.table["path"], *catalog.table["mask_path"]]:
        Path(path).unlink()  # from now on nothing can be decoded
    again = load(catalog, tmp_path)
    assert again.key == first.key
    np.testing.assert_array_equal(again.images, first.images)


def test_modes_share_a_cache_where_the_pixels_are_the_same(catalog, tmp_path):
    keys = {
        mode: load(catalog, tmp_path, mode).key for mode in ("lungs", "none", "crop", "lungs-crop")
    }
    assert keys["lungs"] == keys["none"] != keys["crop"] == keys["lungs-crop"]
    assert load(catalog, tmp_path, size=40).key not in keys.values()
    assert len(made(tmp_path)) == 3


def test_other_pixels_have_another_key(make_dataset, catalog, tmp_path):
    key = cache_key(catalog, image_size=32, mask_mode="lungs")
    path = Path(catalog.table["mask_path"][0])
    Image.new("L", (48, 48), 255).save(path)
    changed = load_catalog(catalog.root, cache_dir=tmp_path / "cache")
    assert cache_key(changed, image_size=32, mask_mode="lungs") != key


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "other shape"])
def test_a_damaged_cache_is_made_again(catalog, tmp_path, damage):
    first = load(catalog, tmp_path)
    whole = np.array(first.masks)
    path = first.folder / "masks.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "removed":
        path.unlink()
    else:
        np.save(path, whole[:-1])
    np.testing.assert_array_equal(load(catalog, tmp_path).masks, whole)


def test_what_a_killed_process_left_is_not_used_and_goes(catalog, tmp_path):
    key = cache_key(catalog, image_size=32, mask_mode="lungs")
    torn = tmp_path / "cache" / "pixels" / f".{key}-building"
    torn.mkdir(parents=True)
    (torn / "images.npy").write_bytes(b"half")
    assert load(catalog, tmp_path).images.shape == (6, 32, 32)
    assert not torn.exists()


def test_an_image_changed_since_the_catalog_is_named_and_nothing_is_kept(catalog, tmp_path):
    path = Path(catalog.table["path"][2])
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(InputError, match=r"COVID-3\.png: changed"):
        load(catalog, tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"COVID-3\.png"):
        load(catalog, tmp_path)
    assert made(tmp_path) == []


def test_loader_processes_get_the_place_and_not_the_pixels(catalog, tmp_path):
    cache = load(catalog, tmp_path, size=256)
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    opened = pickle.loads(packed)
    np.testing.assert_array_equal(opened.images, cache.images)
    assert isinstance(opened.images, np.memmap)
    in_memory = PixelCache(np.ones((2, 4, 4), np.uint8), np.ones((2, 4, 4), np.uint8), "key")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(in_memory)).masks, in_memory.masks)


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from cxr_mlflow.data.cache import load_cache
from cxr_mlflow.data.catalog import load_catalog

def run(root, cache, size=64):
    catalog = load_catalog(Path(root), cache_dir=Path(cache))
    return load_cache(catalog, image_size=size, mask_mode="lungs", cache_dir=Path(cache))
"""


@pytest.mark.slow
def test_processes_that_come_at_once_share_one_cache(make_dataset, tmp_path):
    root = make_dataset(count=40)
    code = IN_ANOTHER_PROCESS + "print(int(run(*sys.argv[1:]).images.astype(int).sum()))"
    arguments = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(3)]
    sums = {process.communicate(timeout=120)[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(sums) == 1
    assert len(made(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits a file's size by POSIX means")
def test_a_full_disk_is_named_and_leaves_nothing(make_dataset, tmp_path):
    root = make_dataset()
    code = (
        IN_ANOTHER_PROCESS
        + """
import resource
from cxr_mlflow.errors import InputError
run(*sys.argv[1:])  # the catalog is known from here on
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    run(*sys.argv[1:], size=512)
except InputError as error:
    print(error)
"""
    )
    arguments = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert "pixels: no space left on the disk" in done.stdout
    assert "--cache-dir" in done.stdout
    assert len(made(tmp_path)) == 1
