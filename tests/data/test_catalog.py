"""What the catalog finds in a data folder, refuses, leaves out and remembers."""

from __future__ import annotations

import os
import shutil
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from PIL import Image

from cxr_mlflow.data import demo
from cxr_mlflow.data.catalog import load_catalog, resolve_data_dir, scan_catalog
from cxr_mlflow.data.layout import short_source
from cxr_mlflow.errors import InputError


def load(root, tmp_path, **options):
    return load_catalog(root, cache_dir=tmp_path / "cache", **options)


def scan(root, tmp_path, **options):
    return scan_catalog(root, cache_dir=tmp_path / "cache", **options)


def repaint(path: Path, change) -> None:
    """Change pixels of an image file in place."""
    pixels = np.array(Image.open(path))
    change(pixels)
    Image.fromarray(pixels).save(path)


def test_every_image_is_one_row(make_dataset, tmp_path):
    root = make_dataset()
    catalog = load(root, tmp_path)
    assert catalog.classes == ("COVID", "Normal")
    table = catalog.table
    assert table["image_id"].tolist() == [
        f"{c}/{c}-{k}" for c in catalog.classes for k in (1, 2, 3)
    ]
    assert table["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table[["width", "height"]].to_numpy().tolist() == [[60, 60]] * 6
    assert all(Path(path).is_file() for path in [*table["path"], *table["mask_path"]])
    np.testing.assert_allclose(table["mask_area"], 0.25)
    assert table["file_bytes"].tolist() == [Path(p).stat().st_size for p in table["path"]]
    assert catalog.problems.empty
    assert (catalog.name, catalog.is_demo) == ("xrays", False)
    small = np.asarray(Image.open(table["path"][4]).resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(catalog.thumbnails[4], small)


def test_metadata_names_the_source_also_where_names_are_in_capitals(make_dataset, tmp_path):
    sources = load(make_dataset(), tmp_path).table["source"].unique().tolist()
    assert sources == [
        "github.com/ml-workgroup/covid-19-image-repository",
        "kaggle.com/c/rsna-pneumonia-detection-challenge",
    ]


BIMCV = "bimcv.cipf.es/bimcv-projects/bimcv-covid19"


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/#159-9e", BIMCV),
        ("http://www.BIMCV.cipf.es/bimcv-projects/bimcv-covid19#16", BIMCV),
        ("https://eurorad.org", "eurorad.org"),
        ("eurorad.org/", "eurorad.org"),
        ("https://www.kaggle.com/a/chest-xray/data", "kaggle.com/a/chest-xray"),
        ("https://github.com/o/r/blob/main/x.png", "github.com/o/r"),
        ("  ", "unknown"),
    ],
)  # fmt: skip
def test_sources_are_shortened_to_the_collection(url, source):
    assert short_source(url) == source


def test_without_metadata_sources_are_unknown_and_that_is_said(make_dataset, tmp_path):
    root = make_dataset()
    (root / "COVID.metadata.xlsx").unlink()
    (root / "Normal.metadata.xlsx").write_text("not a workbook")
    catalog = load(root, tmp_path)
    assert set(catalog.table["source"]) == {"unknown"}
    assert catalog.problems["problem"].tolist() == ["no_metadata", "metadata_unreadable"]


def test_rows_and_files_that_do_not_match_are_listed(make_dataset, tmp_path):
    root = make_dataset()
    book = openpyxl.load_workbook(root / "COVID.metadata.xlsx")
    book.active["A2"] = "COVID-77"
    book.save(root / "COVID.metadata.xlsx")
    catalog = load(root, tmp_path)
    assert catalog.table["source"][0] == "unknown"
    found = catalog.problems.set_index("problem")["path"].to_dict()
    assert found == {
        "metadata_without_file": "COVID.metadata.xlsx",
        "file_without_metadata": "COVID/images/COVID-1.png",
    }
    assert "covid-77" in catalog.problems["detail"].str.cat()


