"""`cxr evaluate` on another hospital's images: copies go, absent classes are said, never nan."""

from __future__ import annotations

import io
import os
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from cxr_mlflow.cli import main
from cxr_mlflow.control_models import Controlled, modes_of
from cxr_mlflow.data.catalog import load_catalog
from cxr_mlflow.data.demo import write_demo
from cxr_mlflow.data.duplicates import find_groups
from cxr_mlflow.data.fingerprints import save_fingerprints
from cxr_mlflow.data.splits import make_split
from cxr_mlflow.serving.package import log_model
from cxr_mlflow.serving.scorer import sha256_of
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, ScorerConfig

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
COLUMNS = ["p_covid", "p_lung_opacity", "p_normal", "p_viral_pneumonia"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def write_model(folder: Path, mask_mode: str = "none") -> Path:
    """Four logits that are lines of an image's mean grey value, and all that a model promises."""
    folder.mkdir()
    slopes = np.array([[-40.0, -10.0, 10.0, 40.0]], np.float32)
    grey = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 32, 32])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "slope", "offset"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(slopes, "slope"),
        numpy_helper.from_array(-slopes[0] / 2, "offset"),
    ]
    graph = helper.make_graph(nodes, "greys", [grey], [logits], weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=10), str(folder / "model.onnx")
    )
    config = ScorerConfig(
        classes=CLASSES,
        image_size=32,
        mask_mode=mask_mode,
        model_sha256=sha256_of(folder / "model.onnx"),
        temperature=2.0,
        abstaining=Abstaining(threshold=0.45, risk=0.05, delta=0.05),
        prediction_sets=PredictionSets(thresholds=(0.2,) * 4, coverage=0.9, per_class=True),
        trained_on={"model": "greys", "data": "demo"},
    )
    (folder / "scorer.json").write_text(config.dumps(), encoding="utf-8")
    return folder


def as_jpeg(source: Path, target: Path, side: int) -> None:
    """What another house makes of a film that it was sent: smaller, compressed, brighter."""
    pixels = np.asarray(Image.open(source).convert("L").resize((side, side)), np.float64)
    Image.fromarray((pixels * 0.9 + 10).astype(np.uint8)).save(target, "JPEG", quality=70)


class World:
    """A training run with fingerprints, and a clinic whose films are partly its own."""

    def __init__(self, folder: Path, demo_dir: Path, cache_dir: Path) -> None:
        self.folder, self.demo_dir, self.cache_dir = folder, demo_dir, cache_dir
        catalog = load_catalog(demo_dir, cache_dir=cache_dir)
        groups = find_groups(catalog.thumbnails, catalog.table["pixel_hash"].tolist()).groups
        self.split = make_split(catalog, groups, val_fraction=0.2, test_fraction=0.2, seed=0)
        self.table = catalog.table.assign(split=self.split.table["split"])
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("xrays", artifact_location=str(folder / "artifacts"))
        run = client.create_run(experiment, run_name="greys-run")
        self.run_id = run.info.run_id
        save_fingerprints(folder / "fingerprints.npz", catalog, self.split)
        self.split.save(folder / "split.csv")
        for name in ("fingerprints.npz", "split.csv"):
            client.log_artifact(self.run_id, str(folder / name), "data")
        self.model = write_model(folder / "model")
        self.model_uri = log_model(self.model, run_id=self.run_id)
        tags = {"kind": "training", "model_uri": self.model_uri}
        for name, value in (tags | {"test_digest": self.split.test_digest}).items():
            client.set_tag(self.run_id, name, value)
        self.clinic = self.write_clinic()
        self.map = folder / "clinic.yaml"
        self.map.write_text("healthy: Normal\nflu: viral pneumonia\nlater: null\n")

    def films(self, class_name: str, split: str) -> list[Path]:
        kept = (self.table["class_name"] == class_name) & (self.table["split"] == split)
        return [Path(path) for path in self.table["path"][kept]]

    def write_clinic(self) -> Path:
        """CLASS/*.jpg without a folder between; which films are whose is known by their names."""
        root = self.folder / "clinic"
        new = write_demo(self.folder / "new", num_per_class=8, seed=11)
        for name, told in (("healthy", "Normal"), ("flu", "Viral Pneumonia")):
            (root / name).mkdir(parents=True)
            for path in sorted((new / told / "images").iterdir()):
                as_jpeg(path, root / name / f"own-{path.stem.split('-')[-1]}.jpg", 200)
            for number, path in enumerate(self.films(told, "train")[:2]):
                as_jpeg(path, root / name / f"trained-{number}.jpg", 150 + 40 * number)
            as_jpeg(self.films(told, "test")[0], root / name / "tested.jpg", 180)
        (root / "flu" / "validated.png").write_bytes(
            self.films("Viral Pneumonia", "val")[0].read_bytes()
        )
        (root / "later").mkdir()
        (root / "later" / "broken.png").write_bytes(b"no film")
        Image.new("L", (40, 40), 3).save(root / "later" / "blank.png")
        as_jpeg(self.films("COVID", "train")[0], root / "later" / "film.jpg", 90)
        return root

    def ask(self, *args: object) -> Result:
        words = ["evaluate", *map(str, args), "--cache-dir", str(self.cache_dir)]
        return CliRunner().invoke(main, words, catch_exceptions=False)

    def score(self, *args: object) -> tuple[Result, mlflow.entities.Run]:
        done = self.ask(*args, "--bootstrap-samples", 100)
        assert done.exit_code == 0, done.output
        (run_id,) = [line.split()[1] for line in done.stdout.splitlines() if line[:4] == "run "]
        return done, mlflow.get_run(run_id)


