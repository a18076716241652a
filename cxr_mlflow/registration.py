"""The way of a logged model into the registry: the gate, a version, the fight for the alias."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from cxr_mlflow.config import AUTO, TrackingConfig
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.serving.gate import GateReport
from cxr_mlflow.tracking.registry import promote, register

GATE_FILE = "model_gate.json"
"""Artifact of the run that holds what the gate found."""
GATE_IMAGES = 5


def enter_registry(
    model_uri: str,
    gate: GateReport,
    *,
    tracking: TrackingConfig,
    tags: Mapping[str, str],
    description: str,
) -> str:
    """Register a logged model if it passed the gate; tell as what.

    Parameters
    ----------
    model_uri : str
    gate : GateReport
        Of this very model, see `serving.gate.check_model_loads`.
    tracking : TrackingConfig
        Name in the registry, and resamples of the comparison with the champion.
    tags : mapping
        Of the version; `synthetic` decides about the name where that is 'auto'.
    description : str
        Markdown on the version's page.

    Raises
    ------
    NotRegistered
        If it did not load, or did not predict what the network did.
    """
    name = tracking.registered_model
    if name == AUTO:
        name = "cxr-classifier-demo" if tags.get("synthetic") == "true" else "cxr-classifier"
    version = register(model_uri, name=name, gate=gate, tags=tags, description=description)
    verdict = promote(name, version, samples=tracking.bootstrap_samples)
    alias = "champion" if verdict.promoted else "challenger"
    return f"{name} version {version} ({alias}; {verdict.reason})"


def gate_text(gate: GateReport) -> str:
    """Tell what the gate found as JSON text, for `GATE_FILE`."""
    return json.dumps({**gate.tags(), "reasons": list(gate.reasons)}, indent=2) + "\n"


def gate_files(table: pd.DataFrame, mask_mode: str) -> tuple[list[bytes], list[bytes] | None]:
    """Read the files of the first few test images, and of their masks where a model takes them.

    Parameters
    ----------
    table : DataFrame
        As in `Catalog.table`.
    mask_mode : str
    """
    some = table.iloc[:GATE_IMAGES]
    images = [Path(path).read_bytes() for path in some["path"]]
    if not needs_mask(mask_mode):
        return images, None
    return images, [Path(path).read_bytes() for path in some["mask_path"]]
