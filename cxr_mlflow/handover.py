"""The last words of a run, told to its journal: its model, the version it becomes, the note."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.config import TrackingConfig
from cxr_mlflow.evaluation.note import escape_markdown
from cxr_mlflow.registration import GATE_FILE, enter_registry, gate_text
from cxr_mlflow.serving.gate import GateReport, check_model_loads
from cxr_mlflow.serving.package import find_logged, log_model
from cxr_mlflow.stopping import stop_asked
from cxr_mlflow.tracking.cards import deliver_card
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.journaled import JournaledLog
from cxr_mlflow.tracking.record import record_note
from cxr_mlflow.tracking.registry import NotRegistered
from cxr_mlflow.tracking.remote import Handler, Remote


class GateBrokenOff(OSError):
    """The gate was not tried, and this process ends: the next one tries it."""


PENDING = "registration pending"
"""Stands in a note until MLflow has taken the model; then what it became stands there."""


def tell_model(run: JournaledLog, folder: Path, tags: Mapping[str, str]) -> None:
    """Tell a run of its model.

    Parameters
    ----------
    run : JournaledLog
    folder : Path
        As `serving.package.write_folder` writes it; a copy is kept.
    tags : mapping
        Of the logged model.
    """
    told = {"folder": "model", "tags": dict(tags)}
    run.once("model", "model", told, files={"model": folder})


def tell_gate(
    run: JournaledLog,
    images: Sequence[bytes],
    masks: Sequence[bytes] | None,
    expected: NDArray[np.float64],
) -> None:
    """Tell a run that its model is to be tried in a clean process, with all that this needs.

    Parameters
    ----------
    run : JournaledLog
    images, masks, expected
        As `serving.gate.check_model_loads` takes them.
    """
    kept: dict[str, bytes | Path] = {
        f"gate/{kind}-{place}": content
        for kind, files in (("image", images), ("mask", masks or []))
        for place, content in enumerate(files)
    }
    told = {
        "num_images": len(images),
        "masked": masks is not None,
        "expected": expected.tolist(),
    }
    run.once("gate", "gate", told, files=kept)


def tell_registration(
    run: JournaledLog, *, tracking: TrackingConfig, tags: Mapping[str, str], description: str
) -> None:
    """Tell a run that its model is to be registered if it passes the gate.

    Parameters
    ----------
    run : JournaledLog
    tracking, tags, description
        As `registration.enter_registry` takes them. `PENDING` in the description is filled in.
    """
    told = {"tracking": asdict(tracking), "tags": dict(tags), "description": description}
    run.once("register", "register", told)


def tell_note(run: JournaledLog, note: str) -> None:
    """Tell a run the note of its page; `PENDING` in it is filled in on arrival."""
    run.once("note", f"note {note}", {"note": note})


def handlers() -> dict[str, Handler]:
    """What is done at MLflow with these words."""
    return {
        "model": _log_model,
        "gate": _gate,
        "register": _register,
        "card": deliver_card,
        "note": _note,
    }


def _log_model(remote: Remote, record: Record) -> None:
    known = remote.journal.remote
    if "model_uri" in known:
        return
    run_id = known["run_id"]
    uri = find_logged(run_id) or log_model(
        remote.journal.path(record.told["folder"]), run_id=run_id, tags=record.told["tags"]
    )
    remote.tracker.set_tags({"model_uri": uri})
    remote.journal.remember(model_uri=uri)


def _gate(remote: Remote, record: Record) -> None:
    journal, told = remote.journal, record.told
    if "gate" in journal.remote:
        return
    number = told["num_images"]

    def files(kind: str) -> list[bytes]:
        return [journal.path(f"gate/{kind}-{place}").read_bytes() for place in range(number)]

    gate = check_model_loads(
        journal.remote["model_uri"],
        files("image"),
        files("mask") if told["masked"] else None,
        np.asarray(told["expected"], dtype=np.float64),
    )
    if not gate.ok:
        remote.ask()  # was it the server that failed, it is tried again
    if not gate.tried and stop_asked():
        raise GateBrokenOff(gate.reasons[0])
    remote.tracker.log_text(gate_text(gate), GATE_FILE)
    journal.remember(gate=json.dumps(asdict(gate)))


def _register(remote: Remote, record: Record) -> None:
    journal, told = remote.journal, record.told
    try:
        became = enter_registry(
            journal.remote["model_uri"],
            _gate_of(journal),
            tracking=TrackingConfig(**told["tracking"]),
            tags=told["tags"],
            description=told["description"].replace(PENDING, "this version"),
        )
    except NotRegistered as error:
        journal.remember(refused=f"NotRegistered: {error}"[:2000])
        became = f"not registered: {error}"
    journal.remember(registered=became)
    remote.tracker.set_tags({"registered": became})


def _gate_of(journal: Journal) -> GateReport:
    gate = json.loads(journal.remote["gate"])
    return GateReport(**{**gate, "reasons": tuple(gate["reasons"])})


def retry_gate(journal: Journal, *, only_untried: bool = False) -> bool:
    """Let a journal tell its model's gate again, and what follows from it, if it was not passed.

    Telling twice changes nothing else. The run is open again then, until its end is told.

    Parameters
    ----------
    journal : Journal
    only_untried : bool
        Leave a gate alone that the model itself has failed.

    Returns
    -------
    bool
        Whether there is something to tell now.
    """
    if "gate" not in journal.remote:
        return False
    gate = _gate_of(journal)
    if gate.ok or (gate.tried and only_untried):
        return False
    asked = next(record.number for record in journal if record.verb == "gate")
    opened = [r.number for r in journal if r.verb == "open" and r.number < asked]
    journal.sent = min(journal.sent, opened[-1])  # first: then a death between changes nothing
    journal.remember(gate="", refused="", registered="")
    return True


def _note(remote: Remote, record: Record) -> None:
    became = escape_markdown(remote.journal.remote.get("registered", ""))
    record_note(remote.tracker, str(record.told["note"]).replace(PENDING, became))
