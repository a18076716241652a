"""Whole runs on small demo data: what a user finds in MLflow afterwards, and that it is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from cxr_mlflow.command_config import EvaluateConfig
from cxr_mlflow.config import DataConfig, RunConfig, TrackingConfig
from cxr_mlflow.data.demo import write_demo
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import slug
from cxr_mlflow.serving.gate import check_model_loads
from cxr_mlflow.sync import sync_runs
from cxr_mlflow.tracking.registry import NotRegistered

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
SMALL = {
    "model": "cnn",
    "strategy": "weighted",
    "epochs": 2,
    "image_size": 48,
    "batch_size": 16,
    "bootstrap_samples": 100,
    "device": "cpu",
}


def experiment(demo_dir, cache_dir, **options):
    from cxr_mlflow.pipeline import run_experiment

    told = {**SMALL, "data_dir": str(demo_dir), "cache_dir": str(cache_dir), **options}
    return run_experiment(RunConfig.from_options(told))


@pytest.fixture(scope="module")
def world(tmp_path_factory, demo_dir, cache_dir, empty_store):
    """Two runs that differ in nothing, in one store."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before, os.environ["MLFLOW_TRACKING_URI"] = Path.cwd(), uri
    os.chdir(folder)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield [experiment(demo_dir, cache_dir) for _ in range(2)]
    finally:
        os.chdir(before)
        del os.environ["MLFLOW_TRACKING_URI"]


@pytest.fixture
def run(world):
    return mlflow.get_run(world[0].run_id)


def read(run_id: str, path: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=path))


def test_the_run_ends_well_and_says_what_it_is(run):
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "cnn-weighted-48px-lungs-seed0-demo"
    tags = run.data.tags
    told = {k: tags[k] for k in ("model", "strategy", "seed", "data", "synthetic", "weights")}
    assert "cores of" in tags["machine"]
    assert told == {
        "model": "cnn",
        "strategy": "weighted",
        "seed": "0",
        "data": "demo",
        "synthetic": "true",
        "weights": "random",
    }


def test_parameters_hold_the_whole_config_and_what_it_ran_on(run):
    params = run.data.params
    assert RunConfig().to_params().keys() <= params.keys()
    assert params["image_size"] == "48"
    for name in ("data_digest", "split_digest", "test_digest"):
        assert len(params[name]) == 64
    assert params["version/torch"] == metadata.version("torch")
    assert params["git_commit"]


def test_epochs_have_steps_and_finals_have_none(run):
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "val/f1_macro")
    assert [m.step for m in history] == [1, 2]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "test/f1_macro")] == [0]
    drawn = [run.data.metrics[f"train/drawn/{slug(name)}"] for name in CLASSES]
    counts = pd.read_csv(read(run.info.run_id, "data/split.csv"))
    train = counts[counts["split"] == "train"]["class_name"].value_counts()
    assert drawn == [train[name] for name in CLASSES]  # `weighted` leaves the draw as it is


