"""Parent runs and the cells under them: found again, told apart, ended when their process died."""

from __future__ import annotations

import contextlib
import json
import math
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.store.entities.paged_list import PagedList

from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.processes import HEARTBEAT, HOST, is_dead

KIND = "experiment"
NAME = "experiment_name"
"""Tag of a parent run: the name in its experiment file."""
PARENT = "mlflow.parentRunId"
CELL, ROW = "cell", "row"
"""Tags of a child: the key of its cell, the label of its row."""
PLAN_FILE = "plan.json"
"""Artifact of a parent run: its cells."""
EXPERIMENT_FILE = "experiment.yaml"
"""Artifact of a parent run: its experiment file."""
PAGE = 1000


@dataclass(frozen=True)
class Child:
    """A run under a parent run: one attempt at one cell."""

    run: Run

    @property
    def run_id(self) -> str:
        """Id of the run."""
        return str(self.run.info.run_id)

    @property
    def cell(self) -> str:
        """Key of the cell it is an attempt at."""
        return str(self.run.data.tags.get(CELL, ""))

    @property
    def host(self) -> str:
        """Machine it was started on."""
        return str(self.run.data.tags.get(HOST, ""))

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return str(self.run.info.status) == "FINISHED"

    @property
    def is_open(self) -> bool:
        """Whether it runs, or died without a word."""
        return str(self.run.info.status) in ("RUNNING", "SCHEDULED")

    @property
    def last_sign(self) -> float:
        """When it last showed that it lives, by the clock of its machine; seconds since 1970."""
        beat = float(self.run.data.tags.get(HEARTBEAT) or 0)
        return max(beat, float(self.run.info.start_time or 0) / 1000)

    @property
    def minutes(self) -> float:
        """How long it took; nan if it does not tell."""
        return minutes_of(self.run)

    @property
    def failure(self) -> str:
        """Why it did not come to its end."""
        return str(self.run.data.tags.get("failure", ""))


def minutes_of(run: Run) -> float:
    """How long a run took; nan if it does not tell."""
    if not run.info.end_time or not run.info.start_time:
        return math.nan
    return float(run.info.end_time - run.info.start_time) / 60_000


@dataclass(frozen=True)
class PlannedCell:
    """A cell that an experiment file asks for, as the parent run keeps it."""

    key: str
    row: str
    seed: str
    name: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    """All options, as the parameters of its run spell them; empty in plans of old."""


def write_plan(cells: Sequence[PlannedCell]) -> list[dict[str, Any]]:
    """Put the cells into the form of the artifact `PLAN_FILE`."""
    return [asdict(cell) for cell in cells]


def planned_cells(parent: Run) -> list[PlannedCell]:
    """Read which cells the newest version of a parent's experiment file asks for.

    Raises
    ------
    InputError
        If the parent run does not hold the file.
    """
    try:
        return [PlannedCell(**cell) for cell in json.loads(read_text(parent, PLAN_FILE))]
    except (MlflowException, OSError, ValueError, TypeError) as error:
        raise InputError(
            f"the experiment {parent.info.run_name} ({parent.info.run_id}) has no {PLAN_FILE}"
        ) from error


def read_text(run: Run, path: str) -> str:
    """Read an artifact that is a text."""
    with tempfile.TemporaryDirectory() as folder:
        file = mlflow.MlflowClient().download_artifacts(run.info.run_id, path, folder)
        return Path(file).read_text("utf-8")


def description_of(parent: Run) -> str:
    """What a parent's experiment file says it is about; empty where it says nothing."""
    try:
        told = yaml.safe_load(read_text(parent, EXPERIMENT_FILE))
    except (MlflowException, OSError, ValueError, yaml.YAMLError):
        return ""
    return " ".join(str(told.get("description") or "").split()) if isinstance(told, dict) else ""


def get_run(run_id: str) -> Run:
    """Read a run.

    Raises
    ------
    InputError
        If there is none of that id.
    """
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise InputError(f"no run {run_id} in {mlflow.get_tracking_uri()}") from error


def find_parent(experiment: str, name: str, test_digest: str | None = None) -> Run | None:
    """Newest parent run of an experiment file's name; None if there is none.

    Parameters
    ----------
    experiment, name, test_digest
        See `find_parents`.
    """
    return next(iter(find_parents(experiment, name, test_digest)), None)


def find_parents(experiment: str, name: str, test_digest: str | None = None) -> list[Run]:
    """Parent runs of an experiment file's name, the newest first: one for each set of test images.

    Parameters
    ----------
    experiment : str
        MLflow experiment it is looked for in.
    name : str
    test_digest : str, optional
        The test images its cells must have; any by default.
    """
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    wanted = {"kind": KIND, NAME: name}
    wanted |= {"test_digest": test_digest} if test_digest else {}
    return list(
        client.search_runs(
            [found.experiment_id],
            " and ".join(f"tags.{key} = '{value}'" for key, value in wanted.items()),
            order_by=["attributes.start_time DESC"],
        )
    )


def children_of(parent: Run) -> list[Child]:
    """Runs under a parent run, oldest first."""
    search = partial(
        mlflow.MlflowClient().search_runs,
        [parent.info.experiment_id],
        f"tags.`{PARENT}` = '{parent.info.run_id}'",
        order_by=["attributes.start_time ASC"],
    )
    return [Child(run) for run in all_pages(search)]


def end_dead(run_id: str, why: str) -> None:
    """End a run whose process is gone; it stayed RUNNING because nobody could say so."""
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "failure", why)
    client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))


def link(run_id: str, other: Run) -> None:
    """Say on a run that its command went on with another."""
    client = mlflow.MlflowClient()
    info = other.info
    note = (
        f"This command went on with the run [{info.run_name}]"
        f"(#/experiments/{info.experiment_id}/runs/{info.run_id}); all results are there.\n"
    )
    tags = {"continued_in": info.run_id, "mlflow.runName": f"{info.run_name} (continued)"}
    for name, value in {**tags, "mlflow.note.content": note}.items():
        client.set_tag(run_id, name, value)


def close_dead_runs() -> list[str]:
    """End the runs of every experiment that are RUNNING though their process here is gone.

    Returns
    -------
    list of str
        Their ids.
    """
    client = mlflow.MlflowClient()
    places = [found.experiment_id for found in all_pages(client.search_experiments)]
    told = f"attributes.status = 'RUNNING' and tags.{HOST} = '{platform.node()}'"
    dead = []
    for start in range(0, len(places), PAGE):
        search = partial(client.search_runs, places[start : start + PAGE], told)
        for run in list(all_pages(search)):
            with contextlib.suppress(MlflowException):  # deleted meanwhile, or not ours to end
                if _is_dead(run) and _is_dead(client.get_run(run.info.run_id)):
                    end_dead(run.info.run_id, "its process died without a word")
                    dead.append(run.info.run_id)
    return dead


def _is_dead(run: Run) -> bool:
    """Whether a run is open and its process gone; asked twice, for its command may go on."""
    started = (run.info.start_time or 0) / 1000
    return run.info.status == "RUNNING" and is_dead(run.data.tags, started=started)


def all_pages(search: Callable[..., PagedList[Any]]) -> Iterator[Any]:
    """Yield all that a search of MLflow finds, page by page."""
    token = None
    while True:
        page = search(max_results=PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
