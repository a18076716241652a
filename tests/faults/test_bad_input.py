"""Bad input through the real commands: named, never replaced by something else, nothing left half.

`README.md` beside this file lists every fault, the test that shows it and what a user is told.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import openpyxl
import pandas as pd
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from cxr_mlflow.cli import main
from cxr_mlflow.models import build_cnn
from cxr_mlflow.weights import read_state, save_weights
from tools.costly_images import many_scans

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
COUNT = 12
CLASSES = ("COVID", "Normal")
TARGET = "COVID/images/COVID-2.png"
MASK = "COVID/masks/COVID-2.png"
SMALL = ("--model", "cnn", "--epochs", "1", "--image-size", "32", "--device", "cpu")


def draw_texture(seed: int, side: int = 60) -> NDArray[np.uint8]:
    """Smooth noise with full contrast; another seed gives an unrelated image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits here are about files, not about scores."""
    monkeypatch.setattr("cxr_mlflow.data.audit_shortcuts.NUM_TREES", 2)


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve films of two classes with masks and metadata, nothing wrong with them."""
    root = tmp_path_factory.mktemp("sound") / "xrays"
    lungs = Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 12))
    for label, name in enumerate(CLASSES):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for number in range(1, COUNT + 1):
            film = Image.fromarray(draw_texture(100 * label + number))
            film.save(root / name / "images" / f"{name}-{number}.png")
            lungs.save(root / name / "masks" / f"{name}-{number}.png")
        rows = {"FILE NAME": [f"{name}-{k}" for k in range(1, COUNT + 1)], "URL": "https://a.org"}
        pd.DataFrame(rows).to_excel(root / f"{name}.metadata.xlsx", index=False)
    return root