@pytest.fixture(scope="module")
def world(tmp_path_factory, demo_dir, cache_dir, empty_store):
    folder = tmp_path_factory.mktemp("world")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before, os.environ["MLFLOW_TRACKING_URI"] = Path.cwd(), uri
    os.chdir(folder)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield World(folder, demo_dir, cache_dir)
    finally:
        os.chdir(before)
        del os.environ["MLFLOW_TRACKING_URI"]
        mlflow.tracking.fluent._active_experiment_id = None  # there is no public way to leave one


@pytest.fixture(scope="module")
def scored(world):
    """The clinic scored with a class map: output and run."""
    return world.score(world.model_uri, "--data-dir", world.clinic, "--class-map", world.map)


def read(run: mlflow.entities.Run, path: str) -> pd.DataFrame:
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{path}")
    return pd.read_csv(io.StringIO(text), keep_default_na=False)


PLANTED = [
    "flu/trained-0",
    "flu/trained-1",
    "flu/validated",
    "healthy/trained-0",
    "healthy/trained-1",
]


def test_copies_of_training_films_are_taken_out_and_listed_and_no_other_image(scored):
    done, run = scored
    copies = read(run, "data/copies_of_training.csv")
    assert copies["image_id"].tolist() == PLANTED
    assert copies["found"].tolist() == ["near", "near", "exact", "near", "near"]
    assert copies["training_split"].tolist() == ["train", "train", "val", "train", "train"]
    assert run.data.metrics["data/copies_of_training"] == 5
    kept = read(run, "test/predictions.csv")["image_id"].tolist()
    assert len(kept) == 18
    assert not set(kept) & set(PLANTED)
    assert {"flu/tested", "healthy/tested"} <= set(kept), "the model has not seen its test films"
    names = [f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "data")]
    assert "data/copies_of_training.png" in names
    assert "data/clinic.yaml" in names
    told = "5 taken out as copies (1 exact copies, 4 near-copies), of 23 compared with"
    for place in (done.output, run.data.tags["mlflow.note.content"]):
        assert told in place
    assert run.data.tags["checked_against_training"].startswith(f"yes: {told}")
    assert "ould not be checked" not in done.output


