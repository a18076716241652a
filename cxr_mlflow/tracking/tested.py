"""Finished runs as they are compared: what they predicted, which row they belong to."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cxr_mlflow.config import FROM_SCRATCH
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import NotComparable, TestedRun
from cxr_mlflow.labels import label_rows, recipe
from cxr_mlflow.tracking.parents import children_of, get_run, minutes_of, planned_cells
from cxr_mlflow.typed_options import typed_options

PREDICTIONS = "test/predictions.csv"
"""Artifact of a run: columns `image_id`, `true`, `predicted`, and `group`, the near-duplicates that
are resampled together."""
TEST_DIGEST = "test_digest"
"""Tag or parameter of a run: which images it was tested on."""
REGISTERED = "models:/"
Found = TypeVar("Found")
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


def tested_runs(what: Sequence[str]) -> list[TestedRun]:
    """Gather the runs that words name, with the rows they belong to.

    Parameters
    ----------
    what : sequence of str
        Run ids, of training runs or of the parent run of an experiment, whose finished cells are
        taken; and `models:/NAME` (all versions) or `models:/NAME/VERSION`. Versions are rows of
        their own; runs that differ in nothing but the seed are one row.

    Raises
    ------
    InputError
        If something named is not there.
    NotComparable
        If a run has no test predictions.
    """
    client = mlflow.MlflowClient()
    runs: dict[str, Run] = {}
    versions: list[TestedRun] = []
    for word in what:
        if word.startswith(REGISTERED):
            versions += _versions(client, word.removeprefix(REGISTERED))
        else:
            runs |= {run.info.run_id: run for run in _named_runs(word)}
    recipes = [recipe(run.data.params) for run in runs.values()]
    unseeded = [{k: v for k, v in each.items() if k != "seed"} for each in recipes]
    labels = label_rows(unseeded)
    found = [as_tested(run, row) for run, row in zip(runs.values(), labels, strict=True)]
    return found + versions


def as_tested(run: Run, row: str) -> TestedRun:
    """Read what a run predicted, as a run of a row."""
    client = mlflow.MlflowClient()
    name = run.info.run_name or run.info.run_id
    told = f"run {name} ({run.info.run_id})"
    return TestedRun(
        run_id=run.info.run_id,
        name=name,
        row=row,
        seed=run.data.params.get("seed", "?"),
        test_digest=digest_of_test(run, told),
        predictions=read_predictions(client, run.info.run_id, told),
        remarks=remarks_of(run),
        minutes=minutes_of(run),
    )


def shared_params(run_ids: Sequence[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Parameters that all runs share; of the commit every value, for it should be one.

    Returns
    -------
    dict of str to list of str
        Name -> different values.
    """
    client = mlflow.MlflowClient()
    params = [client.get_run(run_id).data.params for run_id in run_ids]
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


def _named_runs(word: str) -> list[Run]:
    if not RUN_ID.fullmatch(word):
        raise InputError(
            f"{word!r} is neither a run id, nor models:/NAME, nor an experiment file that is there"
        )
    run = get_run(word)
    if run.data.tags.get("kind") != "experiment":
        return [run]
    wanted = {cell.key for cell in planned_cells(run)}
    cells = [child for child in children_of(run) if child.is_done]
    if not (found := [child.run for child in cells if child.cell in wanted]):
        raise InputError(f"the experiment {run.info.run_name} ({word}) has no finished cell yet")
    return found


def _versions(client: mlflow.MlflowClient, told: str) -> list[TestedRun]:
    name, _, number = told.partition("/")
    if "@" in name:
        name, _, alias = name.partition("@")
        number = str(_asked(lambda: client.get_model_version_by_alias(name, alias).version, told))
    aliases: dict[str, list[str]] = {}
    model = _asked(lambda: client.get_registered_model(name), told)
    for alias, version in model.aliases.items():
        aliases.setdefault(str(version), []).append(alias)
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
    found = [v for v in found if not number or str(v.version) == number]
    if not found:
        raise InputError(f"models:/{told}: no such version")
    tested = []
    for version in found:
        run_id = run_behind(client, version.version, version.run_id, version.model_id)
        also = aliases.get(str(version.version))
        row = f"version {version.version}" + (f" ({', '.join(also)})" if also else "")
        tested.append(as_tested(get_run(run_id), row))
    return tested


def run_behind(
    client: mlflow.MlflowClient, version: object, run_id: str | None, model_id: str | None
) -> str:
    """Id of the run that made a registered version.

    Raises
    ------
    NotComparable
        If the registry does not tell.
    """
    found = run_id or (client.get_logged_model(model_id).source_run_id if model_id else None)
    if not found:
        raise NotComparable(f"version {version} names no run with test predictions")
    return str(found)


def _asked(ask: Callable[[], Found], told: str) -> Found:
    try:
        return ask()
    except MlflowException as error:
        raise InputError(f"models:/{told}: no such model or version in the registry") from error
