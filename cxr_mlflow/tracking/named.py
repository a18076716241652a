"""Which runs the words of a command line name: ids, experiments, versions of a model."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import TestedRun
from cxr_mlflow.evaluation.comparison_words import Missing
from cxr_mlflow.labels import label_rows, recipe
from cxr_mlflow.tracking.cells import Cells, cells_of
from cxr_mlflow.tracking.parents import KIND, find_parents, get_run
from cxr_mlflow.tracking.tested import REGISTERED, RUN_ID, as_tested, run_behind

START_OF_ID = re.compile(r"[0-9a-f]{6,31}")
NAME = re.compile(r"[\w. -]{1,100}")
"""What an experiment file may call itself."""
MOST_IDS = 5
Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Version:
    """A registered version: the run that made it is a row of its own."""

    name: str
    number: str
    aliases: tuple[str, ...]
    run: Run

    def label(self, *, with_name: bool) -> str:
        """Name it in front of its row: v1 champion."""
        model = f"{self.name} " if with_name else ""
        also = f" {'/'.join(self.aliases)}" if self.aliases else ""
        return f"{model}v{self.number}{also}"

    @property
    def word(self) -> str:
        """Word that names it."""
        return f"{REGISTERED}{self.name}/{self.number}"


@dataclass
class Named:
    """What some words name."""

    runs: dict[str, Run] = field(default_factory=dict)
    """By id; those of versions are not among them."""
    versions: list[Version] = field(default_factory=list)
    parents: dict[str, Run] = field(default_factory=dict)
    cells: dict[str, Cells] = field(default_factory=dict)
    """Of each parent run."""
    remarks: list[str] = field(default_factory=list)
    """What was chosen where a word may mean several things."""
    num_words: int = 0

    @property
    def only_parent(self) -> Run | None:
        """The parent run, where nothing else is named."""
        return next(iter(self.parents.values())) if self.parents and self.num_words == 1 else None

    @property
    def missing(self) -> tuple[Missing, ...]:
        """Cells of the experiments named that have no score."""
        return tuple(cell for cells in self.cells.values() for cell in cells.missing)

    def tested(self) -> list[TestedRun]:
        """Read what the runs predicted, each once, with the rows they belong to.

        The cells of one experiment have the rows of its file. Otherwise runs that differ in
        nothing but the seed are one row, and versions are rows of their own.
        """
        if self.only_parent:
            (cells,) = self.cells.values()
            return [as_tested(child.run, cell.row) for cell, child in cells.done.items()]
        by_run: dict[str, list[Version]] = {}
        for version in self.versions:
            by_run.setdefault(version.run.info.run_id, []).append(version)
        runs = {**self.runs, **{run_id: same[0].run for run_id, same in by_run.items()}}
        recipes = [recipe(run.data.params) for run in runs.values()]
        unseeded = [{k: v for k, v in each.items() if k != "seed"} for each in recipes]
        with_name = len({version.name for version in self.versions}) > 1
        found = []
        for (run_id, run), row in zip(runs.items(), label_rows(unseeded), strict=True):
            same = by_run.get(run_id, [])
            called = " = ".join(version.label(with_name=with_name) for version in same)
            word = same[0].word if same else ""
            found.append(as_tested(run, f"{called}: {row}" if same else row, word))
        return found


def name_runs(words: Sequence[str], experiment: str) -> Named:
    """Find the runs that words name.

    Parameters
    ----------
    words : sequence of str
        Ids of training runs, or the beginnings of ids; ids of parent runs and names of
        experiments, whose finished cells are taken; `models:/NAME` (all versions),
        `models:/NAME/VERSION` and `models:/NAME@ALIAS`.
    experiment : str
        MLflow experiment in which experiments are looked for by name.

    Raises
    ------
    InputError
        If something named is not there, or a word means several runs.
    """
    named = Named(num_words=len(words))
    for word in words:
        if word.startswith(REGISTERED):
            told = word.removeprefix(REGISTERED)
            known = {(version.name, version.number) for version in named.versions}
            found = _versions(mlflow.MlflowClient(), told)
            named.versions += [v for v in found if (v.name, v.number) not in known]
            continue
        run = _run_of(word, experiment, named.remarks)
        if run.data.tags.get("kind") != KIND:
            named.runs[run.info.run_id] = run
            continue
        named.parents[run.info.run_id] = run
        cells = named.cells[run.info.run_id] = cells_of(run)
        if not cells.done:
            raise InputError(
                f"the experiment {run.info.run_name} ({run.info.run_id}) has no finished cell yet"
                + next((f" ({c.row}, {c.seed}: {c.reason})" for c in cells.missing if c.reason), "")
            )
        named.runs |= {child.run_id: child.run for child in cells.done.values()}
    return named


def _run_of(word: str, experiment: str, remarks: list[str]) -> Run:
    if RUN_ID.fullmatch(word):
        return get_run(word)
    parents = find_parents(experiment, word) if NAME.fullmatch(word) else []
    if parents:
        if len(parents) > 1:
            remarks.append(
                f"{word} was trained on {len(parents)} sets of test images; taken: "
                f"{_told(parents[0])}, the newest. Others: {'; '.join(map(_told, parents[1:]))}"
            )
        return parents[0]
    if START_OF_ID.fullmatch(word):
        client = mlflow.MlflowClient()
        homes = [each.experiment_id for each in client.search_experiments()]
        begun = f"attributes.run_id LIKE '{word}%'"
        found = client.search_runs(homes, begun, max_results=MOST_IDS)
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(run.info.run_id for run in found)
            raise InputError(f"{word!r} is the beginning of several run ids: {ids}")
    raise InputError(
        f"{word!r} is neither a run id or its beginning, nor models:/NAME, nor an experiment file "
        f"that is there, nor the name of one that was run in the MLflow experiment {experiment}"
    )


def _told(parent: Run) -> str:
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(parent.info.start_time / 1000))
    tags = parent.data.tags
    where = f"{tags['data']}, " if "data" in tags else ""
    return f"{parent.info.run_id[:8]} ({where}{began}, test {tags.get('test_digest', '?')[:12]})"


def _versions(client: mlflow.MlflowClient, told: str) -> list[Version]:
    name, _, number = told.partition("/")
    if "@" in name:
        name, _, alias = name.partition("@")
        number = str(_asked(lambda: client.get_model_version_by_alias(name, alias).version, told))
    aliases: dict[str, list[str]] = {}
    model = _asked(lambda: client.get_registered_model(name), told)
    for alias, version in sorted(model.aliases.items(), key=lambda each: each[0] != "champion"):
        aliases.setdefault(str(version), []).append(alias)
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version))
    found = [v for v in found if not number or str(v.version) == number]
    if not found:
        raise InputError(f"models:/{told}: no such version")
    return [
        Version(
            name,
            str(v.version),
            tuple(aliases.get(str(v.version), ())),
            get_run(run_behind(client, v.version, v.run_id, v.model_id)),
        )
        for v in found
    ]


def _asked(ask: Callable[[], Asked], told: str) -> Asked:
    try:
        return ask()
    except MlflowException as error:
        raise InputError(f"models:/{told}: no such model or version in the registry") from error
