"""Whatever controls a run has had, in whatever order, all places tell the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from sklearn.metrics import f1_score

from cxr_mlflow.controlled import strongest, tell_controls
from cxr_mlflow.evaluation.control_words import in_brief, in_full
from cxr_mlflow.evaluation.note import NOT_CONTROLLED
from cxr_mlflow.serving.gate import GateReport
from cxr_mlflow.tracking.cards import publish_card, read_card
from cxr_mlflow.tracking.registry import register
from cxr_mlflow.tracking.tested import read_predictions
from cxr_mlflow.tracking.tracker import Tracker

NAME = "cxr-classifier"
NOTE = f"**Test macro F1 0.9**. **Not controlled.**\n\n> - {NOT_CONTROLLED}\n"


@pytest.fixture
def run_id(log_run, card_facts) -> str:
    """A finished run of 9 epochs that is right 9 times in 10, registered, with note and card."""
    client = mlflow.MlflowClient()
    told = {"mlflow.note.content": NOTE, "controls": "not controlled"}
    run_id = log_run(0.9, tags=told, epochs=9, bootstrap_samples=100)
    experiment = mlflow.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, "model", run_id)
    client.finalize_logged_model(logged.model_id, "READY")
    uri = f"models:/{logged.model_id}"
    register(uri, name=NAME, gate=GateReport(ok=True), description=NOTE)
    facts = replace(card_facts, run_id=run_id, model_uri=uri, registered=f"{NAME} version 1")
    publish_card(Tracker(run_id, experiment), facts, {})
    return run_id


@pytest.fixture
def control(log_run, run_id):
    """Log a control of the run, as if it had been trained."""

    def log(mode: str, epochs: int, hits: float, **tags: str) -> str:
        told = {"kind": "control", "mlflow.parentRunId": run_id, "control_of": run_id, **tags}
        digest = tags.pop("test_digest", "d" * 64)
        return log_run(hits, digest, tags=told, mask_mode=mode, epochs=epochs)

    return log


def text_of(uri: str) -> str:
    return Path(mlflow.artifacts.download_artifacts(uri)).read_text(encoding="utf-8")


def told_everywhere(run_id: str) -> dict[str, str]:
    run = mlflow.get_run(run_id)
    version = mlflow.MlflowClient().get_model_version(NAME, "1")
    plain = {
        "note": run.data.tags["mlflow.note.content"],
        "README.md": text_of(f"runs:/{run_id}/README.md"),
        "tag": run.data.tags["controls"],
        "report.md": text_of(f"runs:/{run_id}/controls/report.md"),
        "report.html": text_of(f"runs:/{run_id}/controls/report.html"),
        "version": version.description,
        "tag of the version": version.tags["controls"],
        "card": text_of(f"runs:/{run_id}/model_card.md"),
        "card of the model": text_of(f"models:/{NAME}/1/model_card.html"),
    }
    return plain


def test_every_place_tells_the_same_after_every_call(run_id, control):
    control("lungs-out", 1, 0.5)
    calls = [
        ("Partly controlled", {"lungs-out": 1}),
        ("Partly controlled", {"lungs-out": 9, "mask-only": 2}),
        ("Controlled", {"lungs-out": 9, "box-out": 9, "mask-only": 9}),
    ]
    later = [
        [],
        [("lungs-out", 9, 0.8), ("mask-only", 2, 0.7), ("lungs-out", 3, 0.6)],
        [("box-out", 9, 0.75), ("mask-only", 9, 0.85)],
    ]
    for (state, budgets), new in zip(calls, later, strict=True):
        for each in new:
            control(*each)
        found = tell_controls(run_id).found
        assert {model.mode: model.epochs for model in found.models} == budgets
        brief = in_brief(found)
        assert brief.startswith(f"{state}: ")
        places = told_everywhere(run_id)
        assert {place: brief in text for place, text in places.items()} == dict.fromkeys(
            places, True
        )
        assert places["tag"] == places["tag of the version"] == brief
        assert places["note"] == places["README.md"]
        assert in_full(found) in places["note"]
        for text in places.values():
            assert "ot controlled" not in text
            assert text.count("olled: the same recipe") == text.count(brief[5:]), "no older word"
        facts, _ = read_card(run_id)
        assert facts.control_models == found
        metrics = mlflow.get_run(run_id).data.metrics
        for model in found.models:
            head = f"control/{model.mode.replace('-', '_')}"
            assert metrics[f"{head}/f1_macro"] == model.f1_macro.value
            assert metrics[f"{head}/difference_low"] == model.difference.low
            assert metrics[f"{head}/f1/covid"] == model.classes["COVID"].value
            assert metrics[f"{head}/epochs"] == model.epochs


def test_scores_are_those_of_the_predictions(run_id, control):
    child = control("lungs-out", 9, 0.7)
    (model,) = tell_controls(run_id).found.models
    client = mlflow.MlflowClient()
    table, own = (read_predictions(client, each, "it") for each in (child, run_id))
    by_class = f1_score(table["true"], table["predicted"], average=None)
    assert [model.classes[name].value for name in ("COVID", "Normal")] == pytest.approx(by_class)
    assert model.f1_macro.value == pytest.approx(by_class.mean())
    gap = by_class.mean() - f1_score(own["true"], own["predicted"], average="macro")
    assert model.difference.value == pytest.approx(gap)


def test_of_each_mode_the_newest_of_the_longest_trained_counts(run_id, control):
    control("mask-only", 9, 0.5)
    newest = control("mask-only", 9, 0.6)
    control("mask-only", 8, 0.7)
    control("lungs-out", 9, 0.7, test_digest="e" * 64)
    control("box-out", 9, 0.7, control_of="another run")
    open_one = control("none", 9, 0.7)
    mlflow.MlflowClient().set_terminated(open_one, "FAILED")
    assert {mode: child.run_id for mode, child in strongest(run_id).items()} == {
        "mask-only": newest
    }


def test_the_report_calls_the_run_neither_controlled_nor_not_before_it_has_looked(run_id, control):
    control("lungs-out", 1, 0.6)
    compared = tell_controls(run_id).compared
    (own,) = [row for row in compared.comparison.rows if row.row == "lungs"]
    (other,) = [row for row in compared.comparison.rows if row.row == "lungs-out"]
    assert not [remark for remark in own.remarks if "ontrolled" in remark]
    assert "trained for at most 1 epoch where the run had 9" in other.remarks
    assert "does worse than the run: −" in compared.about["found"]