def test_scores_are_over_the_classes_that_are_there_and_it_is_said_everywhere(scored):
    done, run = scored
    table = read(run, "test/predictions.csv")
    there = ["Normal", "Viral Pneumonia"]
    assert set(table["true"]) == set(there)
    metrics = run.data.metrics
    truth = {"y_true": table["true"], "y_pred": table["predicted"]}
    f1 = f1_score(**truth, labels=there, average="macro")
    recall = recall_score(**truth, labels=there, average="macro")
    assert metrics["test/f1_macro_present"] == pytest.approx(f1)
    assert metrics["test/balanced_accuracy_present"] == pytest.approx(recall)
    assert "test/f1_macro" not in metrics, "that is a mean over all four"
    area = roc_auc_score(table["true"] == "Normal", table["p_normal"].astype(float))
    assert metrics["test/roc_auc/normal"] == pytest.approx(area)
    low, high = (metrics[f"test/roc_auc_{end}/normal"] for end in ("low", "high"))
    assert low <= area <= high
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(f"**Test macro F1 {f1:.3f}**")
    assert "Only 2 of 4 classes" in note.splitlines()[0]
    assert f"macro F1 over 2 of 4 classes {f1:.3f}" in done.stdout
    assert f"Normal {area:.3f} (" in done.stdout
    assert run.data.tags["classes_present"] == "2 of 4: Normal, Viral Pneumonia"
    assert "healthy 9 as Normal, " in note or ", healthy 9 as Normal" in note
    assert "flu 9 as Viral Pneumonia" in note
    assert "| left out by the class map | later 1 |" in note
    for text in (note, done.stdout):
        assert "nan" not in text


def test_calibration_abstaining_and_sets_are_those_the_model_returned(scored):
    done, run = scored
    table, metrics = read(run, "test/predictions.csv"), run.data.metrics
    probabilities = table[COLUMNS].to_numpy(float)
    sure = probabilities.max(axis=1) >= 0.45
    assert (table["abstain"].to_numpy() == ~sure).all()
    assert metrics["test/selective_coverage"] == pytest.approx(sure.mean())
    sets = [str(names).split("; ") for names in table["prediction_set"]]
    assert sets == [[n for n, p in zip(CLASSES, row, strict=True) if p >= 0.2]
                    for row in probabilities]  # fmt: skip
    held = [true in names for true, names in zip(table["true"], sets, strict=True)]
    assert metrics["test/set_coverage"] == pytest.approx(np.mean(held))
    truth = (table["true"].to_numpy()[:, None] == np.array(CLASSES)).astype(float)
    brier = ((probabilities - truth) ** 2).sum(axis=1).mean()
    assert metrics["test/brier"] == pytest.approx(brier)
    raw = probabilities**2 / (probabilities**2).sum(axis=1, keepdims=True)  # temperature 2
    brier = ((raw - truth) ** 2).sum(axis=1).mean()
    assert metrics["test/raw/brier"] == pytest.approx(brier, rel=1e-4)
    assert {"test/ece", "test/raw/ece"} <= metrics.keys()
    for what in ("calibration: temperature 2.00", "prediction sets: stated coverage 90%"):
        assert what in done.stdout


def test_the_own_test_images_need_neither_split_file_nor_check(world):
    done, run = world.score(world.run_id, "--subset", "test", "--data-dir", world.demo_dir)
    assert len(read(run, "test/predictions.csv")) == len(world.split.rows("test"))
    assert "these are the test images of the training run" in done.stdout
    assert run.data.tags["training_run"] == world.run_id
    assert run.data.tags["classes_present"].startswith("4 of 4")
    assert {"test/f1_macro", "test/ece", "test/set_coverage"} <= run.data.metrics.keys()
    assert not [name for name in run.data.metrics if "_present" in name]


def test_what_could_not_be_checked_is_said_and_one_class_alone_is_scored(world, tmp_path):
    one = tmp_path / "one.yaml"
    one.write_text("healthy: Normal\nflu: null\nlater: null\n")
    asked = (world.model, "--data-dir", world.clinic, "--class-map", one)
    done, run = world.score(*asked)
    note = run.data.tags["mlflow.note.content"]
    for place in (note.splitlines()[0], note, done.stdout):
        assert "Could not be checked against the training images" in place
    assert run.data.tags["checked_against_training"] == (
        "no: the training run of the model is not in this store"
    )
    table = read(run, "test/predictions.csv")
    assert len(table) == 11, "nothing is taken out unseen"
    recall = (table["predicted"] == "Normal").mean()
    assert run.data.metrics["test/balanced_accuracy_present"] == pytest.approx(recall)
    assert "Normal not measured" in done.stdout
    for text in (note, done.stdout):
        assert "nan" not in text


