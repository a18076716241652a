"""A planted shortcut is caught by its control model, and a set without one is not accused."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cxr_mlflow.cli import main
from cxr_mlflow.config import RunConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIDE, PER_CLASS = 32, 60


def write_set(root: Path, *, marker: bool) -> Path:
    """Two classes that differ in the lungs, and with `marker` in a corner as well."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("Clear", "Opaque")):
        for part in ("images", "masks"):
            (root / name / part).mkdir(parents=True)
        for number in range(PER_CLASS):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8:26, 4 + rng.integers(3) : 28 - rng.integers(3)] = 255
            image = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
            image[mask > 0] += np.uint8(70 * label)
            if marker and label:
                image[:5, :5] = 255
            file = f"{name}-{number}.png"
            Image.fromarray(image).save(root / name / "images" / file)
            Image.fromarray(mask).save(root / name / "masks" / file)
    return root


def trained(folder: Path, cache_dir: Path) -> str:
    from cxr_mlflow.pipeline import run_experiment

    options = {"data_dir": str(folder), "cache_dir": str(cache_dir), "model": "cnn", "epochs": 4}
    options |= {"image_size": SIDE, "batch_size": 8, "lr": 0.003, "bootstrap_samples": 200}
    return run_experiment(RunConfig.from_options({**options, "augment": "none"})).run_id


def control(*args: str) -> str:
    done = CliRunner().invoke(main, ["control", *args])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_planted_marker_is_caught_and_a_clean_set_is_not_accused(tracking, tmp_path, cache_dir):
    scores = {}
    for name in ("marked", "clean"):
        folder = write_set(tmp_path / name, marker=name == "marked")
        run_id = trained(folder, cache_dir)
        cache = ("--cache-dir", str(cache_dir))
        out = control(run_id, "--modes", "lungs-out", *cache)
        run = mlflow.get_run(run_id)
        assert run.data.metrics["test/f1_macro"] > 0.9, "both look like good classifiers"
        scores[name] = [run.data.metrics[f"control/lungs_out/f1_macro{e}"] for e in ("", "_low")]
        told = f"on all but the lungs {scores[name][0]:.3f}"
        note, tags = run.data.tags["mlflow.note.content"], run.data.tags
        assert told in out
        assert told in note.splitlines()[0], "beside the score, where it said not controlled"
        assert told in tags["controls"]
        assert "Not controlled" not in note
        (version,) = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
        assert told in version.description
        assert told in version.tags["controls"]
        again = control(run_id, "--modes", "lungs-out", *cache)
        assert "train loss" not in again, "a finished control is not trained again"
    assert scores["marked"][1] > 0.9, "the marker alone is enough, and the control says so"
    assert scores["clean"][1] < 0.5, "chance is not accused"


def test_what_cannot_be_controlled_is_named(tracking, tmp_path, cache_dir):
    cache = ["--cache-dir", str(cache_dir)]
    done = CliRunner().invoke(main, ["control", "0" * 32, *cache])
    assert (done.exit_code, "no run 000" in done.output) == (2, True)
    run_id = trained(write_set(tmp_path / "a", marker=False), cache_dir)
    done = CliRunner().invoke(main, ["control", run_id, "--modes", "lungs", *cache])
    assert done.exit_code == 2
    assert "that is what the run itself was trained on" in done.output
    other = write_set(tmp_path / "b", marker=True)
    done = CliRunner().invoke(main, ["control", run_id, "--data-dir", str(other), *cache])
    assert done.exit_code == 2
    assert "was tested on other images" in done.output
    done = CliRunner().invoke(main, ["control", run_id, "--modes", "lung", *cache])
    assert "--modes=lung must be of lungs, none" in done.output
