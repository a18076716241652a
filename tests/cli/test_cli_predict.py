"""`cxr predict` labels every image it can, says which it cannot, and invents nothing."""

from __future__ import annotations

import math
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from cxr_mlflow.cli.predict import predict
from cxr_mlflow.cli.promote import promote
from cxr_mlflow.serving.files import find_images
from cxr_mlflow.serving.package import log_model


def draw(path: Path, grey: int, size: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), grey).save(path)
    return path


def run(*args: object) -> Result:
    return CliRunner().invoke(predict, [str(arg) for arg in args], catch_exceptions=False)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False).set_index("image")


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Folder in the Kaggle layout: two films of two classes, with masks of another file type."""
    root = tmp_path / "kaggle"
    for name, grey in (("COVID", 30), ("Normal", 220)):
        for number in (1, 2):
            draw(root / name / "images" / f"{name}-{number}.png", grey + number)
            draw(root / name / "masks" / f"{name}-{number}.jpg", 255, size=20)
    return root


def test_kaggle_layout_finds_its_masks(kaggle, brightness_model, tmp_path):
    output = tmp_path / "new folder" / "found.csv"
    result = run("--model-uri", brightness_model("lungs"), "--input", kaggle, "--output", output)
    assert result.exit_code == 0, result.output
    found = read(output)
    assert found.index.tolist() == [
        f"{name}/images/{name}-{n}.png" for name in ("COVID", "Normal") for n in (1, 2)
    ]
    assert found.columns.tolist() == ["label", "confidence", "p_dark_film", "p_normal", "problem"]
    assert found["label"].tolist() == ["Dark Film"] * 2 + ["Normal"] * 2
    expected = 1 / (1 + math.exp(8 - 16 * 222 / 255))
    assert float(found["p_normal"].iloc[-1]) == pytest.approx(expected, abs=1e-5)
    assert (found["problem"] == "").all()
    assert "labelled 4 of 4 images: 2 Dark Film, 2 Normal" in result.output
    assert "data=greys" in result.output


def test_bad_files_are_listed_and_stop_no_other(kaggle, brightness_model, tmp_path):
    broken = kaggle / "COVID" / "images" / "COVID-1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (kaggle / "Normal" / "masks" / "Normal-1.jpg").unlink()
    draw(kaggle / "Normal" / "masks" / "Normal-2.jpg", 0)
    output = tmp_path / "found.csv"
    result = run("--model-uri", brightness_model("lungs"), "--input", kaggle, "--output", output)
    assert result.exit_code == 1
    found = read(output)
    assert found.index.tolist() == sorted(found.index)
    assert len(found) == 4
    assert found["label"].tolist() == ["", "Dark Film", "", ""]
    bad = found[found["label"] == ""]
    assert (bad[["confidence", "p_dark_film", "p_normal"]] == "").all(axis=None)
    told = dict(bad["problem"])
    assert "damaged or truncated" in told["COVID/images/COVID-1.png"]
    assert "no lung mask" in told["Normal/images/Normal-1.png"]
    assert told["Normal/images/Normal-2.png"].startswith("its mask: it is empty")
    for name in told:
        assert f"not labelled: {name}: " in result.stderr


def test_flat_folder_with_masks_beside_it(brightness_model, tmp_path):
    for number, grey in enumerate((10, 240)):
        draw(tmp_path / "films" / "ward" / f"{number}.png", grey)
        draw(tmp_path / "lungs" / "ward" / f"{number}.png", 255)
    draw(tmp_path / "films" / ".thumbnails" / "0.png", 0)
    model, output = brightness_model("lungs"), tmp_path / "found.csv"
    result = run(
        "--model-uri", model, "--input", tmp_path / "films", "--masks", tmp_path / "lungs",
        "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read(output)["label"].to_dict() == {"ward/0.png": "Dark Film", "ward/1.png": "Normal"}

    result = run("--model-uri", model, "--input", tmp_path / "films", "--output", output)
    assert result.exit_code == 1
    assert "name their folder with --masks" in read(output)["problem"].iloc[0]


def test_one_file_and_its_mask(brightness_model, tmp_path):
    film, mask = draw(tmp_path / "film.png", 240), draw(tmp_path / "lungs.png", 255)
    output = tmp_path / "found.csv"
    result = run(
        "--model-uri", brightness_model("lungs"), "--input", film, "--masks", mask,
        "--output", output,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read(output)["label"].to_dict() == {"film.png": "Normal"}


def test_more_files_than_are_read_at_once_keep_their_order(brightness_model, tmp_path):
    for number in range(70):
        draw(tmp_path / "films" / f"{number:02}.png", 3 * number, size=8)
    (tmp_path / "films" / "03.png").write_bytes(b"no film")
    files = find_images(tmp_path / "films", None)
    assert [file.name for file in files] == [f"{number:02}.png" for number in range(70)]
    output = tmp_path / "found.csv"
    result = run(
        "--model-uri", brightness_model(), "--input", tmp_path / "films", "--output", output
    )
    assert result.exit_code == 1
    found = read(output)
    assert found.index.tolist() == [file.name for file in files]
    certain = found["p_normal"].drop("03.png").astype(float)
    assert certain.is_monotonic_increasing
    assert found["problem"].astype(bool).sum() == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--input", "nowhere"], "--input=nowhere: not there"),
        (["--input", "empty"], "--input=empty: holds no .png"),
        (["--input", "films", "--masks", "nowhere"], "--masks=nowhere: not there"),
        (["--input", "films", "--masks", "films/1.png"], "name a folder"),
        (["--input", "films", "--model-uri", "nobody"], "--model-uri=nobody: no such folder"),
        (["--input", "films", "--model-uri", ""], "--model-uri= must not be empty"),
        (["--input", "films", "--output", "films"], "--output=films: cannot be written"),
    ],
)
def test_user_errors_are_one_line(args, told, brightness_model, tracking, tmp_path):
    draw(tmp_path / "films" / "1.png", 9)
    (tmp_path / "empty").mkdir()
    if "--model-uri" not in args:
        args = ["--model-uri", str(brightness_model()), *args]
    result = run(*args)
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert not list(tmp_path.rglob("*.part"))


def test_a_registered_model_by_its_alias(kaggle, brightness_model, tracking, tmp_path):
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    version = mlflow.register_model(log_model(brightness_model("lungs"), run_id=run_id), "films")
    client.set_registered_model_alias("films", "champion", version.version)
    by_folder, by_alias = tmp_path / "a.csv", tmp_path / "b.csv"
    kaggle_film = kaggle / "COVID" / "images" / "COVID-1.png"
    kaggle_film.write_bytes(kaggle_film.read_bytes()[:60])  # the others must not suffer
    for model, output in (
        (brightness_model("lungs"), by_folder),
        ("models:/films@champion", by_alias),
    ):
        assert run("--model-uri", model, "--input", kaggle, "--output", output).exit_code == 1
    assert by_alias.read_text() == by_folder.read_text()
    assert ",damaged or truncated" in by_alias.read_text().replace('"', "")

    result = run("--model-uri", "models:/films@nobody", "--input", kaggle)
    assert result.exit_code == 2
    assert "--model-uri=models:/films@nobody" in result.stderr
    assert "registered here: films" in result.stderr


def test_without_a_store_nothing_is_made(kaggle, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = run("--input", kaggle)  # the default model is a registered one
    assert result.exit_code == 2
    assert "no such tracking store" in result.stderr
    assert not list((tmp_path / "here").iterdir())


def test_promote_command(tracking, tmp_path):
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))
    client.create_registered_model("films")
    for digest in ("d1", "d2"):
        run_id = client.create_run(experiment).info.run_id
        client.set_tag(run_id, "test_digest", digest)
        client.create_model_version("films", str(tmp_path), run_id)

    def ask(*args: str) -> Result:
        return CliRunner().invoke(promote, ["films", *args], catch_exceptions=False)

    first = ask("1")
    assert (first.exit_code, "version 1 is the champion" in first.output) == (0, True)
    second = ask("2")
    assert second.exit_code == 1
    assert "not promoted: version 1 stays champion" in second.output
    assert "--force" in second.output
    assert ask("2", "--force").exit_code == 0
    assert str(client.get_registered_model("films").aliases["champion"]) == "2"
    assert ask("7").exit_code == 2