def test_a_folder_of_nothing_but_training_films_opens_no_run(world, tmp_path):
    for name in ("Normal", "Viral Pneumonia"):
        (tmp_path / name / "images").mkdir(parents=True)
        for path in world.films(name, "train")[:2]:
            as_jpeg(path, tmp_path / name / "images" / f"{path.stem}.jpg", 170)
    before = len(mlflow.search_runs(search_all_experiments=True))
    done = world.ask(world.model_uri, "--data-dir", tmp_path)
    assert done.exit_code == 2
    assert "no image is left to score (4 taken out as copies" in done.stderr
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


def test_masks_that_the_model_needs_and_the_clinic_lacks_are_asked_for(world, tmp_path):
    model = write_model(tmp_path / "model", mask_mode="lungs")
    done = world.ask(model, "--data-dir", world.clinic, "--class-map", world.map)
    assert done.exit_code == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "lungs cut out by their mask (mask_mode=lungs), and 23 of 23 images have no" in error
    assert "Put masks of the same names into flu/masks" in error
    assert "--mask-mode none" in error
    assert "--on-bad-file skip" not in error, "that would leave nothing"


def test_a_damaged_film_of_a_class_that_counts_is_refused_or_skipped(world, tmp_path):
    told = tmp_path / "map.yaml"
    told.write_text("healthy: Normal\nflu: COVID\nlater: Normal\n")
    done = world.ask(world.model_uri, "--data-dir", world.clinic, "--class-map", told)
    assert done.exit_code == 2
    assert "2 files cannot be used (1 blank_image, 1 not_an_image)" in done.stderr
    assert "later/broken.png" in done.stderr
    assert "--on-bad-file skip" in done.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "the data have healthy, flu, later as well: say with --class-map FILE"),
        (("--class-map", "gone.yaml"), "--class-map=gone.yaml: cannot be read"),
        (("--subset", "test"), "--class-map"),
        (("more", "words"), "one model is evaluated at a time; what is 'more words'?"),
        (("--model-uri", "again"), "one model is evaluated at a time"),
        (("--control-epochs", "3"), "--control-epochs=3 is for --controls true only"),
        (("--controls", "--class-map", "x"), "--class-map=x does not go with --controls"),
        (("--controls", "--run-name", "x"), "--run-name does not go with --controls"),
        (("--controls", "--split-file", "x"), "--split-file does not go with --controls"),
    ],
)
def test_user_errors_name_the_flag(world, args, told):
    done = world.ask(world.model_uri, *args, "--data-dir", world.clinic)
    assert done.exit_code == 2
    assert told in done.stderr.replace("flu, healthy", "healthy, flu")


def test_a_run_without_a_model_is_named(world):
    client = mlflow.MlflowClient()
    run_id = client.create_run(mlflow.get_run(world.run_id).info.experiment_id).info.run_id
    done = world.ask(run_id, "--data-dir", world.clinic, "--class-map", world.map)
    assert done.exit_code == 2
    assert f"run {run_id}" in done.stderr
    assert "has logged no model" in done.stderr


@pytest.mark.parametrize("by", ["run", "model", "option"])
def test_controls_are_those_of_cxr_control(world, monkeypatch, by):
    asked = []

    class Compared:
        def show(self):
            print("the table")

    def control_run(config):
        asked.append(config)
        return Controlled(Compared(), ("found",))

    monkeypatch.setattr("cxr_mlflow.control_models.control_run", control_run)
    words = {
        "run": [world.run_id, "--controls"],
        "model": [world.model_uri, "--controls", "true"],
        "option": ["--controls", "true", "--model-uri", world.model_uri],
    }[by]
    done = world.ask(*words, "--control-epochs", 2, "--data-dir", "demo")
    assert done.exit_code == 0, done.output
    assert "found" in done.stdout
    (config,) = asked
    assert (config.run_id, config.epochs, config.modes) == (world.run_id, 2, "auto")
    assert (config.data_dir, config.cache_dir) == ("demo", str(world.cache_dir))
    assert modes_of(config, "lungs") == ["lungs-out", "box-out", "mask-only"]