def test_scores_follow_from_the_predictions_that_are_logged(run):
    table = pd.read_csv(read(run.info.run_id, "test/predictions.csv"))
    split = pd.read_csv(read(run.info.run_id, "data/split.csv"))
    assert set(table["image_id"]) == set(split[split["split"] == "test"]["image_id"])
    expected = f1_score(table["true"], table["predicted"], average="macro")
    assert run.data.metrics["test/f1_macro"] == pytest.approx(expected)
    told = json.loads(read(run.info.run_id, "metrics.json").read_text())
    assert told["metrics"]["f1_macro"] == pytest.approx(expected)
    low, high = (run.data.metrics[f"test/f1_macro_{end}"] for end in ("low", "high"))
    assert low <= expected <= high
    probabilities = table[[f"p_{slug(name)}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_calibration_is_fitted_told_and_kept_with_the_model(run):
    metrics = run.data.metrics
    model = read(run.info.run_id, "model_gate.json")
    assert json.loads(model.read_text())["gate"] == "passed", "with calibrated probabilities"
    assert 0.01 <= metrics["test/temperature"] <= 100
    for name in ("ece", "brier", "brier/covid", "ece/viral_pneumonia"):
        raw, calibrated = metrics[f"test/raw/{name}"], metrics[f"test/{name}"]
        head, _, tail = name.partition("/")
        low = metrics[f"test/{head}_low" + (f"/{tail}" if tail else "")]
        assert 0 <= low <= calibrated
        assert raw >= 0
    table = pd.read_csv(read(run.info.run_id, "test/predictions.csv"))
    films = table.groupby("group")  # near-duplicates are one film
    answered = 1 - films["abstain"].min().mean()
    assert answered == pytest.approx(metrics["test/selective_coverage"])
    held = [
        true in str(names).split("; ")
        for true, names in zip(table["true"], table["prediction_set"], strict=True)
    ]
    held = table.assign(held=held).groupby("group")["held"].min().mean()
    assert held == pytest.approx(metrics["test/set_coverage"])
    note = run.data.tags["mlflow.note.content"]
    for told in ("calibration", "abstaining", "prediction sets"):
        assert f"| {told} |" in note
    assert "of each class (approximate: " in note


def test_the_prior_correction_is_told_and_can_be_undone(run):
    metrics, model = run.data.metrics, mlflow.pyfunc.load_model(run.data.tags["model_uri"])
    split = pd.read_csv(read(run.info.run_id, "data/split.csv"))
    shares = split[split["split"] == "train"]["class_name"].value_counts(normalize=True)
    prior = model.metadata.metadata["prior"]
    shift = np.log(shares[list(CLASSES)]) + np.log(len(CLASSES))  # weighted: as if all were equal
    np.testing.assert_allclose(prior["shares"], shares[list(CLASSES)])
    np.testing.assert_allclose(prior["shift"], shift, atol=1e-12)
    for name, share, value in zip(CLASSES, prior["shares"], prior["shift"], strict=True):
        assert metrics[f"train_share/{slug(name)}"] == pytest.approx(share)
        assert metrics[f"prior_shift/{slug(name)}"] == pytest.approx(value)
    table = pd.read_csv(read(run.info.run_id, "test/predictions.csv"))
    served = table[[f"p_{slug(name)}" for name in CLASSES]].to_numpy()
    undone = served ** metrics["test/temperature"] / np.exp(prior["shift"])
    undone /= undone.sum(axis=1, keepdims=True)
    truth = (table["true"].to_numpy()[:, None] == np.array(CLASSES)).astype(float)
    brier = ((undone - truth) ** 2).sum(axis=1).mean()
    assert metrics["test/uncorrected/brier"] == pytest.approx(brier, rel=1e-4)
    for name in ("ece", "loss", "ece/covid", "brier/normal"):
        assert f"test/uncorrected/{name}" in metrics
    assert "without the prior correction" in run.data.tags["mlflow.note.content"]
    card = read(run.info.run_id, "model_card.md").read_text()
    assert "| on the test images | without prior correction | raw | as served |" in card
    assert "| prior correction | added to the logits: COVID " in card


def test_the_source_of_a_file_is_held_against_the_score(run):
    split = pd.read_csv(read(run.info.run_id, "data/split.csv"))
    train, test = (split[split["split"] == name] for name in ("train", "test"))
    rule = train.groupby("source")["class_name"].agg(lambda names: names.mode()[0])
    expected = f1_score(test["class_name"], test["source"].map(rule), average="macro")
    metrics = run.data.metrics
    assert metrics["test/source_floor/majority_f1_macro"] == pytest.approx(expected)
    floor, low, high = (
        metrics[f"test/source_floor/f1_macro{end}"] for end in ("", "_low", "_high")
    )
    assert 0 < low <= floor <= high <= 1
    assert (
        f"macro F1 {floor:.3f} ({low:.3f}–{high:.3f}) knowing"
        in run.data.tags["mlflow.note.content"]
    )
    assert "source floor" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    "path",
    [
        "README.md",
        "config.json",
        "model_gate.json",
        "data/problems.csv",
        "data/audit.html",
        "data/audit.json",
        "data/augmented_samples.png",
        "data/class_distribution.png",
        "data/near_duplicates.png",
        "test/confusion_counts.png",
        "test/confusion_rates.png",
        "test/roc.png",
        "test/precision_recall.png",
        "test/worst_errors.png",
        "test/reliability.png",
        "test/risk_coverage.png",
        "test/prediction_sets.png",
        "training/curves.png",
        "training/draws.png",
        "training/history.csv",
        "weights/weights.safetensors",
        "model_card.md",
        "model_card.html",
        "model_card.json",
    ],
)
def test_artifact_is_there(run, path):
    assert read(run.info.run_id, path).stat().st_size > 10


def test_note_shows_warnings_beside_the_score(run):
    note = run.data.tags["mlflow.note.content"]
    first = note.splitlines()[0]
    assert all(told in first for told in ("Test macro F1", "Synthetic data", "Not controlled"))
    assert "cxr-classifier-demo version 1" in note


def test_data_set_is_an_input_of_the_run(run):
    contexts = {tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags}
    assert contexts == {"training", "validation", "testing"}


def test_the_same_command_gives_the_same_bits(world):
    first, second = (read(o.run_id, "weights/weights.safetensors") for o in world)
    from safetensors.numpy import load_file

    a, b = load_file(first), load_file(second)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    one, two = (read(o.run_id, "test/predictions.csv").read_text() for o in world)
    assert one == two


def test_first_is_champion_and_an_equal_one_only_challenges(world):
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model("cxr-classifier-demo").aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "champion": "1",
        "challenger": "2",
    }
    assert (
        "stays champion" in client.get_model_version("cxr-classifier-demo", "2").tags["promotion"]
    )
    assert "challenger" in world[1].registered