def test_suffixes_of_any_case_jpeg_masks_and_rgb_are_read(make_dataset, tmp_path):
    root = make_dataset()
    before = load(root, tmp_path).table
    images, masks = root / "COVID" / "images", root / "COVID" / "masks"
    (images / "COVID-1.png").rename(images / "COVID-1.PNG")
    Image.open(images / "COVID-2.png").convert("RGB").save(images / "COVID-2.png")
    Image.open(masks / "COVID-3.png").save(masks / "COVID-3.jpeg", quality=95)
    (masks / "COVID-3.png").unlink()
    after = load(root, tmp_path).table
    for column in ("image_id", "pixel_hash", "source"):
        assert after[column].tolist() == before[column].tolist()
    assert after["mask_path"][2].endswith("COVID-3.jpeg")
    assert after["mask_area"][2] == pytest.approx(0.25, abs=0.01)


def test_a_mask_named_by_a_mac_belongs_to_its_image(make_dataset, tmp_path):
    root = make_dataset()
    for kind, form in (("images", "NFC"), ("masks", "NFD")):
        folder = root / "COVID" / kind
        (folder / "COVID-1.png").rename(folder / unicodedata.normalize(form, "Thorax-Ü 肺.png"))
    catalog = load(root, tmp_path)
    row = catalog.table[catalog.table["image_id"] == "COVID/Thorax-Ü 肺"].iloc[0]
    assert Path(row["mask_path"]).is_file()


def test_class_folders_one_or_two_levels_down_are_found(make_dataset, tmp_path):
    root = make_dataset("unzipped/COVID-19_Radiography_Dataset")
    (tmp_path / "unzipped" / "__MACOSX" / "COVID" / "images").mkdir(parents=True)
    assert load(tmp_path / "unzipped", tmp_path).root == root
    assert load(tmp_path, tmp_path).root == root


def test_two_data_sets_in_one_folder_are_not_guessed_between(make_dataset, tmp_path):
    make_dataset("a")
    make_dataset("b")
    with pytest.raises(InputError, match=r"several data sets .*a, .*b.*--data-dir"):
        load(tmp_path, tmp_path)


@pytest.mark.parametrize("folders", [[], ["COVID"], ["Viral Pneumonia", "viral_pneumonia"]])
def test_folders_without_two_distinct_classes_are_refused(tmp_path, folders):
    for name in folders:
        (tmp_path / "x" / name / "images").mkdir(parents=True)
    (tmp_path / "x").mkdir(exist_ok=True)
    with pytest.raises(InputError, match="class"):
        scan(tmp_path / "x", tmp_path)


def cut_short(root):
    path = root / "COVID/images/COVID-2.png"
    path.write_bytes(path.read_bytes()[:-200])


def text_as_png(root):
    (root / "COVID/images/COVID-2.png").write_text("not a film")


def no_bytes(root):
    (root / "COVID/images/COVID-2.png").write_bytes(b"")


def deep(root):
    pixels = np.arange(3600, dtype=np.uint16).reshape(60, 60)
    Image.fromarray(pixels).save(root / "COVID/images/COVID-2.png")


def cmyk(root):
    Image.new("CMYK", (9, 9), (0, 9, 99, 0)).save(root / "COVID/images/COVID-2.jpg")
    (root / "COVID/images/COVID-2.png").unlink()


def blank(root):
    repaint(root / "COVID/images/COVID-2.png", lambda pixels: pixels.fill(7))


def dead_link(root):
    (root / "COVID/images/COVID-2.png").unlink()
    (root / "COVID/images/COVID-2.png").symlink_to(root / "nowhere.png")


def namesake(root):
    Image.open(root / "COVID/images/COVID-1.png").save(root / "COVID/images/COVID-2.jpg")


def no_mask(root):
    (root / "COVID/masks/COVID-2.png").unlink()


def black_mask(root):
    repaint(root / "COVID/masks/COVID-2.png", lambda pixels: pixels.fill(1))


def cut_mask(root):
    path = root / "COVID/masks/COVID-2.png"
    path.write_bytes(path.read_bytes()[:-100])


def wide_mask(root):
    path = root / "COVID/masks/COVID-2.png"
    Image.open(path).resize((60, 48)).save(path)


