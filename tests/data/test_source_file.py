"""A source file is heard before the metadata, and refused in one line where it does not fit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cxr_mlflow.cli import main
from cxr_mlflow.data.catalog import scan_catalog
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.errors import InputError

LISTED = "kaggle.com/c/rsna-pneumonia-detection-challenge"


@pytest.fixture
def root(make_dataset) -> Path:
    return make_dataset(count=12)


def write(path: Path, rows: dict[str, str]) -> Path:
    pd.DataFrame(rows.items(), columns=["image_id", "source"]).to_csv(path, index=False)
    return path


def sources_of(root: Path, tmp_path: Path, told: Path | None) -> dict[str, str]:
    catalog = scan_catalog(root, source_file=told, cache_dir=tmp_path / "cache")
    return dict(zip(catalog.table["image_id"], catalog.table["source"], strict=True))


def test_it_is_heard_for_the_images_it_names_and_no_others(root, tmp_path):
    told = {"Normal/Normal-2": "St. Elsewhere ", "Normal/Normal-3": "https://www.a.org/x/data"}
    found = sources_of(root, tmp_path, write(tmp_path / "sources.csv", told))
    assert found["Normal/Normal-2"] == "St. Elsewhere"
    assert found["Normal/Normal-3"] == "a.org/x", "as a URL in the metadata is told"
    assert found["Normal/Normal-1"] == LISTED
    assert scan_catalog(root, cache_dir=tmp_path / "cache").digest == (
        scan_catalog(
            root, source_file=tmp_path / "sources.csv", cache_dir=tmp_path / "cache"
        ).digest
    ), "the digest is of pixels"


def test_an_interrupted_run_does_not_go_on_with_other_sources(root, tmp_path):
    """Its digests are evidence; that of the pixels and of the split may stay as they were."""
    digests = []
    for told in ("a.org", "b.org", "b.org"):
        file = write(tmp_path / "sources.csv", {"Normal/Normal-2": told})
        catalog = scan_catalog(root, source_file=file, cache_dir=tmp_path / "cache")
        digests.append(Study(catalog, None, None, None).sources_digest)
    assert digests[0] != digests[1] == digests[2]


def test_an_image_without_metadata_has_its_source_from_the_file(root, tmp_path):
    (root / "Normal.metadata.xlsx").unlink()
    table = pd.DataFrame({"FILE NAME": ["Normal-1"], "URL": ["https://a.org"]})
    table.to_excel(root / "Normal.metadata.xlsx", index=False)
    told = write(tmp_path / "sources.csv", {f"Normal/Normal-{k}": "b.org" for k in range(2, 12)})
    catalog = scan_catalog(root, source_file=told, cache_dir=tmp_path / "cache")
    untold = catalog.problems[catalog.problems["problem"] == "file_without_metadata"]
    assert untold["path"].tolist() == ["Normal/images/Normal-12.png"]


def test_a_damaged_image_may_be_named(root, tmp_path):
    (root / "Normal/images/Normal-2.png").write_bytes(b"no image")
    told = write(tmp_path / "sources.csv", {"Normal/Normal-2": "a", "Normal/Normal-1": "a"})
    assert sources_of(root, tmp_path, told)["Normal/Normal-1"] == "a"


BAD = {
    "an image that is not there": (
        "image_id,source\nNormal/Normal-99,a\n",
        "images that are not in the data (1): Normal/Normal-99; an image is named as in split.csv",
    ),
    "a file name": ("image_id,source\nNormal/Normal-1.png,a\n", "images that are not in the data"),
    "an image twice": (
        "image_id,source\nNormal/Normal-1,a\nNormal/Normal-1,b\n",
        "more than one row for (1): Normal/Normal-1",
    ),
    "no source": ("image_id,source\nNormal/Normal-1, \n", "no source for (1): Normal/Normal-1"),
    "no such column": ("image_id,url\nNormal/Normal-1,a\n", "no column 'source'"),
    "no names": ("source\na\n", "no column 'image_id'"),
    "more cells than columns": ("image_id,source\na,b\nc,d,e\n", "cannot be read"),
    "nothing": ("", "cannot be read"),
    "no text": (b"\xff\xfe\x00\x81", "cannot be read"),
}


@pytest.mark.parametrize(("content", "told"), BAD.values(), ids=BAD)
def test_a_file_that_does_not_fit_is_refused(content, told, root, tmp_path):
    path = tmp_path / "sources.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        sources_of(root, tmp_path, path)
    assert str(refused.value).startswith(f"--source-file={path}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(root, tmp_path):
    with pytest.raises(InputError, match=r"--source-file=.*gone\.csv: cannot be read"):
        sources_of(root, tmp_path, tmp_path / "gone.csv")


@pytest.fixture
def cxr(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxr_mlflow.data.audit_shortcuts.NUM_TREES", 2)

    def run(*args: object) -> Result:
        return CliRunner().invoke(main, ["data", *map(str, args)])

    return run


def test_check_audit_and_split_hear_it(root, cxr, tmp_path):
    told = {f"Normal/Normal-{k}": "elsewhere.org" for k in range(1, 7)}
    file = write(tmp_path / "sources.csv", told)
    option = ("--source-file", file.name)
    assert "elsewhere.org: 6" in " ".join(cxr("check", root, *option).output.split())
    assert "elsewhere.org" not in cxr("check", root).output
    assert "audited before" not in cxr("audit", root).output
    done = cxr("audit", root, *option, "--output", "a.html")
    assert "audited before" not in done.output, "other sources, another audit"
    assert "elsewhere.org" in (tmp_path / "a.html").read_text()
    assert "audited before" in cxr("audit", root, *option).output
    assert cxr("split", root, *option, "--out", "split.csv").exit_code == 0
    split = pd.read_csv(tmp_path / "split.csv")
    assert (split["source"] == "elsewhere.org").sum() == 6
    # the split of a run names images and sources: it is a source file itself
    assert sources_of(root, tmp_path, tmp_path / "split.csv")["Normal/Normal-6"] == "elsewhere.org"
    done = cxr("audit", root, "--source-file", "gone.csv")
    assert done.exit_code == 2
    assert done.output.strip().splitlines()[-1].startswith("Error: --source-file=gone.csv: cannot")
