"""Only models that passed the gate enter; the champion moves for a proven gain on equal tests."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.gate import GateReport
from cxr_mlflow.tracking import registry
from cxr_mlflow.tracking.registry import NotRegistered, default_lock, promote, register

NAME = "cxr-classifier"
CLASSES = np.array(["COVID", "Normal", "Viral Pneumonia"])
GOOD = GateReport(ok=True, load_seconds=1.5, max_difference=1e-7)


def predictions(errors: float, seed: int = 0, images: int = 600) -> pd.DataFrame:
    """Table of a test in which about this share of the images is mistaken."""
    random = np.random.default_rng(seed)
    true = np.arange(images) % len(CLASSES)
    wrong = random.random(images) < errors
    return pd.DataFrame(
        {
            "image_id": [f"{CLASSES[label]}/{row}" for row, label in enumerate(true)],
            "true": CLASSES[true],
            "predicted": CLASSES[(true + wrong) % len(CLASSES)],
        }
    ).sample(frac=1, random_state=seed)


@pytest.fixture
def enter(tracking: str, tmp_path: Path):
    """Register a version whose run has the given test predictions; return the version."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))

    def enter(table: pd.DataFrame | None, digest: str | None = "d1", as_param=False) -> str:
        run_id = client.create_run(experiment).info.run_id
        if digest and as_param:
            client.log_param(run_id, "test_digest", digest)
        elif digest:
            client.set_tag(run_id, "test_digest", digest)
        if table is not None:
            client.log_text(run_id, table.to_csv(index=False), "test/predictions.csv")
        logged = client.create_logged_model(experiment, "model", run_id)
        client.finalize_logged_model(logged.model_id, "READY")
        uri = f"models:/{logged.model_id}"
        return register(uri, name=NAME, gate=GOOD, tags={"f1_macro": "0.9"})

    return enter


def aliases() -> dict[str, str]:
    found = mlflow.MlflowClient().get_registered_model(NAME).aliases
    return {alias: str(version) for alias, version in found.items()}


def tags(version: str) -> dict[str, str]:
    return dict(mlflow.MlflowClient().get_model_version(NAME, version).tags)


def test_a_model_that_failed_the_gate_does_not_enter(enter):
    first = enter(predictions(0.1))
    failed = GateReport(ok=False, reasons=("loading it imports torch",))
    with pytest.raises(NotRegistered, match="loading it imports torch"):
        register("models:/m-1", name=NAME, gate=failed)
    assert aliases() == {"challenger": first}
    assert len(mlflow.MlflowClient().search_model_versions(f"name='{NAME}'")) == 1


def test_registering_makes_the_challenger(enter):
    versions = [enter(predictions(0.1)), enter(predictions(0.1))]
    assert aliases() == {"challenger": versions[-1]}
    told = tags(versions[-1])
    assert told["f1_macro"] == "0.9"
    assert told["gate"] == "passed"
    assert told["gate_load_seconds"] == "1.50"
    assert mlflow.MlflowClient().get_model_version(NAME, versions[-1]).run_id  # its run is known


def test_the_first_becomes_champion_and_a_better_one_succeeds_it(enter):
    first = enter(predictions(0.2))
    verdict = promote(NAME, first)
    assert verdict.promoted
    assert verdict.difference is None
    assert aliases()["champion"] == first
    assert tags(first)["promotion"].startswith("champion: the first")

    better = enter(predictions(0.05, seed=1), as_param=True)
    verdict = promote(NAME, better)
    assert verdict.promoted
    assert verdict.champion == better
    assert verdict.compared_with == first
    assert verdict.difference.low > 0.05
    assert verdict.difference.value == pytest.approx(0.15, abs=0.05)
    assert aliases() == {"challenger": better, "champion": better}
    told = tags(better)
    assert told["compared_with"] == first
    assert float(told["f1_macro_difference_low"]) == pytest.approx(verdict.difference.low, abs=1e-6)
    assert "on the same 600 test images" in told["promotion"]

    again = promote(NAME, better)
    assert not again.promoted
    assert again.reason == "it is the champion already"