def two_masks(root):
    path = root / "COVID/masks/COVID-2.png"
    Image.open(path).save(path.with_suffix(".jpg"))


BAD_IMAGES = {
    cut_short: "truncated",
    text_as_png: "not_an_image",
    no_bytes: "not_an_image",
    deep: "wrong_bit_depth",
    cmyk: "wrong_colours",
    blank: "blank_image",
    dead_link: "unreadable",
    namesake: "same_name",
}
BAD_MASKS = {
    no_mask: "missing_mask",
    black_mask: "empty_mask",
    cut_mask: "bad_mask",
    wide_mask: "mask_shape",
    two_masks: "several_masks",
}


@pytest.mark.parametrize(("spoil", "problem"), (BAD_IMAGES | BAD_MASKS).items())
def test_bad_files_are_refused_by_name_or_left_out_and_listed(
    make_dataset, tmp_path, spoil, problem
):
    root = make_dataset()
    spoil(root)
    with pytest.raises(InputError) as caught:
        load(root, tmp_path)
    for part in (problem, "COVID/images/COVID-2.", "cxr data check", "--on-bad-file skip"):
        assert part in str(caught.value)
    catalog = load(root, tmp_path, on_bad_file="skip")
    rest = [
        "COVID/COVID-1",
        "COVID/COVID-3",
        "Normal/Normal-1",
        "Normal/Normal-2",
        "Normal/Normal-3",
    ]
    assert catalog.table["image_id"].tolist() == rest
    assert len(catalog.thumbnails) == 5
    fatal = catalog.problems[catalog.problems["fatal"]]
    assert set(fatal["problem"]) == {problem}
    assert fatal["path"].str.startswith("COVID/images/COVID-2.").all()


@pytest.mark.parametrize(("spoil", "problem"), BAD_MASKS.items())
def test_without_masks_in_use_a_bad_mask_is_listed_and_the_image_stays(
    make_dataset, tmp_path, spoil, problem
):
    root = make_dataset()
    spoil(root)
    catalog = load(root, tmp_path, mask_mode="none")
    assert len(catalog.table) == 6
    assert catalog.table["mask_path"][1] == catalog.table["mask_hash"][1] == ""
    assert np.isnan(catalog.table["mask_area"][1])
    assert catalog.problems[["problem", "fatal"]].to_numpy().tolist() == [[problem, False]]


def test_the_message_counts_kinds_and_names_five_files(make_dataset, tmp_path):
    root = make_dataset(count=6)
    for number in range(1, 7):
        (root / f"COVID/masks/COVID-{number}.png").unlink()
    no_bytes(root)
    with pytest.raises(InputError) as caught:
        load(root, tmp_path)
    text = str(caught.value)
    assert "6 images cannot be used (5 missing_mask, 1 not_an_image)" in text
    assert text.count("COVID/images/") == 5
    assert "\n" not in text


def test_a_copy_within_a_class_is_listed_and_kept(make_dataset, tmp_path):
    root = make_dataset()
    shutil.copy(root / "COVID/images/COVID-1.png", root / "COVID/images/COVID-3.png")
    catalog = load(root, tmp_path)
    assert len(catalog.table) == 6
    problem = catalog.problems.iloc[0]
    assert (problem["problem"], problem["path"]) == ("exact_duplicate", "COVID/images/COVID-3.png")
    assert "COVID/images/COVID-1.png" in problem["detail"]


def test_an_image_in_two_classes_leaves_both(make_dataset, tmp_path):
    root = make_dataset()
    copy = Image.open(root / "COVID/images/COVID-1.png").convert("RGB")  # same pixels, other bytes
    copy.save(root / "Normal/images/Normal-3.png", compress_level=0)
    with pytest.raises(InputError, match="image_in_two_classes"):
        load(root, tmp_path)
    catalog = load(root, tmp_path, on_bad_file="skip")
    assert not {"COVID/COVID-1", "Normal/Normal-3"} & set(catalog.table["image_id"])
    assert set(catalog.problems["path"]) == {
        "COVID/images/COVID-1.png",
        "Normal/images/Normal-3.png",
    }


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_a_class_without_images_is_always_refused(make_dataset, tmp_path, on_bad_file):
    root = make_dataset()
    shutil.rmtree(root / "Normal" / "images")
    (root / "Normal" / "images").mkdir()
    with pytest.raises(InputError, match=r"Normal"):
        load(root, tmp_path, on_bad_file=on_bad_file)
    assert "empty_class" in set(scan(root, tmp_path).problems["problem"])