@pytest.fixture
def xrays(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound films for a test to spoil."""
    return shutil.copytree(sound, tmp_path / "xrays")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test, made by the first command that needs it."""
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CXR_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "cache"


@pytest.fixture
def cxr(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `cxr ...` in a folder of its own; anything but a clean exit is raised."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def refused(result: Result, *parts: object) -> str:
    """The one line that a refused command ends with; it holds all parts."""
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert [line.startswith("Error: ") for line in lines].count(True) == 1
    assert lines[-1].startswith("Error: ")
    for part in parts:
        assert str(part) in lines[-1]
    return lines[-1]


def no_runs() -> bool:
    return mlflow.search_runs(search_all_experiments=True).empty


def made_pixels(cache: Path) -> list[Path]:
    """Folders of decoded pixels, finished or torn."""
    return [path for path in cache.glob("pixels/*") if path.is_dir()]


def png_by_hand(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        parts = struct.pack(">I", len(body)), kind, body, struct.pack(">I", zlib.crc32(kind + body))
        return b"".join(parts)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# --- images


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def cut_jpeg(path: Path) -> None:
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[:-300])  # a JPEG by another name is a JPEG


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("patient: unknown")


def deep(path: Path) -> None:
    Image.fromarray(np.arange(3600, dtype=np.uint16).reshape(60, 60)).save(path)


def cmyk(path: Path) -> None:
    Image.open(path).convert("CMYK").save(path, "JPEG")


def bomb(path: Path) -> None:
    path.write_bytes(png_by_hand(20_000, 20_000, 1, 0, bytes(20_000 * 2_501)))
    assert path.stat().st_size < 1e6


def scans(path: Path) -> None:
    path.write_bytes(many_scans(200, side=60))


def flat(path: Path) -> None:
    Image.new("L", (60, 60), 9).save(path)


BAD_IMAGES = {
    cut: ("truncated", "damaged or truncated"),
    cut_jpeg: ("truncated", "damaged or truncated"),
    nothing: ("not_an_image", "the file is empty"),
    text: ("not_an_image", "PNG or JPEG is wanted"),
    deep: ("wrong_bit_depth", "16 bits per channel; convert it"),
    cmyk: ("wrong_colours", "CMYK is not 8-bit grey or RGB; convert it"),
    scans: ("too_many_parts", "a JPEG of 200 scans, and at most 64 are decoded; save it anew"),
    bomb: ("too_large", "20000x20000 is more pixels than the 64,000,000"),
}


@pytest.mark.parametrize(("spoil", "told"), BAD_IMAGES.items())
def test_a_bad_image_is_named_by_every_command(
    spoil, told, xrays, cxr, cache, tracking, brightness_model, tmp_path
):
    problem, reason = told
    spoil(xrays / TARGET)
    listed = cxr("data", "check", xrays)
    assert listed.exit_code == 1
    assert f"{TARGET} " in listed.output
    assert reason in " ".join(listed.output.split())
    line = refused(cxr("train", "--data-dir", xrays, *SMALL), TARGET, f"1 {problem}", "cxr data")
    assert "--on-bad-file skip" in line
    assert no_runs()
    assert not made_pixels(cache)

    scored = cxr("predict", "--model-uri", brightness_model("lungs"), "--input", xrays)
    assert scored.exit_code == 1
    table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False).set_index("image")
    assert len(table) == 2 * COUNT
    row = table.loc[TARGET]
    assert reason in row["problem"]
    assert set(row.drop("problem")) == {""}, "nothing is made up for it"
    assert (table["label"] != "").sum() == 2 * COUNT - 1, "the others are labelled"


GREYS_IN_OTHER_CLOTHES = {
    "RGBA": lambda image: image.convert("RGBA"),
    "half clear": lambda image: Image.merge("LA", (image, image)),
    "palette": lambda image: image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
}


@pytest.mark.parametrize("dress", GREYS_IN_OTHER_CLOTHES.values(), ids=GREYS_IN_OTHER_CLOTHES)
def test_alpha_and_palettes_are_read_as_the_grey_they_hold(dress, xrays, cxr, tmp_path):
    def hashes() -> pd.Series:
        assert cxr("data", "split", xrays, "--out", "split.csv").exit_code == 0
        return pd.read_csv(tmp_path / "split.csv").set_index("image_id")["pixel_hash"]

    before = hashes()
    dressed = dress(Image.open(xrays / TARGET))
    assert dressed.mode in ("RGBA", "LA", "P")
    dressed.save(xrays / TARGET)
    assert cxr("data", "check", xrays).exit_code == 0
    pd.testing.assert_series_equal(hashes(), before)


# --- masks


def remove(path: Path) -> None:
    path.unlink()


def stretch(path: Path) -> None:
    Image.open(path).resize((96, 48)).save(path)


BAD_MASKS = {
    remove: ("missing_mask", "no file of this name in masks/"),
    stretch: ("mask_shape", f"{MASK}: mask of another image's shape, 96x48 for an image of 60x60"),
    cut: ("bad_mask", f"{MASK}: truncated, damaged or truncated"),
    flat: ("empty_mask", "its brightest pixel is 9, lung is above 127"),
}


@pytest.mark.parametrize(("spoil", "told"), BAD_MASKS.items())
def test_a_bad_mask_is_named_and_the_way_without_masks(spoil, told, xrays, cxr, tracking):
    problem, reason = told
    path = xrays / MASK
    spoil(path) if spoil is not cut else path.write_bytes(path.read_bytes()[:-30])
    listed = cxr("data", "check", xrays)
    assert listed.exit_code == 1
    assert reason in " ".join(listed.output.split())
    assert "--mask-mode none" in listed.output
    refused(
        cxr("train", "--data-dir", xrays, *SMALL),
        *(TARGET, f"1 {problem}", "--on-bad-file skip", "--mask-mode none"),
    )
    assert no_runs()
    assert cxr("data", "check", xrays, "--mask-mode", "none").exit_code == 0


def test_a_mask_of_another_size_but_the_same_shape_is_used(xrays, cxr):
    Image.open(xrays / MASK).resize((96, 96)).save(xrays / MASK)
    assert cxr("data", "check", xrays).exit_code == 0


def test_an_audit_of_images_without_any_mask_says_so_and_goes_on(xrays, cxr):
    (xrays / MASK).unlink()
    assert "left out as unusable: 1 " in cxr("data", "audit", xrays).output
    for name in CLASSES:
        shutil.rmtree(xrays / name / "masks")
    audited = cxr("data", "audit", xrays)
    assert audited.exit_code == 0
    assert f"{xrays}: {2 * COUNT} images" in audited.output, "not folded to the table's width"
    assert "No image has a lung mask" in audited.output
    assert "COVID has 0 distinct masks" in audited.output


# --- files that go while they are in use


def test_a_file_that_goes_between_reading_and_decoding_is_named(
    xrays, cxr, cache, tracking, monkeypatch
):
    from cxr_mlflow.data import prepare

    def load_cache(*args, **options):
        (xrays / TARGET).unlink(missing_ok=True)
        return original(*args, **options)

    original = prepare.load_cache
    monkeypatch.setattr(prepare, "load_cache", load_cache)
    refused(cxr("train", "--data-dir", xrays, *SMALL), TARGET, "the file is not there")
    assert no_runs()
    assert not made_pixels(cache)


def test_a_changed_file_is_not_taken_for_the_one_that_was_read(xrays, cxr, cache, monkeypatch):
    from cxr_mlflow.data import cache as module

    def build(*args):
        Image.fromarray(draw_texture(999)).save(xrays / TARGET)
        return original(*args)

    original = module._build
    monkeypatch.setattr(module, "_build", build)
    refused(cxr("data", "cache", xrays), TARGET, "changed while it was in use")
    assert not made_pixels(cache)


@pytest.mark.slow
def test_images_that_go_during_training_are_not_missed(xrays, cxr, tracking, monkeypatch):
    from cxr_mlflow import pipeline

    def train(*args, **options):
        shutil.rmtree(xrays)
        return original(*args, **options)

    original = pipeline.train
    monkeypatch.setattr(pipeline, "train", train)
    few = ("--bootstrap-samples", 100, "--register", "false")
    done = cxr("train", "--data-dir", xrays, *SMALL, *few)
    assert done.exit_code == 0, done.output
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert "test/f1_macro" in run.data.metrics


# --- folders


@pytest.mark.parametrize("name", ["räume 肺  'a' \"b\" & $HOME;", "[bold] %s {x}", "line\nbreak "])
def test_any_folder_name_works_and_is_repeated_whole(name, sound, cxr, tmp_path):
    root = shutil.copytree(sound, tmp_path / name)
    assert cxr("data", "check", root).exit_code == 0
    assert cxr("data", "split", root, "--out", root / "split.csv").exit_code == 0
    assert cxr("data", "audit", root, "--split-file", root / "split.csv").exit_code == 0
    assert cxr("data", "cache", root, "--image-size", 32).exit_code == 0
    (root / "COVID" / "images" / "ü 'x' [b].png").write_text("no film")
    result = cxr("data", "cache", root)
    assert result.exit_code == 2
    assert str(root) in result.stderr
    assert "COVID/images/ü 'x' [b].png" in result.stderr


def test_a_folder_whose_path_is_no_text_is_refused_in_one_line(sound, cxr, tracking, tmp_path):
    root = shutil.copytree(sound, tmp_path / os.fsdecode(b"f\xff"))
    for words in (("data", "check", root), ("train", "--data-dir", root, *SMALL)):
        refused(cxr(*words), "not UTF-8 text", r"f\xff", "rename the folder")


@pytest.mark.parametrize("name", ["line\nbreak.png", "tab\there.png", os.fsdecode(b"\xff.png")])
def test_file_names_that_no_line_can_hold_are_refused_in_one_line(name, xrays, cxr):
    Image.fromarray(draw_texture(50)).save(xrays / "COVID" / "images" / name)
    listed = cxr("data", "check", xrays, "--report", "report.csv")
    assert listed.exit_code == 1
    assert "bad_name" in listed.output
    told = pd.read_csv("report.csv").set_index("problem").loc["bad_name"]
    assert told["path"] == f"COVID/images/{name!r}".replace("'", "")
    assert "rename it" in told["detail"]
    refused(cxr("data", "cache", xrays), told["path"])


def test_a_class_name_that_no_line_can_hold_is_refused(xrays, cxr):
    (xrays / "COVID").rename(xrays / "CO\nVID")
    refused(cxr("data", "check", xrays), r"'CO\nVID'", "rename it")


def keep_images(xrays: Path, number: int) -> None:
    for path in sorted((xrays / "COVID" / "images").iterdir())[number:]:
        path.unlink()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_class_of_few_images_is_named_with_its_counts(number, xrays, cxr, tracking):
    keep_images(xrays, number)
    line = refused(cxr("train", "--data-dir", xrays, *SMALL), "COVID")
    if number:
        counts = re.findall(r"(\d+) in (?:train|val|test)", line)
        assert sum(map(int, counts)) == number
        assert "or add images" in line
    else:
        assert "empty_class" in line
    assert no_runs()
    audited = cxr("data", "audit", xrays)
    if number:
        assert audited.exit_code == 0
        assert "Audited without a split" in audited.output
        assert f"COVID has {number} distinct" in audited.output
    else:
        refused(audited, xrays / "COVID", "no usable image")


def test_images_that_are_all_the_same_are_one_group(xrays, cxr, tracking):
    for path in sorted((xrays / "COVID" / "images").iterdir())[1:]:
        shutil.copy(xrays / "COVID" / "images" / "COVID-1.png", path)
    refused(cxr("train", "--data-dir", xrays, *SMALL), "'COVID' is missing from a split")
    for path in (xrays / "Normal" / "images").iterdir():
        shutil.copy(xrays / "COVID" / "images" / "COVID-1.png", path)
    refused(cxr("train", "--data-dir", xrays, *SMALL), f"{2 * COUNT} image_in_two_classes")
    refused(
        cxr("train", "--data-dir", xrays, *SMALL, "--on-bad-file", "skip"),
        *("COVID", "no usable image in this class"),
    )
    assert no_runs()


def test_a_class_folder_with_masks_alone_is_no_class_and_listed(xrays, cxr):
    shutil.copytree(xrays / "COVID" / "masks", xrays / "Empty" / "masks")
    listed = cxr("data", "check", xrays)
    assert listed.exit_code == 0
    assert "unknown_folder" in listed.output
    assert "a folder without images/ is no class" in listed.output
    shutil.rmtree(xrays / "COVID" / "images")
    refused(cxr("data", "check", xrays), xrays, "found Normal", "CLASS/images")


def test_links_that_go_round_are_passed_over_or_named(xrays, cxr):
    (xrays / "again").symlink_to(xrays)
    (xrays / "COVID" / "images" / "up").symlink_to(xrays)
    itself = xrays / "COVID" / "images" / "itself.png"
    itself.symlink_to(itself)
    listed = cxr("data", "check", xrays, "--report", "report.csv")
    assert listed.exit_code == 1
    told = pd.read_csv("report.csv").set_index("path")
    assert told.loc["COVID/images/itself.png", "problem"] == "unreadable"
    assert "symbolic links" in told.loc["COVID/images/itself.png", "detail"]
    assert not told.loc["COVID/images/up", "fatal"]
    (xrays / "round").symlink_to(xrays / "round")
    refused(cxr("data", "check", xrays / "round"), "round", "no such folder")


def test_a_zip_that_points_outside_is_refused_before_a_byte_is_written(sound, cxr, cache, tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        for path in sorted(sound.rglob("*.png")):
            archive.write(path, f"xrays/{path.relative_to(sound).as_posix()}")
        archive.writestr("xrays/../../../evil.png", b"evil")
    refused(cxr("data", "check", "slip.zip"), "slip.zip", "evil.png", "points elsewhere")
    assert not list(tmp_path.rglob("evil.png"))
    assert not list(cache.rglob("*.png"))


# --- tables beside the images


def test_damaged_metadata_cost_the_sources_and_nothing_else(xrays, cxr):
    book = xrays / "COVID.metadata.xlsx"
    book.write_bytes(book.read_bytes()[:900])
    listed = cxr("data", "check", xrays)
    assert listed.exit_code == 0
    words = " ".join(listed.output.split())
    assert "COVID.metadata.xlsx metadata_unreadable" in words
    assert "unknown: 12" in words


def test_metadata_that_lack_rows_name_the_image(xrays, cxr):
    path = xrays / "COVID.metadata.xlsx"
    book = openpyxl.load_workbook(path)
    book.active.delete_rows(3)
    book.save(path)
    listed = cxr("data", "check", xrays)
    assert listed.exit_code == 0
    assert re.search(rf"{TARGET} +file_without_metadata", listed.output)


def other_pixels(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(pixel_hash=["00" * 32, *table["pixel_hash"][1:]])


BAD_SPLITS = {
    "names an image that is not there": (
        lambda t: pd.concat([t, t.iloc[:1].assign(image_id="COVID/new")]),
        "images that are not in the data (1): COVID/new",
    ),
    "lacks an image": (lambda t: t.iloc[1:], "no row for images of the data (1): COVID/COVID-1"),
    "puts an image in two splits": (
        lambda t: pd.concat([t, t.iloc[:1].assign(split="test")]),
        "more than one row for (1): COVID/COVID-1",
    ),
    "was made of other pixels": (other_pixels, "other pixels than the data have now, for (1)"),
}


@pytest.mark.parametrize(("change", "told"), BAD_SPLITS.values(), ids=BAD_SPLITS)
def test_a_split_file_that_does_not_fit_is_named(change, told, xrays, cxr, tracking, tmp_path):
    assert cxr("data", "split", xrays, "--out", "split.csv").exit_code == 0
    change(pd.read_csv(tmp_path / "split.csv")).to_csv(tmp_path / "split.csv", index=False)
    done = cxr("train", "--data-dir", xrays, *SMALL, "--split-file", "split.csv")
    refused(done, "--split-file=split.csv", told, "or make a new split")
    assert no_runs()


# --- models


def save_other_model(path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(4, 2)).state_dict()
    safetensors.torch.save_file(state, path)


def cut_weights(path: Path) -> None:
    save_other_model(path)
    path.write_bytes(path.read_bytes()[:-8])


def tampered_weights(path: Path) -> None:
    state = build_cnn(2).state_dict()
    save_weights(state, path, about={"model": "cnn"})
    assert read_state(path).keys() == state.keys()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (save_other_model, "these are weights of another model"),
        (cut_weights, "damaged file"),
        (tampered_weights, "not the weights that were written into it"),
    ],
)
def test_weights_that_do_not_fit_are_named_before_a_run(
    write, told, xrays, cxr, tracking, tmp_path
):
    write(tmp_path / "mine.safetensors")
    done = cxr("train", "--data-dir", xrays, *SMALL, "--weights", "mine.safetensors")
    refused(done, "--weights=mine.safetensors", told)
    assert no_runs()


def test_a_tampered_network_labels_nothing(brightness_model, xrays, cxr, tmp_path):
    folder = brightness_model("lungs")
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    refused(
        cxr("predict", "--model-uri", folder, "--input", xrays),
        *(folder / "model.onnx", "sha256 differs"),
    )
    assert not (tmp_path / "predictions.csv").exists()