@pytest.mark.parametrize("errors", [0.09, 0.3])
def test_a_gain_within_chance_or_a_loss_is_no_succession(enter, errors):
    first = enter(predictions(0.1))
    promote(NAME, first)
    other = enter(predictions(errors, seed=1))
    verdict = promote(NAME, other)
    assert not verdict.promoted
    assert verdict.difference.low < 0
    assert verdict.champion == first
    assert aliases() == {"challenger": other, "champion": first}
    assert tags(other)["promotion"].startswith(f"challenger: version {first} stays champion: macro")


def with_other_labels(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(true=table["true"].replace("COVID", "Normal"))


@pytest.mark.parametrize(
    ("table", "digest", "told"),
    [
        (
            predictions(0.0),
            "d2",
            r"tested on other images than version 1 \(test_digest d2 and d1\)",
        ),
        (predictions(0.0), None, "does not say its test_digest"),
        (None, "d1", r"the run of version 2 has no readable test/predictions\.csv"),
        (predictions(0.0).iloc[1:], "d1", "lists other images"),
        (with_other_labels(predictions(0.0)), "d1", "lists other images"),
        (predictions(0.0).drop(columns="predicted"), "d1", "has no column predicted"),
    ],
)
def test_what_was_tested_otherwise_stays_challenger(enter, table, digest, told):
    first = enter(predictions(0.3))
    promote(NAME, first)
    other = enter(table, digest)
    verdict = promote(NAME, other)
    assert not verdict.promoted
    assert verdict.difference is None
    assert aliases() == {"challenger": other, "champion": first}
    assert re.search(told, verdict.reason)
    assert verdict.reason in tags(other)["promotion"]


def test_force_moves_the_alias_and_says_so(enter):
    first = enter(predictions(0.1))
    promote(NAME, first)
    other = enter(predictions(0.0), "d2")
    verdict = promote(NAME, other, force=True)
    assert verdict.promoted
    assert aliases()["champion"] == other
    assert tags(other)["promotion"].startswith("champion: moved by hand, although: ")


def test_duplicates_of_a_group_are_one_witness(enter):
    def grouped(table: pd.DataFrame, size: int) -> pd.DataFrame:
        return table.assign(group=table["image_id"].str.split("/").str[1].astype(int) // size)

    first = enter(grouped(predictions(0.12), 1))
    promote(NAME, first)
    alone = promote(NAME, enter(grouped(predictions(0.05, seed=1), 1)))
    assert alone.promoted
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", first)
    together = promote(NAME, enter(grouped(predictions(0.05, seed=1), 150)))
    assert together.difference.value == alone.difference.value
    width = [v.difference.high - v.difference.low for v in (alone, together)]
    assert width[0] != width[1]


def test_promotion_waits_for_the_lock_and_then_compares_with_the_new_champion(enter):
    first, second, third = (enter(predictions(e, seed=i)) for i, e in enumerate((0.3, 0.05, 0.2)))
    promote(NAME, first)
    verdicts = []
    with FileLock(default_lock()):
        waiting = threading.Thread(target=lambda: verdicts.append(promote(NAME, third)))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert aliases()["champion"] == first
        mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", second)
    waiting.join(60)
    assert verdicts[0].compared_with == second
    assert not verdicts[0].promoted
    assert aliases()["champion"] == second


def test_a_champion_moved_from_another_machine_is_noticed(enter, monkeypatch):
    first, second, third = (enter(predictions(e, seed=i)) for i, e in enumerate((0.3, 0.05, 0.2)))
    promote(NAME, first)
    compare = registry.compare_tests
    compared = []

    def compare_slowly(client, version, other, **options):
        compared.append(str(other.version))
        found = compare(client, version, other, **options)
        client.set_registered_model_alias(NAME, "champion", second)  # by somebody without our lock
        return found

    monkeypatch.setattr(registry, "compare_tests", compare_slowly)
    verdict = promote(NAME, third)
    assert compared == [first, second]
    assert not verdict.promoted
    assert aliases()["champion"] == second


def test_an_unknown_version_is_told(enter):
    enter(predictions(0.1))
    with pytest.raises(InputError, match="no version 9 of a registered model cxr-classifier"):
        promote(NAME, "9")


def test_readers_make_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"sqlite:///mlflow\.db: no such tracking store"):
        registry.use_registry()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_an_sqlite_store_lies_beside_it(tracking, tmp_path):
    assert default_lock() == tmp_path / "mlflow.db.registry.lock"
