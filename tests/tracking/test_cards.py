"""The card of a model is where the model is: on its run, in its files, on its versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from cxr_mlflow.evaluation.model_card import (
    DESCRIPTION_LIMIT,
    CardFacts,
    External,
    write_brief,
    write_card,
)
from cxr_mlflow.evaluation.score import Score
from cxr_mlflow.serving.gate import GateReport
from cxr_mlflow.tracking.cards import (
    FIGURE_FILES,
    add_control_models,
    add_external,
    deliver_card,
    publish_card,
    read_card,
    tell_card,
)
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import JournaledLog
from cxr_mlflow.tracking.registry import describe_versions_of, register
from cxr_mlflow.tracking.remote import Remote
from cxr_mlflow.tracking.tracker import Tracker

NAME = "cxr-classifier"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8) + (7).to_bytes(4, "big") * 2
SCORE = Score(0.8, 0.7, 0.9)
CARD_FILES = ("model_card.html", "model_card.json", "model_card.md")


@pytest.fixture
def placed(tracking: str, tmp_path: Path, card_facts: CardFacts) -> tuple[Tracker, CardFacts]:
    """A run with a registered model and one of a card's figures; facts that name them."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    logged = client.create_logged_model(experiment, "model", run_id)
    client.finalize_logged_model(logged.model_id, "READY")
    uri = f"models:/{logged.model_id}"
    register(uri, name=NAME, gate=GateReport(ok=True), description="the note")
    tracker = Tracker(run_id, experiment)
    tracker.log_bytes(PNG, FIGURE_FILES["roc"])
    return tracker, replace(
        card_facts, run_id=run_id, model_uri=uri, registered=f"{NAME} version 1"
    )


def text_of(uri: str) -> str:
    return Path(mlflow.artifacts.download_artifacts(uri)).read_text(encoding="utf-8")


def version():
    return mlflow.MlflowClient().get_model_version(NAME, "1")


def test_a_card_is_with_the_run_the_model_and_the_version(placed):
    tracker, facts = placed
    publish_card(tracker, facts, {"roc": PNG})
    for name in CARD_FILES:
        of_run = text_of(f"runs:/{tracker.run_id}/{name}")
        assert of_run == text_of(f"models:/{NAME}/1/{name}")
    assert text_of(f"models:/{NAME}/1/model_card.md") == write_card(facts)
    assert version().description == write_brief(facts)
    assert "<img " in text_of(version().tags["model_card"])
    assert read_card(tracker.run_id) == (facts, {"roc": PNG})


def test_control_models_are_told_wherever_the_card_is(placed, found_controls):
    tracker, facts = placed
    assert not add_control_models(tracker, found_controls({"lungs-out": 9})), "no card, no change"
    assert version().description == "the note"
    publish_card(tracker, facts, {"roc": PNG})
    assert add_control_models(tracker, found_controls({"lungs-out": 9}))
    told = "scores macro F1 on all but the lungs 0.600 (0.550–0.650)"
    for text in (
        version().description,
        text_of(f"runs:/{tracker.run_id}/model_card.md"),
        text_of(f"models:/{NAME}/1/model_card.html"),
    ):
        assert told in text
        assert "Not controlled" not in text
    assert "<img " in text_of(f"models:/{NAME}/1/model_card.html"), "figures stay"
    add_control_models(tracker, found_controls({"mask-only": 9}))
    assert told not in version().description, "all that was found is told anew"
    assert "on the outline of the lungs 0.600" in version().description


def test_an_external_evaluation_is_told_wherever_the_card_is(placed):
    tracker, facts = placed
    found = External("Shenzhen", "9" * 64, "flu as Normal", 565, 3, 1, SCORE, SCORE, "a" * 32)
    assert not add_external(tracker, found), "no card, no change"
    facts = replace(facts, digests={"data": "d" * 64})
    publish_card(tracker, facts, {"roc": PNG})
    assert not add_external(tracker, replace(found, digest="d" * 64)), "the run's own data"
    assert add_external(tracker, found)
    for uri in (f"runs:/{tracker.run_id}/model_card.md", f"models:/{NAME}/1/model_card.md"):
        assert "| Shenzhen, digest 999999999999: flu as Normal |" in text_of(uri)
        assert "Images of other hospitals" not in text_of(uri)
    assert "<img " in text_of(f"models:/{NAME}/1/model_card.html"), "figures stay"
    assert read_card(tracker.run_id)[0].external == (found,)


def test_a_card_that_was_told_to_a_journal_arrives_with_what_mlflow_answered(
    placed, card_facts, tmp_path
):
    tracker, facts = placed
    journal = Journal(tmp_path / "journal")
    log = JournaledLog(journal)
    for _ in range(2):  # an attempt that went on tells it again
        tell_card(log, card_facts, {"roc": PNG})
    (record,) = list(journal)
    journal.remember(
        run_id=tracker.run_id,
        experiment_id=tracker.experiment_id,
        model_uri=facts.model_uri,
        registered=f"{NAME} version 1",
    )
    remote = Remote(journal, {"card": deliver_card})
    for _ in range(2):  # delivered, and once more because the process died before its note of it
        remote.take(record)
    assert read_card(tracker.run_id) == (facts, {"roc": PNG})
    assert version().description == write_brief(facts)


def test_a_card_without_a_model_is_with_its_run(placed):
    tracker, facts = placed
    bare = replace(facts, model_uri="", registered=None)
    publish_card(tracker, bare, {})
    assert "| registered as | not registered |" in text_of(f"runs:/{tracker.run_id}/model_card.md")
    assert "| model | not logged |" in text_of(f"runs:/{tracker.run_id}/model_card.md")


def test_a_description_too_long_for_postgresql_is_cut_not_refused(placed):
    tracker, _ = placed
    note = "**Test macro F1 0.8**\n" + "a line of the note\n" * 400
    describe_versions_of(tracker.run_id, note, {})
    kept = version().description
    assert kept.startswith("**Test macro F1 0.8**\n")
    assert len(kept) <= DESCRIPTION_LIMIT
    assert "a line of the note\n\n(Cut here for length" in kept
    describe_versions_of(tracker.run_id, "short", {})
    assert version().description == "short"