def test_a_class_emptied_by_skipping_is_refused(make_dataset, tmp_path):
    root = make_dataset()
    shutil.rmtree(root / "Normal" / "masks")
    with pytest.raises(InputError, match=r"Normal: no usable image"):
        load(root, tmp_path, on_bad_file="skip")


def test_other_files_are_listed_and_those_of_file_managers_are_not(make_dataset, tmp_path):
    root = make_dataset()
    (root / "COVID" / "images" / "notes.tif").touch()
    (root / "COVID" / "images" / ".DS_Store").touch()
    (root / "COVID" / "images" / "._COVID-1.png").touch()
    (root / "Normal" / "masks" / "Thumbs.db").touch()
    (root / "README.md.txt").touch()
    (root / "extra").mkdir()
    shutil.copy(root / "COVID/masks/COVID-1.png", root / "COVID/masks/COVID-9.png")
    problems = load(root, tmp_path).problems
    assert dict(zip(problems["path"], problems["problem"], strict=True)) == {
        "COVID/images/notes.tif": "unknown_file",
        "COVID/masks/COVID-9.png": "mask_without_image",
        "extra": "unknown_folder",
    }
    assert not problems["fatal"].any()


def test_only_changed_files_are_read_again(make_dataset, tmp_path):
    root = make_dataset()
    first = load(root, tmp_path)
    path = root / "COVID/images/COVID-2.png"
    told = path.stat()
    path.write_bytes(b"x" * told.st_size)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    second = load(root, tmp_path)  # not opened: path, size and time are the same
    assert second.digest == first.digest
    pd.testing.assert_frame_equal(second.table, first.table)
    np.testing.assert_array_equal(second.thumbnails, first.thumbnails)
    os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns + 1))
    with pytest.raises(InputError, match="not_an_image"):
        load(root, tmp_path)


def test_a_damaged_memory_is_replaced(make_dataset, tmp_path):
    root = make_dataset()
    first = load(root, tmp_path)
    stores = list((tmp_path / "cache" / "scans").iterdir())
    assert len(stores) == 2
    for store in stores:
        store.write_bytes(b"half a fi")
    assert load(root, tmp_path).digest == first.digest
    assert not list((tmp_path / "cache" / "scans").glob(".*"))


def test_the_digest_is_of_pixels_and_names_alone(make_dataset, tmp_path):
    root = make_dataset()
    digest = load(root, tmp_path).digest
    moved = shutil.copytree(root, tmp_path / "moved")
    for path in moved.rglob("*.png"):
        Image.open(path).save(path, compress_level=1)
    assert load(moved, tmp_path).digest == digest

    def one_pixel(pixels):
        pixels.flat[5] ^= 255

    repaint(moved / "COVID/images/COVID-1.png", one_pixel)
    changed = load(moved, tmp_path).digest
    assert changed != digest
    repaint(moved / "COVID/masks/COVID-1.png", one_pixel)
    assert load(moved, tmp_path).digest not in (digest, changed)


def test_relative_and_absolute_folders_are_the_same(make_dataset, tmp_path, monkeypatch):
    root = make_dataset()
    monkeypatch.chdir(tmp_path)
    table = load(Path("xrays"), tmp_path).table
    assert table["path"].tolist() == load(root, tmp_path).table["path"].tolist()


