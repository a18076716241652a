"""The way of a logged model into the registry: the gate, a version, the fight for the alias."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.config import AUTO, TrackingConfig
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.serving.gate import check_model_loads
from cxr_mlflow.tracking.registry import promote, register

GATE_FILE = "model_gate.json"
"""Artifact of the run that holds what the gate found."""
GATE_IMAGES = 5


def enter_registry(
    model_uri: str,
    table: pd.DataFrame,
    expected: NDArray[np.float64],
    *,
    mask_mode: str,
    tracking: TrackingConfig,
    tags: Mapping[str, str],
    description: str,
    log_gate: Callable[[str], None],
) -> str:
    """Register a logged model if it loads in a clean process; tell as what.

    Parameters
    ----------
    model_uri : str
    table : DataFrame
        Test images, as in `Catalog.table`; the first few are predicted.
    expected : float array of shape (N, C)
        What the trained network gave for the rows of `table`.
    mask_mode : str
    tracking : TrackingConfig
        Name in the registry, and resamples of the comparison with the champion.
    tags : mapping
        Of the version; `synthetic` decides about the name where that is 'auto'.
    description : str
        Markdown on the version's page.
    log_gate : callable
        Takes the gate's findings as JSON text, also of a model that did not pass.

    Raises
    ------
    NotRegistered
        If it does not load, or does not predict what the network did.
    """
    table = table.iloc[:GATE_IMAGES]
    masked = needs_mask(mask_mode)
    gate = check_model_loads(
        model_uri,
        [Path(path).read_bytes() for path in table["path"]],
        [Path(path).read_bytes() for path in table["mask_path"]] if masked else None,
        expected[:GATE_IMAGES],
    )
    log_gate(json.dumps({**gate.tags(), "reasons": list(gate.reasons)}, indent=2) + "\n")
    name = tracking.registered_model
    if name == AUTO:
        name = "cxr-classifier-demo" if tags.get("synthetic") == "true" else "cxr-classifier"
    version = register(model_uri, name=name, gate=gate, tags=tags, description=description)
    verdict = promote(name, version, samples=tracking.bootstrap_samples)
    alias = "champion" if verdict.promoted else "challenger"
    return f"{name} version {version} ({alias}; {verdict.reason})"
