"""Finished runs as they are compared: what they predicted, which row they belong to."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cxr_mlflow.config import FROM_SCRATCH
from cxr_mlflow.evaluation.comparison import NotComparable, TestedRun
from cxr_mlflow.tracking.parents import minutes_of
from cxr_mlflow.typed_options import typed_options

PREDICTIONS = "test/predictions.csv"
"""Artifact of a run: columns `image_id`, `true`, `predicted`, and `group`, the near-duplicates that
are resampled together."""
TEST_DIGEST = "test_digest"
"""Tag or parameter of a run: which images it was tested on."""
REGISTERED = "models:/"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def read_predictions(client: mlflow.MlflowClient, run_id: str, name: str) -> pd.DataFrame:
    """Read a run's test predictions, names and ids as text.

    Raises
    ------
    NotComparable
        If the run has none; `name` says whose they would be.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(run_id, PREDICTIONS, folder)
            told = dict.fromkeys(("image_id", "source", "true", "predicted", "group"), str)
            return pd.read_csv(path, dtype=told, keep_default_na=False)
    except (MlflowException, OSError, ValueError) as error:
        raise NotComparable(f"{name} has no readable {PREDICTIONS} ({error})") from error


def digest_of_test(run: Run, name: str) -> str:
    """Digest of the images a run was tested on.

    Raises
    ------
    NotComparable
        If the run does not tell.
    """
    digest = run.data.tags.get(TEST_DIGEST) or run.data.params.get(TEST_DIGEST)
    if not digest:
        raise NotComparable(f"{name} does not say its {TEST_DIGEST}: it is no finished training")
    return digest


def as_tested(run: Run, row: str, word: str = "") -> TestedRun:
    """Read what a run predicted, as a run of a row that `word` names.

    Parameters
    ----------
    run : Run
    row : str
        Label of the configuration.
    word : str
        What names the run on the command line; empty: the start of its id.

    Raises
    ------
    NotComparable
        If it has no test predictions.
    """
    client = mlflow.MlflowClient()
    name = run.info.run_name or run.info.run_id
    told = f"run {name} ({run.info.run_id})"
    if run.info.status != "FINISHED":
        failure = run.data.tags.get("failure")
        told += f", which is {run.info.status}" + (f" ({failure})," if failure else ",")
    return TestedRun(
        run_id=run.info.run_id,
        name=name,
        row=row,
        seed=run.data.params.get("seed", "?"),
        test_digest=digest_of_test(run, told),
        predictions=read_predictions(client, run.info.run_id, told),
        remarks=remarks_of(run),
        minutes=minutes_of(run),
        word=word,
    )


def shared_params(
    params: Sequence[Mapping[str, str]], names: Iterable[str]
) -> dict[str, list[str]]:
    """Parameters that all runs share; of the commit every value, for it should be one.

    Returns
    -------
    dict of str to list of str
        Name -> different values.
    """
    values = {name: list(dict.fromkeys(p[name] for p in params if name in p)) for name in names}
    return {k: v for k, v in values.items() if len(v) == 1 or (v and k == "git_commit")}


def options_of_run(run_id: str, names: Sequence[str]) -> dict[str, Any]:
    """Options that a run was made with, from its parameters, in the types the config takes."""
    params = mlflow.MlflowClient().get_run(run_id).data.params
    told = {name: params[name].strip("'") for name in names if name in params}
    return typed_options(told, f"run {run_id}")


def remarks_of(run: Run) -> tuple[str, ...]:
    """What must stand beside the scores of a run, wherever they are shown."""
    return (*remarks_on_making(run), run.data.tags.get("controls", "not controlled"))


def remarks_on_making(run: Run) -> tuple[str, ...]:
    """The same without its controls: what it was made of."""
    tags = run.data.tags
    remarks = ["synthetic data"] if tags.get("synthetic") == "true" else []
    weights = tags.get("weights", "unknown")
    if weights != "ImageNet" and tags.get("model") not in FROM_SCRATCH:
        remarks.append(f"first weights: {weights}")
    return tuple(remarks)


def run_behind(
    client: mlflow.MlflowClient, version: object, run_id: str | None, model_id: str | None
) -> str:
    """Id of the run that made a registered version.

    Parameters
    ----------
    client : MlflowClient
    version : object
        As the message calls it.
    run_id, model_id : str or None
        What the version tells of the run, or else of the logged model, that it was made from.

    Raises
    ------
    NotComparable
        If the registry does not tell.
    """
    found = run_id or (client.get_logged_model(model_id).source_run_id if model_id else None)
    if not found:
        raise NotComparable(f"version {version} names no run with test predictions")
    return str(found)
