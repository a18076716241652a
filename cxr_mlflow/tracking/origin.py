"""The training run behind a model: what it kept of its images, and how long its epochs took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import NotComparable
from cxr_mlflow.evaluation.control_facts import NONE_FOUND
from cxr_mlflow.tracking.parents import get_run
from cxr_mlflow.tracking.tested import REGISTERED, RUN_ID, TEST_DIGEST, run_behind

FINGERPRINTS = "data/fingerprints.npz"
"""Artifact of a training run: what tells copies of its training and validation images."""
SPLIT = "data/split.csv"
RUNS = "runs:/"


def is_run_id(word: str) -> bool:
    """Whether a word can only be the id of a run."""
    return RUN_ID.fullmatch(word) is not None


def model_of_run(run_id: str) -> str:
    """URI of the model that a run logged.

    Raises
    ------
    InputError
        If there is no such run, or it logged none.
    """
    run = get_run(run_id)
    if not (model_uri := run.data.tags.get("model_uri")):
        raise InputError(
            f"run {run_id} ({run.info.run_name}) has logged no model; name a training run that "
            "came to its end, or a model"
        )
    return str(model_uri)


@dataclass(frozen=True)
class Origin:
    """The training run behind a model."""

    run_id: str
    name: str
    test_digest: str
    """Digest of the images it was tested on."""
    controls: str
    """What its control models found, or "not controlled"."""

    def fetch(self, path: str, folder: Path) -> Path | None:
        """Download an artifact into a folder; None if the run has none of that name."""
        try:
            return Path(mlflow.MlflowClient().download_artifacts(self.run_id, path, str(folder)))
        except (MlflowException, OSError):
            return None

    def epoch_seconds(self) -> list[float]:
        """How long each epoch of the run took; empty where it does not tell."""
        history = mlflow.MlflowClient().get_metric_history(self.run_id, "train/seconds")
        return [metric.value for metric in history]


def origin_of(model_uri: str, told: str | None = None) -> Origin | None:
    """Find the training run behind a model; None where this store does not know it.

    Parameters
    ----------
    model_uri : str
        `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `models:/m-...`, `runs:/ID/...`, or anything
        else for which `told` is asked.
    told : str, optional
        Id of the run as the model itself tells it; asked where the store does not say.
    """
    client = mlflow.MlflowClient()
    try:
        run_id = _run_id(client, model_uri)
    except (MlflowException, NotComparable):
        run_id = None
    for asked in (run_id, told):
        try:
            if asked:
                return _as_origin(client.get_run(asked))
        except MlflowException:
            continue
    return None


def _as_origin(run: Run) -> Origin:
    tags = run.data.tags
    return Origin(
        str(run.info.run_id),
        str(run.info.run_name),
        tags.get(TEST_DIGEST, ""),
        tags.get("controls", NONE_FOUND),
    )


def _run_id(client: mlflow.MlflowClient, model_uri: str) -> str | None:
    if model_uri.startswith(RUNS):
        return model_uri.removeprefix(RUNS).partition("/")[0]
    if not model_uri.startswith(REGISTERED):
        return None
    name, _, version = model_uri.removeprefix(REGISTERED).partition("/")
    if "@" in name:
        name, _, alias = name.partition("@")
        found = client.get_model_version_by_alias(name, alias)
    elif version:
        found = client.get_model_version(name, version)
    else:
        logged = client.get_logged_model(name)
        return str(logged.source_run_id) if logged.source_run_id else None
    return run_behind(client, found.version, found.run_id, found.model_id)
