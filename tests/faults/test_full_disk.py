"""Disks that are full or closed: the folder is named, what was there stays, nothing is left half.

A tmpfs of 8 MB stands for the disk. Mounting it takes root; elsewhere these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cxr_mlflow.cli import main
from cxr_mlflow.data import demo
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.files import write_table
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import open_journaled

SIZE = 8_000_000
FULL = "no space left on the disk; free some, or"


@pytest.fixture(autouse=True)
def small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Audits here are about files, not about scores."""
    monkeypatch.setattr("cxr_mlflow.data.audit_shortcuts.NUM_TREES", 2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    if shutil.which("mount") is None or not sys.platform.startswith("linux"):
        pytest.skip("no small disk can be mounted here: not Linux")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def filled(disk: Path, leave: int = 0) -> Iterator[None]:
    """Fill the disk but for `leave` bytes."""
    ballast = disk / "ballast"
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(room - leave))
    yield
    ballast.unlink()


@contextlib.contextmanager
def closed(disk: Path) -> Iterator[None]:
    """Make the disk read-only; root may write into a folder that only its mode closes."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield
    subprocess.run(["mount", "-o", f"remount,rw,size={SIZE}", str(disk)], check=True)


@pytest.fixture
def xrays(tmp_path: Path) -> Path:
    """Twelve films of two classes, with masks."""
    root = tmp_path / "xrays"
    rng = np.random.default_rng(0)
    lungs = Image.fromarray(np.pad(np.full((24, 24), 255, np.uint8), 12))
    for name in ("COVID", "Normal"):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for number in range(12):
            film = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize((48, 48))
            film.save(root / name / "images" / f"{number}.png")
            lungs.save(root / name / "masks" / f"{number}.png")
    return root


@pytest.fixture
def cxr(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run `cxr data ...` with the cache on the small disk."""
    monkeypatch.setenv("CXR_CACHE_DIR", str(disk / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, ["data", *map(str, args)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def refused(result: Result, *parts: object) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2, result.output
    assert lines[-1].startswith("Error: ")
    for part in parts:
        assert str(part) in lines[-1]


def files(folder: Path) -> dict[str, int]:
    """Every file but locks, with its size."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def test_a_disk_that_fills_while_pixels_are_decoded(cxr, disk, xrays):
    assert cxr("check", xrays).exit_code == 0
    before = files(disk)
    with filled(disk, leave=1_000_000):  # the pixels take 2.4 MB
        refused(cxr("cache", xrays), disk / "cache" / "pixels", FULL, "--cache-dir")
    assert files(disk) == before
    assert not [path for path in (disk / "cache" / "pixels").iterdir() if path.is_dir()]
    assert cxr("cache", xrays).exit_code == 0, "once there is room, it is made"


@pytest.mark.parametrize(
    ("command", "folder"),
    [("check", "scans"), ("split --out s.csv", "duplicates"), ("audit", "audits")],
)
def test_a_full_cache_is_named_by_its_folder(command, folder, cxr, disk, xrays):
    assert cxr("audit", xrays).exit_code == 0
    shutil.rmtree(disk / "cache" / folder)
    before = files(disk)
    name, *options = command.split()
    with filled(disk):
        refused(cxr(name, xrays, *options), disk / "cache" / folder, FULL, "--cache-dir")
    assert files(disk) == before
    assert cxr(name, xrays, *options).exit_code == 0


REPORTS = {
    "--report": ("check", "report.csv"),
    "--contact-sheet": ("check", "sheet.png"),
    "--output": ("audit", "audit.html"),
    "--out": ("split", "split.csv"),
}


@pytest.mark.parametrize(("flag", "told"), REPORTS.items())
def test_a_report_is_whole_or_the_old_one(flag, told, cxr, disk, xrays, tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    command, name = told
    (disk / name).write_text("the old one")
    with filled(disk):
        refused(cxr(command, xrays, flag, disk / name), disk, FULL, flag)
        assert {path.name for path in disk.iterdir()} == {"ballast", name}
    assert (disk / name).read_text() == "the old one"
    with closed(disk):
        refused(cxr(command, xrays, flag, disk / name), disk, "Read-only file system", flag)
    assert cxr(command, xrays, flag, disk / name).exit_code == 0
    assert (disk / name).stat().st_size > 20


def test_the_file_before_stays_when_the_next_one_does_not_fit(disk):
    path = disk / "model.safetensors"
    with write_whole(path, "name another folder") as part:
        part.write_bytes(b"first")
    with (
        pytest.raises(InputError, match=f"{disk}: {FULL} name another folder"),
        write_whole(path, "name another folder") as part,
    ):
        part.write_bytes(bytes(2 * SIZE))
    assert files(disk) == {"model.safetensors": 5}
    assert path.read_bytes() == b"first"


def test_a_table_of_predictions_is_whole_or_the_old_one(disk):
    path = disk / "predictions.csv"
    write_table(pd.DataFrame({"image": ["first"]}), path)
    large = pd.DataFrame({"image": ["x" * 100] * (SIZE // 50)})
    with pytest.raises(InputError, match=f"{disk}: {FULL} name another --output"):
        write_table(large, path)
    assert files(disk) == {path.name: 12}
    with closed(disk), pytest.raises(InputError, match=r"Read-only file system.*--output"):
        write_table(large, path)


@pytest.mark.parametrize("command", ["check", "cache", "audit"])
def test_a_closed_cache_is_named(command, cxr, disk, xrays):
    with closed(disk):
        refused(cxr(command, xrays), disk / "cache", "Read-only file system", "--cache-dir")


def test_data_on_a_closed_disk_are_read_all_the_same(cxr, disk, xrays, tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    root = shutil.copytree(xrays, disk / "xrays")
    before = files(root)
    with closed(disk):
        for command in ("check", "cache", "audit"):
            assert cxr(command, root).exit_code == 0
    assert files(root) == before


def test_a_zip_that_does_not_fit_is_not_begun(cxr, disk, xrays, tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(xrays.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path).as_posix())
        archive.writestr("xrays/large.bin", bytes(2 * SIZE))
    refused(cxr("check", "archive.zip"), "archive.zip", "unpacked", "--cache-dir")
    assert files(disk) == {}


def test_a_demo_that_does_not_fit_leaves_nothing(cxr, disk, monkeypatch):
    monkeypatch.setattr(demo, "NUM_PER_CLASS", dict.fromkeys(demo.NUM_PER_CLASS, 3))
    with filled(disk, leave=200_000):
        refused(cxr("demo", disk / "demo"), disk, FULL, "name another folder for the demo data")
        assert [path.name for path in disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("when", ["in the middle", "at the end", "closed"])
def test_a_run_whose_disk_fills_has_failed_and_mlflow_knows_why(disk, tracking, when):
    journal = Journal(disk / "journal")
    full = closed(disk) if when == "closed" else filled(disk)

    def live(room):
        with open_journaled(journal, "j1", "lab", "a run", {}, {"a": "b"}, handlers={}) as run:
            assert run.delivery.wait(seconds=20)
            room.enter_context(full)
            if when == "in the middle":
                run.log_bytes(bytes(100_000), "a.bin")

    begin = time.monotonic()
    room = contextlib.ExitStack()
    with room, pytest.raises(InputError, match="name another folder with"):
        live(room)
    assert time.monotonic() - begin < 30
    (found,) = mlflow.search_runs(experiment_names=["lab"], output_format="list")
    assert found.info.status == "FAILED"
    assert "$CXR_STATE_DIR" in found.data.tags["failure"]


KAGGLEHUB = """
import os, pathlib

def dataset_download(handle):
    place = pathlib.Path(os.environ["KAGGLEHUB_CACHE"])
    with open(place / "archive", "wb") as file:
        for _ in range(16):
            file.write(bytes(1_000_000))
            file.flush()
"""


def test_a_download_that_does_not_fit_says_so_and_keeps_what_came(cxr, disk, tmp_path, monkeypatch):
    (tmp_path / "fake" / "kagglehub").mkdir(parents=True)
    (tmp_path / "fake" / "kagglehub" / "__init__.py").write_text(KAGGLEHUB)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "fake"), *sys.path]))
    refused(cxr("download", disk / "data"), disk / "data", FULL, "another folder to download to")
    assert [path.name for path in (disk / "data").iterdir()] == [".kagglehub"]