def test_a_control_is_not_registered_and_says_why(world, demo_dir, cache_dir):
    versions = mlflow.MlflowClient().search_model_versions()
    control = experiment(demo_dir, cache_dir, mask_mode="mask-only", epochs=1)
    assert control.registered is None
    assert "model     not registered (a control: the outline of the lungs)" in control.lines
    told = mlflow.get_run(control.run_id).data.tags["registered"]
    assert told == "no (a control: the outline of the lungs)"
    assert len(mlflow.MlflowClient().search_model_versions()) == len(versions)


CLEAN = """
import sys
import mlflow, pandas as pd
image, mask = sys.argv[1:3]
model = mlflow.pyfunc.load_model("models:/cxr-classifier-demo@champion")
table = pd.DataFrame({"image": [open(image, "rb").read()], "mask": [open(mask, "rb").read()]})
row = model.predict(table).iloc[0]
assert "torch" not in sys.modules
told = [row["label"], round(float(row["confidence"]), 5), row["abstain"], row["prediction_set"]]
print(*told, sep="|")
"""


def test_a_clean_process_elsewhere_loads_the_champion(world, run, demo_dir, tmp_path):
    table = pd.read_csv(read(run.info.run_id, "test/predictions.csv"))
    row = table.iloc[0]
    name, stem = row["image_id"].split("/")
    paths = [str(demo_dir / name / kind / f"{stem}.png") for kind in ("images", "masks")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CLEAN, *paths],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    label, confidence, abstain, possible = done.stdout.strip().splitlines()[-1].split("|")
    assert label == row["predicted"]
    assert float(confidence) == pytest.approx(row["confidence"], abs=1e-3)
    assert abstain == str(row["abstain"])
    assert possible == row["prediction_set"]


def test_evaluate_gives_the_scores_of_the_training_run(world, run, demo_dir, cache_dir):
    from cxr_mlflow.assess import evaluate_model

    done = evaluate_model(
        EvaluateConfig(model_uri="models:/cxr-classifier-demo/1", subset="test"),
        DataConfig(
            data_dir=str(demo_dir),
            cache_dir=str(cache_dir),
            split_file=str(read(run.info.run_id, "data/split.csv")),
        ),
        TrackingConfig(bootstrap_samples=100),
    )
    assert done.result.metrics["f1_macro"] == pytest.approx(run.data.metrics["test/f1_macro"])
    again = mlflow.get_run(done.run_id)
    assert again.info.status == "FINISHED"
    assert again.data.tags["kind"] == "evaluation"
    assert "Synthetic data" in again.data.tags["mlflow.note.content"]


def test_training_images_are_taken_out_before_a_folder_is_scored(world, run, demo_dir, cache_dir):
    from cxr_mlflow.assess import evaluate_model

    done = evaluate_model(
        EvaluateConfig(model_uri="models:/cxr-classifier-demo/1"),
        DataConfig(data_dir=str(demo_dir), cache_dir=str(cache_dir)),
        TrackingConfig(bootstrap_samples=100),
    )
    assert any("taken out as copies" in line for line in done.lines)
    tested = pd.read_csv(read(run.info.run_id, "test/predictions.csv"))
    assert set(done.result.predictions["image_id"]) <= set(tested["image_id"])
    card = read(run.info.run_id, "model_card.md").read_text()
    assert "Images of other hospitals: **not measured**" in card, "they are the run's own data"