def test_a_cache_dir_that_is_a_file_is_named(make_dataset, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(InputError, match=r"cache.*--cache-dir"):
        load(make_dataset(), tmp_path)


@pytest.mark.data
def test_real_images_are_read_as_they_are(mini_dir, tmp_path):
    catalog = load(mini_dir, tmp_path)
    assert catalog.classes == ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert catalog.table["class_name"].value_counts().unique().tolist() == [120]
    assert catalog.table["source"].nunique() == 8
    assert "unknown" not in set(catalog.table["source"])
    assert catalog.table["mask_area"].between(0.02, 0.7).all()
    assert not catalog.problems["fatal"].any()


# --- where the data are


def test_auto_takes_the_variable_first(make_dataset, tmp_path, monkeypatch):
    root = make_dataset("told")
    make_dataset("data/here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "told"))
    assert resolve_data_dir("auto", tmp_path / "cache") == (root, False)
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"CXR_DATA_DIR=.*nowhere"):
        resolve_data_dir("auto", tmp_path / "cache")


@pytest.mark.parametrize("place", ["data", "data/xrays", "data/full/COVID-19_Radiography_Dataset"])
def test_auto_takes_the_one_data_set_in_data(make_dataset, tmp_path, monkeypatch, place):
    root = make_dataset(place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    assert resolve_data_dir("auto", tmp_path / "cache") == (root, False)


def test_auto_does_not_choose_between_two(make_dataset, tmp_path, monkeypatch):
    make_dataset("data/mini/set")
    make_dataset("data/full/set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=r"data/full/set, data/mini/set.*--data-dir"):
        resolve_data_dir("auto", tmp_path / "cache")


def test_auto_without_data_is_the_demo_drawn_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    monkeypatch.setattr(demo, "NUM_PER_CLASS", dict.fromkeys(demo.NUM_PER_CLASS, 3))  # seconds
    root, is_demo = resolve_data_dir("auto", tmp_path / "cache")
    assert is_demo
    drawn = (root / "COVID.metadata.xlsx").stat().st_mtime_ns
    assert resolve_data_dir("demo", tmp_path / "cache") == (root, True)
    assert (root / "COVID.metadata.xlsx").stat().st_mtime_ns == drawn
    catalog = load(root, tmp_path)
    assert (catalog.name, catalog.is_demo) == ("demo", True)
    assert not catalog.problems["fatal"].any()


def test_a_missing_folder_names_the_flag(tmp_path):
    with pytest.raises(InputError, match=r"--data-dir=.*nowhere.*cxr data download"):
        resolve_data_dir(str(tmp_path / "nowhere"), tmp_path / "cache")


def zipped(root: Path, target: Path, prefix: str = "COVID-19_Radiography_Dataset") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(f"{prefix}/README.md.txt", "as Kaggle has it")
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, f"{prefix}/{path.relative_to(root).as_posix()}")
    return target


def test_the_zip_is_unpacked_once_and_again_when_it_changes(make_dataset, tmp_path):
    root = make_dataset()
    path = zipped(root, tmp_path / "archive.zip")
    found, is_demo = resolve_data_dir(str(path), tmp_path / "cache")
    assert not is_demo
    assert load(found, tmp_path).digest == load(root, tmp_path).digest
    (found / "left").touch()
    assert resolve_data_dir(str(path), tmp_path / "cache")[0] == found
    assert (found / "left").exists()  # not unpacked again
    repaint(root / "COVID/images/COVID-1.png", lambda pixels: pixels.partition(3))
    zipped(root, path)
    other, _ = resolve_data_dir(str(path), tmp_path / "cache")
    assert load(other, tmp_path).digest == load(root, tmp_path).digest


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png"])
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("COVID/images/a.png", b"a")
        archive.writestr(name, b"evil")
    with pytest.raises(InputError, match="evil"):
        resolve_data_dir(str(tmp_path / "bad.zip"), tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.png"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix == ".png"]


def test_a_damaged_zip_is_refused_and_leaves_nothing(make_dataset, tmp_path):
    path = zipped(make_dataset(), tmp_path / "archive.zip")
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"archive\.zip: the zip is damaged"):
        resolve_data_dir(str(path), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "unpacked").iterdir() if p.is_dir()]


def test_a_file_that_is_no_zip_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="zip"):
        resolve_data_dir(str(tmp_path / "notes.txt"), tmp_path / "cache")
