from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cxr_mlflow.cli import main

NEVER_IN_HELP = ("torch", "mlflow", "pandas", "numpy", "scipy", "rich.table")


@pytest.fixture
def cxr(cache_dir: Path, tmp_path: Path, monkeypatch):
    """Run `cxr data ...` with the session's cache, in a folder of its own."""
    monkeypatch.setenv("CXR_CACHE_DIR", str(cache_dir))
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, ["data", *map(str, args)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def damaged(demo_dir: Path, tmp_path: Path) -> Path:
    """A copy of the demo set with one fault of several kinds."""
    root = tmp_path / "damaged [v2]"  # brackets must not be taken for markup
    shutil.copytree(demo_dir, root)
    (root / "COVID/images/COVID-1.png").write_bytes(
        (root / "COVID/images/COVID-1.png").read_bytes()[:5000]
    )
    Image.new("RGB", (256, 256)).save(root / "COVID/masks/COVID-2.png")
    (root / "Normal/masks/Normal-3.png").unlink()
    deep = np.zeros((299, 299), np.uint16)
    Image.fromarray(deep).save(root / "Normal/images/Normal-4.png")
    (root / "Lung_Opacity/images/notes.txt").write_text("not an image")
    return root


def test_check_of_good_data(cxr, demo_dir: Path):
    result = cxr("check", demo_dir)
    assert result.exit_code == 0
    words = result.output.split()
    for name in ("COVID", "Lung_Opacity", "Normal", "Pneumonia"):
        assert words[words.index(name) + 1 :][:3] == ["24", "0", "24"]
    assert "SYNTHETIC" in result.output
    assert "299x299: 24" in result.output
    assert "coast.example.org/films:" in result.output
    # one near copy in each class of 24
    assert "show one film: 4 (exact copies: 0)" in result.output
    assert "No problems found." in result.output


def test_check_names_what_is_wrong(cxr, damaged: Path, tmp_path: Path):
    report = tmp_path / "new" / "report.csv"
    result = cxr("check", damaged, "--report", report)
    assert result.exit_code == 1
    assert "damaged [v2]" in result.output
    told = pd.read_csv(report).set_index("path")
    fatal = {
        "COVID/images/COVID-1.png",
        "COVID/images/COVID-2.png",
        "Normal/images/Normal-3.png",
        "Normal/images/Normal-4.png",
    }
    assert set(told.index[told["fatal"]]) == fatal
    for path, row in told.iterrows():
        assert f"{path} " in result.output
        assert row["problem"] in result.output
    assert "cannot be used: 4" in result.output
    words = result.output.split()
    assert words[words.index("COVID") + 1 :][:2] == ["22", "2"], "usable and unusable"
    # without lungs being asked for, a missing or empty mask harms nobody
    result = cxr("check", damaged, "--mask-mode", "none", "--report", report)
    assert result.exit_code == 1
    told = pd.read_csv(report).set_index("path")
    assert set(told.index[told["fatal"]]) == {f"{c}/images/{c}-{k}.png" for c, k in FIRST_AND_FOUR}


FIRST_AND_FOUR = (("COVID", 1), ("Normal", 4))


def test_a_long_list_is_cut_on_screen_and_whole_in_the_report(cxr, demo_dir: Path, tmp_path: Path):
    root = shutil.copytree(demo_dir, tmp_path / "many")
    for number in range(60):
        (root / "COVID" / "images" / f"note-{number:02}.txt").touch()
    (root / "Normal/images/Normal-9.png").write_bytes(b"no image")
    result = cxr("check", root)
    assert result.output.count("note-") == 39
    assert "Normal-9.png" in result.output, "unusable files are listed first"
    assert "and 21 more, not shown; --report" in result.output
    result = cxr("check", root, "--report", "all.csv")
    assert "and 21 more, in all.csv" in result.output
    assert len(pd.read_csv(tmp_path / "all.csv")) == 61


def test_check_of_data_with_nothing_usable(cxr, tmp_path: Path):
    for name in ("A", "B"):
        (tmp_path / "bad" / name / "images").mkdir(parents=True)
        (tmp_path / "bad" / name / "images" / "x.png").write_bytes(b"no image")
    result = cxr("check", "bad", "--contact-sheet", "sheet.png")
    assert result.exit_code == 1
    assert "A/images/x.png" in result.output
    assert "cannot be used: 2" in result.output


def test_contact_sheet(cxr, demo_dir: Path, tmp_path: Path):
    assert cxr("check", demo_dir, "--contact-sheet", "out/sheet.png").exit_code == 0
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 100, "films are on it"
    result = cxr("check", demo_dir, "--contact-sheet", "sheet.docx")
    assert result.exit_code == 2
    assert "--contact-sheet=sheet.docx" in result.output


@pytest.mark.data
def test_check_of_real_xrays(cxr, mini_dir: Path):
    result = cxr("check", mini_dir)
    assert result.exit_code == 0
    assert "480 usable images" in result.output
    assert "eurorad.org: 12" in result.output
    assert "COVID/images/COVID-2823.png" in result.output, "an exact copy"


def test_user_errors_are_one_line_and_status_2(cxr, demo_dir: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    for args, told in (
        (("check", "nowhere"), "nowhere"),
        (("check", demo_dir, "--data-dir", "x"), "--data-dir"),
        (("cache", demo_dir, "--image-size", "7"), "--image-size=7"),
        (("check", demo_dir, "--mask-mode", "lung"), "'lungs'"),
        (("split", demo_dir), "--out"),
        (("split", demo_dir, "--out", "x.csv", "--test-fraction", "0.95"), "--test-fraction"),
        (("split", demo_dir, "--out", "file/x.csv"), "--out"),
        (("check", demo_dir, "--report", "file/x.csv"), "--report"),
        (("demo", demo_dir), str(demo_dir)),
        (("demo", tmp_path / "new", "--seed", "-1"), "--seed"),
        (("chek", demo_dir), "'check'"),
    ):
        result = cxr(*args)
        last = result.output.strip().splitlines()[-1]
        assert result.exit_code == 2, args
        assert last.startswith("Error: "), args
        assert told in last, args


def test_data_dir_option_is_taken_too(cxr, demo_dir: Path):
    assert "96 usable" in cxr("check", "--data-dir", demo_dir).output


def test_cache_is_made_once(cxr, demo_dir: Path, cache_dir: Path):
    result = cxr("cache", demo_dir, "--image-size", 32)
    assert result.exit_code == 0
    assert "96 images and masks at 32 px, 0.2 MB" in result.output
    folder = Path(result.output.strip().rpartition(" in ")[2])
    assert folder.parent.parent == cache_dir
    made = (folder / "images.npy").stat().st_mtime_ns
    assert cxr("cache", demo_dir, "--image-size", 32).output == result.output
    assert (folder / "images.npy").stat().st_mtime_ns == made


def test_cache_refuses_bad_files_unless_told(cxr, damaged: Path):
    result = cxr("cache", damaged, "--image-size", 32)
    assert result.exit_code == 2
    assert "COVID-1.png" in result.output
    result = cxr("cache", damaged, "--image-size", 32, "--on-bad-file", "skip")
    assert "92 images" in result.output


def test_split_is_saved_and_follows_its_seed(cxr, demo_dir: Path, tmp_path: Path):
    first = cxr("split", demo_dir, "--out", "new/a.csv")
    assert first.exit_code == 0
    table = pd.read_csv(tmp_path / "new" / "a.csv")
    assert len(table) == 96
    shares = table.groupby("class_name")["split"].value_counts().unstack()
    assert shares["test"].between(4, 6).all()
    assert (table.groupby("group")["split"].nunique() == 1).all()
    assert cxr("split", demo_dir, "--out", "b.csv", "--split-seed", 1).exit_code == 0
    assert cxr("split", demo_dir, "--out", "c.csv").exit_code == 0
    texts = {k: (tmp_path / k).read_text() for k in ("new/a.csv", "b.csv", "c.csv")}
    assert texts["new/a.csv"] == texts["c.csv"] != texts["b.csv"]


@pytest.mark.slow
def test_demo_and_its_help_in_a_real_process(tmp_path: Path):
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cxr_mlflow", "data", *args],
            cwd=tmp_path,
            env=os.environ | {"CXR_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
        )

    done = run("demo", "films", "--seed", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("440 synthetic images")
    again = run("demo", "films")
    assert again.returncode == 2
    assert again.stderr == ("Error: films: not an empty folder; name a new one for the demo data\n")
    code = f"""
import sys
from cxr_mlflow.cli import main
try:
    main(['data', 'check', '--help'])
except SystemExit:
    print([name for name in {NEVER_IN_HELP} if name in sys.modules])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.splitlines()[-1] == "[]", "help loads what only the commands need"
    assert "--report" in told.stdout
