"""Opens a finished model, from an MLflow URI or a plain folder, behind one face."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.frames import predict_table
from cxr_mlflow.serving.scorer import Scorer
from cxr_mlflow.serving.scorer_config import CONFIG_FILE


@dataclass(frozen=True)
class Predictor:
    """A model that is loaded, and what must be known to use it."""

    classes: tuple[str, ...]
    image_size: int
    mask_mode: str
    trained_on: Mapping[str, str]
    predict: Callable[[pd.DataFrame], pd.DataFrame]
    """Columns `image`, `mask` (bytes) to `label`, `confidence`, `p_<slug>`. Raises InputError."""
    promises: Mapping[str, Any] = field(default_factory=dict)
    """`calibration`, `abstaining`, `prediction_sets`, `prior` as `scorer.json` spells them; absent
    ones are not promised."""


def is_model_folder(model_uri: str) -> bool:
    """Whether it names a plain model folder, for which no tracking store is needed."""
    return (Path(model_uri) / CONFIG_FILE).is_file()


def open_predictor(model_uri: str) -> Predictor:
    """Load a model.

    Parameters
    ----------
    model_uri : str
        A model folder (with `scorer.json`), or anything `mlflow.pyfunc.load_model` takes; the
        tracking URI must be set before.

    Raises
    ------
    InputError
        If it is not there, damaged, or not a model of this project.
    """
    if is_model_folder(model_uri):
        scorer = Scorer.load(Path(model_uri))
        config = scorer.config
        return Predictor(
            config.classes,
            config.image_size,
            config.mask_mode,
            config.trained_on,
            lambda table: predict_table(scorer, table),
            json.loads(config.dumps()),
        )
    if ":/" not in model_uri and not Path(model_uri).is_dir():
        raise InputError(
            f"--model-uri={model_uri}: no such folder, and not a URI like models:/NAME@ALIAS"
        )
    return _open_logged(model_uri)


def _open_logged(model_uri: str) -> Predictor:
    import mlflow  # a plain folder is scored without it
    from mlflow.exceptions import MlflowException

    try:
        model = mlflow.pyfunc.load_model(model_uri)
    except (MlflowException, OSError) as error:
        hint = ""
        if model_uri.startswith("models:/"):
            names = [found.name for found in mlflow.MlflowClient().search_registered_models()]
            hint = f" (registered here: {', '.join(names) or 'nothing'})"
        raise InputError(f"--model-uri={model_uri}: {error}{hint}") from error
    told: Mapping[str, Any] = model.metadata.metadata or {}
    if not {"classes", "image_size", "mask_mode"} <= told.keys():
        raise InputError(f"--model-uri={model_uri}: not a model that this project logged")

    def predict(table: pd.DataFrame) -> pd.DataFrame:
        try:
            return model.predict(table)
        except MlflowException as error:
            raise InputError(error.message) from error

    return Predictor(
        tuple(told["classes"]),
        told["image_size"],
        told["mask_mode"],
        told.get("trained_on", {}),
        predict,
        told,
    )