def test_an_external_evaluation_is_on_the_card_of_the_model(world, run, cache_dir, tmp_path):
    from cxr_mlflow.assess import evaluate_model

    other = write_demo(tmp_path / "clinic", num_per_class=8, seed=11)
    mapped = tmp_path / "map.yaml"
    mapped.write_text(
        "COVID: null\nLung_Opacity: null\nNormal: Normal\nViral Pneumonia: Viral Pneumonia\n"
    )
    for _ in range(2):  # the same evaluation again replaces its line
        done = evaluate_model(
            EvaluateConfig(model_uri="models:/cxr-classifier-demo/1", class_map=str(mapped)),
            DataConfig(data_dir=str(other), cache_dir=str(cache_dir)),
            TrackingConfig(bootstrap_samples=100),
        )
        assert f"model card: told under External testing of run {run.info.run_id}" in done.lines
    uri = "models:/cxr-classifier-demo/1/model_card.md"
    card = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path))).read_text()
    told = card.split("## External testing")[1].split("\n## ")[0]
    (line,) = [line for line in told.splitlines() if done.run_id in line]
    f1 = done.result.intervals["f1_macro_present"]
    assert f"| 2 of 4 | {f1.value:.3f} ({f1.low:.3f}–{f1.high:.3f}) |" in line
    assert "(synthetic), digest " in line
    assert told.count(", digest ") == 1
    assert "not measured" not in told


def test_split_file_gives_the_same_test_images(world, run, demo_dir, cache_dir):
    split_file = str(read(run.info.run_id, "data/split.csv"))
    other = experiment(demo_dir, cache_dir, split_seed=5, epochs=1, register=False)
    same = experiment(
        demo_dir, cache_dir, split_seed=5, split_file=split_file, epochs=1, register=False
    )
    digests = [mlflow.get_run(o.run_id).data.params["test_digest"] for o in (other, same)]
    assert digests[1] == run.data.params["test_digest"]
    assert digests[0] != digests[1]
    assert same.registered is None


