"""Finds the model that `cxr serve` is asked for, loads it, and tells what it is."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from cxr_mlflow import __version__
from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.scorer import Scorer
from cxr_mlflow.serving.scorer_config import (
    APPROXIMATE,
    CONFIG_FILE,
    PREPROCESSING,
    PROMISES,
    ScorerConfig,
)

NOT_FOR_DIAGNOSIS = "Not for diagnosis: a research model, trained on public data."
REGISTERED = "models:/"
LOGGED = "artifacts"
"""Folder of a logged model that holds the model folder."""


def open_model(config: ServeConfig) -> tuple[Scorer, dict[str, Any]]:
    """Load a model.

    Parameters
    ----------
    config : ServeConfig
        Names a model folder (with `scorer.json`), a folder as MLflow logs a model, or an MLflow
        URI; for a URI the tracking URI must be set before.

    Returns
    -------
    Scorer
    dict
        What `/version` tells.

    Raises
    ------
    InputError
        If it is not there, damaged, or not a model of this project.
    """
    uri = config.model_uri
    if ":/" not in uri:
        if not Path(uri).is_dir():
            raise InputError(f"{uri}: no such folder, and not a URI like models:/NAME@ALIAS")
        scorer = Scorer.load(_model_folder(Path(uri), uri), threads=config.threads)
        name, version = Path(uri).resolve().name, ""
    else:
        with tempfile.TemporaryDirectory() as temporary:
            path, name, version = _fetch(uri, temporary)
            scorer = Scorer.load(_model_folder(path, uri), threads=config.threads)
    return scorer, describe(scorer.config, name, version)


def describe(config: ScorerConfig, name: str, version: str) -> dict[str, Any]:
    """What the clients of a model must know of it."""
    told = json.loads(config.dumps())
    warnings = config.trained_on.get("warnings")
    return {
        "package": "cxr-mlflow",
        "package_version": __version__,
        "model": {"name": name, "version": version, "sha256": config.model_sha256},
        "classes": list(config.classes),
        "mask_mode": config.mask_mode,
        "image_size": config.image_size,
        "preprocessing": PREPROCESSING,
        **{promise: told[promise] for promise in PROMISES if promise in told},
        "promises": APPROXIMATE,
        "trained_on": dict(config.trained_on),
        "warnings": [warnings] if warnings else [],
        "not_for_diagnosis": NOT_FOR_DIAGNOSIS,
    }


def _model_folder(folder: Path, uri: str) -> Path:
    for pattern in (CONFIG_FILE, f"{LOGGED}/*/{CONFIG_FILE}"):
        if found := sorted(folder.glob(pattern)):
            return found[0].parent
    raise InputError(f"{uri}: not a model that this project logged (it holds no {CONFIG_FILE})")


def _fetch(uri: str, folder: str) -> tuple[Path, str, str]:
    """Download a model; return where it is, its name, and its version in the registry."""
    import mlflow  # a plain folder is served without it
    from mlflow.exceptions import MlflowException

    name, version = uri.rpartition("/")[2], ""
    try:
        if uri.startswith(REGISTERED) and "@" in uri:  # the alias may move: take the version it is
            name, _, alias = uri.removeprefix(REGISTERED).partition("@")
            version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
            uri = f"{REGISTERED}{name}/{version}"
        elif uri.startswith(REGISTERED) and "/" in uri.removeprefix(REGISTERED):
            name, _, version = uri.removeprefix(REGISTERED).partition("/")
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{uri}/{LOGGED}", dst_path=folder)
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {error}") from error
    return Path(path).parent, name, str(version)
