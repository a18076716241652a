"""Model cards in MLflow: among the files of the run and of the model, and on its versions."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import mlflow

from cxr_mlflow.evaluation.control_facts import FoundControls
from cxr_mlflow.evaluation.model_card import (
    CardFacts,
    External,
    card_page,
    with_control_models,
    with_external,
    write_brief,
    write_card,
)
from cxr_mlflow.tracking.journal import Record
from cxr_mlflow.tracking.journaled import JournaledLog
from cxr_mlflow.tracking.registry import describe_versions_of
from cxr_mlflow.tracking.remote import Remote
from cxr_mlflow.tracking.tracker import Tracker

MARKDOWN, PAGE, FACTS = "model_card.md", "model_card.html", "model_card.json"
"""Artifacts, of the run and of the logged model."""
TAG = "model_card"
"""Tag of a registered version: where its card is."""
LOGGED_MODEL = "models:/m-"
KEPT = "card"
"""Folder of the journal that holds a card until it is delivered."""
FIGURE_FILES = {
    "confusion_rates": "test/confusion_rates.png",
    "roc": "test/roc.png",
    "precision_recall": "test/precision_recall.png",
    "saliency_shares": "test/saliency_shares.png",
    "reliability": "test/reliability.png",
    "risk_coverage": "test/risk_coverage.png",
    "prediction_sets": "test/prediction_sets.png",
}
"""Figures of a card -> the artifacts of the run that they are. None shows a film: a model travels
further than its run, and the licences of the films do not let them go with it."""


def tell_card(run: JournaledLog, facts: CardFacts, figures: Mapping[str, bytes]) -> None:
    """Tell a run of its card; run, model and version are filled in on arrival.

    Parameters
    ----------
    run : JournaledLog
    facts, figures
        As `publish_card` takes them.
    """
    run.journal.keep(f"{KEPT}/{FACTS}", facts.to_json().encode())
    for name, png in figures.items():
        run.journal.keep(f"{KEPT}/{name}.png", png)
    run.once("card", "card", {"figures": list(figures)})


def deliver_card(remote: Remote, record: Record) -> None:
    """What is done at MLflow with what `tell_card` told; after the model and its registration."""
    journal = remote.journal
    known = journal.remote
    facts = CardFacts.from_json(journal.path(f"{KEPT}/{FACTS}").read_text(encoding="utf-8"))
    publish_card(
        remote.tracker,
        replace(
            facts,
            run_id=known["run_id"],
            model_uri=known.get("model_uri", ""),
            registered=known.get("registered"),
        ),
        {name: journal.path(f"{KEPT}/{name}.png").read_bytes() for name in record.told["figures"]},
    )


def publish_card(tracker: Tracker, facts: CardFacts, figures: Mapping[str, bytes]) -> None:
    """Write a card into its run, its logged model and the versions registered from it.

    A card that is there already is replaced. Each version gets the card in short as its
    description, and the tag `TAG`.

    Parameters
    ----------
    tracker : Tracker
        Of the run that made the model.
    facts : CardFacts
        `model_uri` is "models:/m-...", or "" where no model was logged.
    figures : mapping of str to bytes
        As `model_card.card_page` takes them.
    """
    texts = {
        MARKDOWN: write_card(facts),
        PAGE: card_page(facts, figures),
        FACTS: facts.to_json(),
    }
    for name, text in texts.items():
        tracker.log_text(text, name)
    if facts.model_uri.startswith(LOGGED_MODEL):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in texts.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            model_id = facts.model_uri.removeprefix("models:/")
            mlflow.MlflowClient().log_model_artifacts(model_id, folder)
    where = f"runs:/{tracker.run_id}/{PAGE}"
    describe_versions_of(tracker.run_id, write_brief(facts), {TAG: where})


def read_card(run_id: str) -> tuple[CardFacts, dict[str, bytes]] | None:
    """Read the facts and the figures of a run's card; None if the run has none.

    Raises
    ------
    InputError
        If the card was written by another version of this program.
    """
    client = mlflow.MlflowClient()
    folders = (None, *{str(Path(path).parent) for path in FIGURE_FILES.values()})
    there = {file.path for folder in folders for file in client.list_artifacts(run_id, folder)}
    if FACTS not in there:
        return None
    with tempfile.TemporaryDirectory() as folder:

        def fetched(path: str) -> Path:
            return Path(client.download_artifacts(run_id, path, folder))

        facts = fetched(FACTS).read_text(encoding="utf-8")
        figures = {
            name: fetched(path).read_bytes() for name, path in FIGURE_FILES.items() if path in there
        }
    return CardFacts.from_json(facts), figures


def rewrite_card(tracker: Tracker, change: Callable[[CardFacts], CardFacts]) -> bool:
    """Write the card of a run again everywhere, with other facts and the same figures.

    Parameters
    ----------
    tracker : Tracker
        Of the run that made the model.
    change : callable
        From the facts that the card has to those it shall have.

    Returns
    -------
    bool
        False if the run has no card, or nothing changes. Nothing is written then.
    """
    found = read_card(tracker.run_id)
    if found is None or (changed := change(found[0])) == found[0]:
        return False
    publish_card(tracker, changed, found[1])
    return True


def add_external(tracker: Tracker, found: External) -> bool:
    """Tell in the card of a run what its model scored on other data than the run's own.

    Parameters
    ----------
    tracker : Tracker
        Of the run that made the model.
    found : External
        The same evaluation of before is replaced.

    Returns
    -------
    bool
        False if the run has no card, or these are its own data. Nothing is written then.
    """

    def told(facts: CardFacts) -> CardFacts:
        own = facts.digests.get("data") == found.digest
        return facts if own else with_external(facts, found)

    return rewrite_card(tracker, told)


def add_control_models(tracker: Tracker, found: FoundControls) -> bool:
    """Write the card of a run again, with what control models found.

    Parameters
    ----------
    tracker : Tracker
        Of the controlled run.
    found : FoundControls

    Returns
    -------
    bool
        False if the run has no card: it is older than cards are. Nothing is written then.
    """
    return rewrite_card(tracker, lambda facts: with_control_models(facts, found))