def test_a_list_of_sources_that_does_not_fit_is_said_wherever_it_is_used(
    world, demo_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("cxr_mlflow.data.audit_listing.BOTH_SIDES", 0.0)  # the demo has no trace,
    monkeypatch.setattr("cxr_mlflow.data.audit_listing.DOUBTED", 1.1)  # and is not doubted else
    monkeypatch.setattr("cxr_mlflow.evaluation.sources.MIN_IMAGES", 2)
    names = [f"Normal/Normal-{k}" for k in range(1, 25)]
    shared = ("plains.example.org/challenge", "hills.example.org")
    told = pd.DataFrame({"image_id": names, "source": np.resize(shared, 24)})
    told.to_csv(tmp_path / "mine.csv", index=False)
    options = {"source_file": str(tmp_path / "mine.csv")}
    done = experiment(demo_dir, tmp_path / "cache", **options, epochs=1, register=False)
    doubt = "The listed sources of Normal do not fit its films"
    assert f"! {doubt}" in capsys.readouterr().err, "before the training"
    assert any(line.startswith(f"! {doubt}") for line in done.lines)
    run = mlflow.get_run(done.run_id)
    note = run.data.tags["mlflow.note.content"]
    assert doubt in note.splitlines()[0]
    assert f"> - {doubt}: " in note
    for told in ("source floor", "within plains", "within hills"):
        (line,) = (line for line in done.lines if line.startswith(told))
        assert line.endswith("; but the listed sources of Normal do not fit its films")
    assert f"! {doubt}" in read(done.run_id, "data/audit.html").read_text()
    assert doubt in read(done.run_id, "model_card.md").read_text()
    assert run.data.params["source_file"] == options["source_file"]
    assert read(done.run_id, "data/mine.csv").read_text() == (tmp_path / "mine.csv").read_text()
    split = pd.read_csv(read(done.run_id, "data/split.csv")).set_index("image_id")
    assert split.loc[names, "source"].tolist() == list(np.resize(shared, 24))
    tested = pd.read_csv(read(done.run_id, "test/predictions.csv")).set_index("image_id")
    assert (tested["source"] == split.loc[tested.index, "source"]).all()
    assert run.data.metrics["audit/listed_sources/roc_auc/normal"] > 0

    from cxr_mlflow.assess import evaluate_model

    asked = EvaluateConfig(model_uri=done.run_id, subset="test")
    told = {"cache_dir": str(tmp_path / "cache"), "source_file": options["source_file"]}
    data = DataConfig(data_dir=str(demo_dir), **told)
    again = evaluate_model(asked, data, TrackingConfig(bootstrap_samples=100))
    scored = again.result.predictions.set_index("image_id")["source"]
    assert scored.equals(tested["source"].loc[scored.index])
    assert mlflow.get_run(again.run_id).data.params["source_file"] == options["source_file"]
    assert read(again.run_id, "data/mine.csv").stat().st_size


def test_bad_data_open_no_run(world, tmp_path, demo_dir, cache_dir):
    before = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises(InputError, match="--data-dir"):
        experiment(tmp_path / "nothing", cache_dir)
    with pytest.raises(InputError, match="--weights"):
        experiment(demo_dir, cache_dir, weights=str(tmp_path / "gone.pth"))
    with pytest.raises(InputError, match="--source-file"):
        experiment(demo_dir, cache_dir, source_file=str(tmp_path / "gone.csv"))
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


def test_an_error_in_a_run_ends_it_as_failed_with_the_reason(world, demo_dir, cache_dir):
    with pytest.raises(FloatingPointError):
        experiment(demo_dir, cache_dir, lr=1e30, clip_norm=0.0, register=False)
    last = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    assert last.info.status == "FAILED"
    assert "FloatingPointError" in last.data.tags["failure"]


def test_a_model_that_does_not_load_is_not_registered_and_the_scores_are_kept(
    world, demo_dir, cache_dir, monkeypatch
):
    before = len(mlflow.MlflowClient().search_model_versions("name='cxr-classifier-demo'"))
    strict = {**check_model_loads.__kwdefaults__, "atol": -1.0}  # no difference is that small
    monkeypatch.setattr(check_model_loads, "__kwdefaults__", strict)
    with pytest.raises(NotRegistered, match="probabilities are off"):
        experiment(demo_dir, cache_dir, epochs=1)
    last = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    assert last.info.status == "FAILED"
    assert "not registered" in last.data.tags["mlflow.note.content"]
    assert "test/f1_macro" in last.data.metrics
    after = len(mlflow.MlflowClient().search_model_versions("name='cxr-classifier-demo'"))
    assert after == before


def test_a_model_that_could_not_be_tried_is_tried_when_the_command_is_typed_again(
    world, demo_dir, cache_dir, monkeypatch
):
    """A busy machine says nothing of the model: it is neither refused for good nor lost."""
    hurried = {**check_model_loads.__kwdefaults__, "timeout": 0.1, "tries": 1}
    with monkeypatch.context() as busy:
        busy.setattr(check_model_loads, "__kwdefaults__", hurried)
        with pytest.raises(NotRegistered, match=r"not tried: not done.*The same command"):
            experiment(demo_dir, cache_dir, epochs=1, seed=5)
        lines, all_sent = sync_runs()
        assert not all_sent
        assert any("seed5" in line and "its model could not be tried" in line for line in lines)
    last = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    assert last.info.status == "FAILED"
    assert last.data.tags["failure"].startswith("NotRegistered: ")
    done = experiment(demo_dir, cache_dir, epochs=1, seed=5)
    again = mlflow.get_run(done.run_id)
    assert again.info.run_id == last.info.run_id
    assert again.info.status == "FINISHED"
    assert "failure" not in again.data.tags
    assert again.data.tags["attempts"] == "2"
    assert "version" in done.registered
    assert "not registered" not in again.data.tags["mlflow.note.content"]


@pytest.mark.data
def test_real_x_rays_train_above_chance(mini_dir, cache_dir, tracking):
    done = experiment(mini_dir, cache_dir, epochs=6, image_size=64, strategy="oversample", lr=0.003)
    assert done.metrics["f1_macro"] > 0.35
    assert "cxr-classifier version 1" in done.registered
