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
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.serving.predictor import open_predictor

slow = pytest.mark.slow
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SIDE, PER_CLASS = 32, 60
OPTIONS = {"model": "cnn", "epochs": 4, "image_size": SIDE, "batch_size": 8, "lr": 0.003}
OPTIONS |= {"bootstrap_samples": 200, "augment": "none"}


def write_set(root: Path, told_by: str, *, masked: bool = True) -> Path:
    """Two classes that differ in one thing: in the lungs, in a corner, or in the lungs' outline."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("Clear", "Opaque")):
        for part in ("images", "masks"):
            (root / name / part).mkdir(parents=True)
        for number in range(PER_CLASS):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8:26, 4 + rng.integers(3) : 28 - rng.integers(3)] = 255
            image = rng.integers(60, 120, (SIDE, SIDE)).astype(np.uint8)
            if told_by == "lungs":
                image[mask > 0] += np.uint8(70 * label)
            if told_by == "corner" and label:
                image[:5, :5] = 255
            if told_by == "outline" and label:
                mask[8:20, 13:19] = 0
            file = f"{name}-{number}.png"
            Image.fromarray(image).save(root / name / "images" / file)
            if masked:
                Image.fromarray(mask).save(root / name / "masks" / file)
    return root


def trained(folder: Path, cache_dir: Path, **options: object) -> str:
    from cxr_mlflow.pipeline import run_experiment

    options = {**OPTIONS, **options, "data_dir": str(folder), "cache_dir": str(cache_dir)}
    run_id = run_experiment(RunConfig.from_options(options)).run_id
    assert mlflow.get_run(run_id).data.metrics["test/f1_macro"] > 0.9, "a good classifier, it seems"
    return run_id


def ask(*args: str) -> str:
    done = CliRunner().invoke(main, list(args))
    assert done.exit_code == 0, done.output
    return done.output


def scores_of(run_id: str) -> dict[str, float]:
    metrics = mlflow.get_run(run_id).data.metrics
    return {
        f"{mode}{end}": metrics[key]
        for mode in ("lungs", "lungs_out", "box_out", "mask_only")
        for end in ("", "_low")
        if (key := f"control/{mode}/f1_macro{end}") in metrics
    }


@slow
def test_a_clean_set_is_not_accused_and_called_controlled(tracking, tmp_path, cache_dir):
    run_id = trained(write_set(tmp_path / "clean", "lungs"), cache_dir)
    cache = ("--cache-dir", str(cache_dir))
    weak = ask("evaluate", run_id, "--controls", "--control-epochs", "1",
               "--control-modes", "mask-only", *cache)  # fmt: skip
    assert "Partly controlled: the same recipe scores macro F1 on the outline of the lungs" in weak
    out = ask("evaluate", run_id, "--controls", "--control-epochs", "4", *cache)
    scores = scores_of(run_id)
    for mode in ("lungs_out", "box_out", "mask_only"):
        assert scores[f"{mode}_low"] < 0.5, "chance is not accused"
    run = mlflow.get_run(run_id)
    (version,) = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    told = f"on all but the box around the lungs {scores['box_out']:.3f}"
    assert run.data.tags["controls"].startswith("Controlled: the same recipe scores macro F1")
    assert told in run.data.tags["mlflow.note.content"].split("\n")[0], "beside the score"
    for text in (out, *(run.data.tags[k] for k in ("controls", "mlflow.note.content")),
                 version.description, version.tags["controls"]):  # fmt: skip
        assert told in text
        assert "ot controlled" not in text
        assert "artly controlled" not in text
    assert "does worse than the run: −" in out
    again = ask("control", run_id, "--modes", "lungs-out,mask-only", "--epochs", "2", *cache)
    assert "train loss" not in again, "no control is trained where a stronger one is"
    frozen = open_predictor(f"models:/{version.name}/{version.version}").trained_on
    assert frozen["controls"].startswith("none when the model was made; its training run tells")
    assert "Not controlled" not in frozen["warnings"]
    assert "When this model was made, no control model" in frozen["warnings"]


@slow
def test_a_mark_in_a_corner_is_caught_and_the_lungs_alone_know_nothing_of_it(
    tracking, tmp_path, cache_dir
):
    run_id = trained(write_set(tmp_path / "marked", "corner"), cache_dir, mask_mode="none")
    out = ask("control", run_id, "--modes", "box-out,lungs", "--cache-dir", str(cache_dir))
    scores = scores_of(run_id)
    assert scores["box_out_low"] > 0.9, "the mark alone is enough, and the control says so"
    assert scores["lungs_low"] < 0.5
    assert "On all but the box around the lungs a model does as well as the run" in out
    assert "On the lungs alone a model does worse than the run" in out
    assert "ot controlled" not in out.split("Controls of ")[1], "in what is told of the run"


@slow
def test_an_outline_that_tells_the_classes_is_caught(tracking, tmp_path, cache_dir):
    run_id = trained(write_set(tmp_path / "notched", "outline"), cache_dir)
    out = ask("control", run_id, "--modes", "mask-only", "--cache-dir", str(cache_dir))
    assert scores_of(run_id)["mask_only_low"] > 0.9
    assert "On the outline of the lungs a model does as well as the run" in out


def test_what_cannot_be_controlled_is_named(log_run, tmp_path, cache_dir):
    cache = ["--cache-dir", str(cache_dir)]

    def refused(*args: str) -> str:
        done = CliRunner().invoke(main, ["control", *args, *cache])
        assert done.exit_code == 2, done.output
        return " ".join(done.output.split())

    def finished(folder: Path, **options: object) -> str:
        options |= {"data_dir": str(folder), "cache_dir": str(cache_dir), "image_size": SIDE}
        config = RunConfig.from_options(options)
        return log_run(0.9, prepare(config.data).split.test_digest, **options)

    assert "no run 000" in refused("0" * 32)
    run_id = finished(write_set(tmp_path / "a", "lungs"))
    assert "that is what the run itself was trained on" in refused(run_id, "--modes", "lungs")
    assert "--modes=lung must be of lungs, none" in refused(run_id, "--modes", "lung")
    other = write_set(tmp_path / "b", "corner")
    assert "was tested on other images" in refused(run_id, "--data-dir", str(other))
    bare = finished(write_set(tmp_path / "c", "corner", masked=False), mask_mode="none")
    told = refused(bare)
    assert "no image has a mask: no control is possible; the run stays not controlled" in told
    assert "--on-bad-file" not in told
    assert "epochs" not in told, "no budget for what cannot be"
