"""Shared by all tests: small real data, drawn once, and MLflow stores that are thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxr_mlflow.evaluation.control_facts import FoundControls
    from cxr_mlflow.evaluation.model_card_facts import CardFacts

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.pop("MLFLOW_RUN_ID", None)  # the suite may itself run inside `mlflow run`
os.environ.pop("CXR_DATA_DIR", None)

with warnings.catch_warnings():  # what the libraries warn of at import is theirs to mend
    warnings.simplefilter("ignore")
    import albumentations  # noqa: F401
    import mlflow
    import mlflow.pyfunc
    import torch  # noqa: F401

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests go first: at the end no process is left alone with one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory):
    """Interrupted runs of tests are not those of the user who runs them."""
    os.environ["CXR_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
    yield Path(os.environ["CXR_STATE_DIR"])
    del os.environ["CXR_STATE_DIR"]


@pytest.fixture(autouse=True)
def leave_no_experiment_behind():
    """MLflow leaves variables behind; the registry is that of the store again."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    for name in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)  # a fixture of a module may have set them
    mlflow.set_registry_uri(None)
    os.environ.pop("MLFLOW_REGISTRY_URI", None)
    mlflow.tracking.fluent._active_experiment_id = None  # there is no public way to leave one


@pytest.fixture
def hears_ctrl_c():
    """A shell makes its background jobs deaf to SIGINT, and these tests and their processes too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def repo() -> Path:
    """Folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo data set of 24 films a class; do not write into it."""
    from cxr_mlflow.data.demo import write_demo

    return write_demo(tmp_path_factory.mktemp("demo") / "demo", num_per_class=24)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of decoded images for the whole session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mini_dir() -> Path:
    """480 real X-rays, where `data/mini` was unpacked."""
    folder = ROOT / "data" / "mini" / "COVID-19_Radiography_Dataset"
    if not folder.is_dir():
        pytest.skip("no real X-rays here: data/mini is not unpacked")
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a migrated, empty sqlite store to copy: the migration takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set MLflow on an empty sqlite store of this test, and work in the test's folder."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return uri


@pytest.fixture
def brightness_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a model folder whose answer can be computed by hand, without torch.

    Classes `Dark Film` and `Normal`; logits 4 - 8 m and 8 m - 4 for a mean grey value m in [0, 1].
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from cxr_mlflow.serving.scorer import sha256_of
    from cxr_mlflow.serving.scorer_config import ScorerConfig

    def write(mask_mode: str = "none", image_size: int = 32, temperature: float = 1.0) -> Path:
        folder = tmp_path / f"model-{mask_mode}-{image_size}-{temperature}"
        folder.mkdir(exist_ok=True)
        float32 = TensorProto.FLOAT
        graph = helper.make_graph(
            [
                helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
                helper.make_node("Flatten", ["mean"], ["flat"]),
                helper.make_node("Gemm", ["flat", "slope", "offset"], ["logits"]),
            ],
            "brightness",
            [
                helper.make_tensor_value_info(
                    "images", float32, ["batch", 1, image_size, image_size]
                )
            ],
            [helper.make_tensor_value_info("logits", float32, ["batch", 2])],
            [
                numpy_helper.from_array(np.array([[-8.0, 8.0]], np.float32), "slope"),
                numpy_helper.from_array(np.array([4.0, -4.0], np.float32), "offset"),
            ],
        )
        opset = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=10)
        onnx.save(model, str(folder / "model.onnx"))
        config = ScorerConfig(
            classes=("Dark Film", "Normal"),
            image_size=image_size,
            mask_mode=mask_mode,
            model_sha256=sha256_of(folder / "model.onnx"),
            temperature=temperature,
            trained_on={"data": "greys"},
        )
        (folder / "scorer.json").write_text(config.dumps(), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def log_run(tracking: str) -> Callable[..., str]:
    """Log a finished training run that hits the given share of the test images."""
    import pandas as pd
    from sklearn.metrics import f1_score

    from cxr_mlflow.config import RunConfig

    classes, number = np.array(["COVID", "Normal"]), 120
    client = mlflow.MlflowClient()
    home = client.create_experiment("chest-xray")
    ids = [f"image-{i}" for i in range(number)]

    def log(hits: float, digest: str = "d" * 64, *, tags: dict | None = None, **options) -> str:
        config = RunConfig.from_options({"model": "cnn", **options})
        rng = np.random.default_rng([int(100 * hits), config.train.seed])
        true = np.arange(number) % 2
        predicted = np.where(rng.random(number) < hits, true, 1 - true)
        told = {
            "kind": "training",
            "model": config.model.model,
            "weights": "random",
            "synthetic": "false",
            "test_digest": digest,
            "machine": "2 cores of a processor",
        }
        run = client.create_run(home, tags=told | (tags or {}), run_name=f"cnn-{hits}")
        for name, value in {**config.to_params(), "git_commit": "c" * 40}.items():
            client.log_param(run.info.run_id, name, value)
        table = pd.DataFrame({"image_id": ids, "source": "here", "true": classes[true]})
        table["predicted"], table["confidence"] = classes[predicted], 0.9
        table["correct"], table["group"] = true == predicted, np.arange(number)
        table["p_covid"] = np.where(predicted == 0, 0.9, 0.1)
        table["p_normal"] = 1 - table["p_covid"]
        client.log_text(run.info.run_id, table.to_csv(index=False), "test/predictions.csv")
        score = f1_score(table["true"], table["predicted"], average="macro")
        client.log_metric(run.info.run_id, "test/f1_macro", score)
        client.set_terminated(run.info.run_id)
        return run.info.run_id

    return log


@pytest.fixture
def card_facts() -> CardFacts:
    """Facts of a card of two classes, with as little in it as a card may hold."""
    from cxr_mlflow.evaluation.metrics import PER_CLASS
    from cxr_mlflow.evaluation.model_card_facts import CardFacts
    from cxr_mlflow.evaluation.note import NOT_CONTROLLED
    from cxr_mlflow.evaluation.score import Score

    score = Score(0.8, 0.7, 0.9)
    return CardFacts(
        run_name="cnn-none",
        created="2026-01-31",
        synthetic=False,
        sees="",
        warnings=(NOT_CONTROLLED,),
        classes=("COVID", "Normal"),
        image_size=64,
        mask_mode="lungs",
        level=0.95,
        details={},
        data={},
        images={},
        sources={},
        left_out={},
        audit=(),
        training={},
        options={},
        versions={},
        scores={"f1_macro": score},
        class_scores={
            name: dict.fromkeys(("support", *PER_CLASS), score) for name in ("COVID", "Normal")
        },
        confusion=((8, 2), (2, 8)),
        controls={},
        source_floor=None,
        calibration={},
        calibration_scores=dict.fromkeys(
            ("raw/ece", "raw/ece_floor", "raw/brier", "ece", "ece_floor", "brier"), score
        ),
        subgroups=(),
        errors=(),
        num_errors=4,
        num_tested=20,
        digests={},
    )


@pytest.fixture
def found_controls() -> Callable[..., FoundControls]:
    """Controls of a run of 9 epochs, each with most epochs of its own and an equal score."""
    from cxr_mlflow.controlled import SEEN
    from cxr_mlflow.evaluation.control_facts import ControlModel, FoundControls, chance_of
    from cxr_mlflow.evaluation.score import Score

    def found(
        epochs: dict[str, int],
        score: tuple[float, ...] = (0.6, 0.55, 0.65),
        difference: tuple[float, ...] = (-0.1, -0.15, -0.05),
        classes: tuple[str, ...] = ("COVID", "Normal"),
    ) -> FoundControls:
        of_classes = dict.fromkeys(classes, Score(*score))
        return FoundControls(
            epochs=9,
            chance=chance_of(len(classes)),
            wanted=("lungs-out", "box-out", "mask-only"),
            models=tuple(
                ControlModel(mode, SEEN[mode], most, Score(*score), Score(*difference), of_classes)
                for mode, most in epochs.items()
            ),
        )

    return found
