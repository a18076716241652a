"""That `cxr data audit` prints what it found, writes it, and says when it was found before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cxr_mlflow.cli import main


@pytest.fixture
def audit(cache_dir: Path, tmp_path: Path, monkeypatch):
    """Run `cxr data audit ...` with the session's cache, in a folder of its own."""
    monkeypatch.setenv("CXR_CACHE_DIR", str(cache_dir))
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        result = CliRunner().invoke(main, ["data", "audit", *map(str, args)])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def line_of(output: str, start: str) -> str:
    return next(line for line in output.splitlines() if line.strip().startswith(start))


def test_a_corner_marker_in_the_demo_data_is_caught(audit, demo_dir: Path, tmp_path: Path):
    clean = audit(demo_dir)
    assert clean.exit_code == 0
    assert "SYNTHETIC" in clean.output
    assert " no " in line_of(clean.output, "Border")
    marked = shutil.copytree(demo_dir, tmp_path / "marked")
    for path in (marked / "COVID" / "images").iterdir():
        pixels = np.array(Image.open(path).convert("L"))
        pixels[4:24, 4:24] = 255
        Image.fromarray(pixels).save(path)
    spoiled = audit(marked)
    assert "! " in line_of(spoiled.output, "Border")
    assert " no " in line_of(spoiled.output, "Lung outline")
    assert "COVID most" in " ".join(spoiled.output.split())


def test_report_and_json_are_written_and_the_second_call_reads_the_cache(
    audit, demo_dir: Path, tmp_path: Path
):
    first = audit("--data-dir", demo_dir, "--output", "new/audit.html", "--split-seed", 3)
    assert first.exit_code == 0
    page = (tmp_path / "new" / "audit.html").read_text()
    told = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert "SYNTHETIC" in page
    assert told["num_images"] == 96
    assert told["copies"]["groups"] == 4
    assert told["split"]["groups_cut"] == 0
    assert "4 groups with 8 images" in first.output
    again = audit("--data-dir", demo_dir, "--output", "again.html", "--split-seed", 3)
    assert "Read from the cache" in again.output
    assert (tmp_path / "again.json").read_text() == (tmp_path / "new" / "audit.json").read_text()
    other = audit(demo_dir, "--split-seed", 4)
    assert "Read from the cache" in other.output
    assert line_of(other.output, "Split") != line_of(again.output, "Split")


def test_a_split_file_that_cuts_groups_is_audited_not_refused(
    audit, demo_dir: Path, tmp_path: Path
):
    images = sorted(p for p in demo_dir.glob("*/images/*") if p.suffix == ".png")
    parts = ("train", "test", "val")
    rows = [f"{p.parts[-3]}/{p.stem},{parts[k % 3]}" for k, p in enumerate(images)]
    (tmp_path / "cut.csv").write_text("\n".join(["image_id,split", *rows]) + "\n")
    result = audit(demo_dir, "--split-file", "cut.csv", "--output", "cut.html")
    assert result.exit_code == 0
    told = json.loads((tmp_path / "cut.json").read_text())["split"]
    assert told["groups_cut"] > 0
    assert f"groups cut: {told['groups_cut']}" in result.output
    assert "Groups across splits" in (tmp_path / "cut.html").read_text()


def test_unusable_files_are_left_out_and_counted(audit, demo_dir: Path, tmp_path: Path):
    root = shutil.copytree(demo_dir, tmp_path / "damaged")
    (root / "COVID/images/COVID-1.png").write_bytes(b"no image")
    result = audit(root)
    assert result.exit_code == 0
    assert "95 images" in result.output
    assert "Files left out as unusable: 1" in result.output


def test_user_errors_are_one_line(audit, demo_dir: Path):
    for args, told in (
        (("nowhere",), "nowhere"),
        ((demo_dir, "--output", "audit.pdf"), "--output=audit.pdf"),
        ((demo_dir, "--split-file", "none.csv"), "--split-file=none.csv"),
    ):
        result = audit(*args)
        assert result.exit_code == 2
        assert told in result.output.strip().splitlines()[-1]
