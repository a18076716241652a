"""One session of `cxr experiment run`: its parent run is found or opened, conducted, and closed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import filelock

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.data.prepare import cache_folder
from cxr_mlflow.data.storage import explained
from cxr_mlflow.describe import SYNTHETIC, where_lines
from cxr_mlflow.environment import unless_set
from cxr_mlflow.errors import InputError
from cxr_mlflow.experiment.board import DONE, FAILED, Board
from cxr_mlflow.experiment.conduct import GOES_ON, CellsFailed, Conductor
from cxr_mlflow.experiment.parent_run import BEST, COMPLETE, REGISTERED, marks_of
from cxr_mlflow.experiment.plan import Cell, Plan, load_plan
from cxr_mlflow.experiment.preflight import evidence_of, prepare_all
from cxr_mlflow.experiment.unsent import Unsent, send_cells
from cxr_mlflow.names import slug
from cxr_mlflow.stopping import Stopped
from cxr_mlflow.tracking.delivery import REQUEST
from cxr_mlflow.tracking.parents import KIND, NAME, Child, children_of, find_parent, get_run, link
from cxr_mlflow.tracking.patience import NoAnswer, ask, trouble
from cxr_mlflow.tracking.run import Tracker, joined_run, open_run, use_tracking_uri

COMPLETED, SOME_FAILED, SOME_LEFT, INTERRUPTED = 0, 1, 3, 130
"""Exit statuses of the command."""


@dataclass(frozen=True)
class Result:
    """What an experiment leaves its caller with."""

    run_id: str
    lines: tuple[str, ...]
    status: int = COMPLETED


def run_plan(asked: ExperimentConfig, experiment: str) -> Result:
    """Train what is missing of an experiment file, compare its rows, register the best model.

    Parameters
    ----------
    asked : ExperimentConfig
    experiment : str
        MLflow experiment of the parent run and the cells.

    Raises
    ------
    InputError
        If the file, the data or the first weights cannot be used; before anything is trained.
    """
    uri = use_tracking_uri()
    plan = load_plan(asked, experiment=experiment)
    study = prepare_all(plan)
    evidence = evidence_of(plan, study)
    place = f"{Path.cwd() if uri.startswith('sqlite') else ''}|{uri}|{experiment}"
    digest = hashlib.sha256(f"{place}|{study.split.test_digest}".encode()).hexdigest()
    folder = cache_folder(plan.data) / "experiments" / f"{slug(plan.name)}-{digest[:12]}"
    conductor = Conductor(asked, plan, study, evidence, folder, Board(plan, asked.jobs))
    with only_one(folder, plan), unless_set(REQUEST):
        parent, children, unsent = None, list[Child](), list[Unsent]()
        if not asked.fresh:
            parent = find_parent(experiment, plan.name, study.split.test_digest)
        if parent:
            unsent = send_cells(parent.info.run_id)
            children = children_of(parent)
        to_do = conductor.settle(children, unsent)
        own = joined_run()
        if parent and own and own != parent.info.run_id:
            link(own, parent)
        all_done = len(conductor.done) == len(plan.cells)
        if parent and all_done and parent.data.tags.get(COMPLETE) == marks_of(conductor.keys):
            told = f"nothing to do: all {len(plan.cells)} cells are finished"
            return Result(parent.info.run_id, (told, *last_lines(parent.info.run_id, plan, uri)))
        if any(child.is_done for child in children) and not conductor.done:
            conductor.board.warn(forsaken(plan, children))
        tags = {
            "kind": KIND,
            NAME: plan.name,
            "test_digest": study.split.test_digest,
            "data": study.catalog.name,
            "synthetic": str(study.catalog.is_demo).lower(),
        }
        return conducted(conductor, to_do, tags, parent.info.run_id if parent else None, uri)


def conducted(
    conductor: Conductor, to_do: list[Cell], tags: Mapping[str, str], run_id: str | None, uri: str
) -> Result:
    """Conduct within the parent run, an earlier one if its id is given; say how it ended.

    Parameters
    ----------
    conductor : Conductor
    to_do : list of Cell
        Those that have no finished run.
    tags : mapping of str to str
        Of the parent run.
    run_id : str or None
        None: a new parent run is opened.
    uri : str
        Of the tracking store.
    """
    plan, board = conductor.plan, conductor.board
    told = silent = ""
    status = COMPLETED
    try:
        with open_run(
            plan.tracking.experiment, plan.name, tags, run_id=run_id, system_metrics=False
        ) as run:
            run_id = run.run_id
            announce(conductor, len(to_do))
            try:
                conductor.conduct(run, to_do)
            except (CellsFailed, Stopped) as error:
                told = str(error)
                status = SOME_FAILED if isinstance(error, CellsFailed) else INTERRUPTED
                raise
    except (CellsFailed, Stopped):
        pass
    except NoAnswer as error:
        silent = str(error)
    except Exception:  # of closing a run that MLflow does not hear of, for instance
        if run_id is None or not (silent := trouble()):
            raise
    assert run_id is not None, "else open_run raised"
    left = len(plan.cells) - len(conductor.done) - board.count(FAILED)
    if silent:
        told = f"{told or conductor.told}. MLflow does not answer ({silent}). Nothing is lost: "
        told += f"when it answers, `cxr sync`, then {GOES_ON}"
    elif left and not told:
        told = f"{left} of {len(plan.cells)} cells are left ({conductor.why_left()}); {GOES_ON}"
    if told and not status:
        status = SOME_FAILED if board.count(FAILED) else SOME_LEFT
    if conductor.table:
        conductor.table.show(board.console)
    lines = [f"! {told}"] if told else []
    with suppress(NoAnswer):
        lines += ask(lambda: last_lines(run_id, plan, uri))
    return Result(run_id, tuple(lines), status)


def forsaken(plan: Plan, children: Sequence[Child]) -> str:
    """Say that nothing that an experiment trained before is asked for now."""
    number = sum(child.is_done for child in children)
    return (
        f"{plan.name}: none of its {number} finished cells is asked for now, and their rows leave "
        "the table. If this is another experiment, write another name: in its file"
    )


@contextmanager
def only_one(folder: Path, plan: Plan) -> Iterator[None]:
    """Let one process at a time conduct an experiment on this machine."""
    with explained(folder, "name another folder with cache_dir"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "conductor.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise InputError(
            f"{plan.name}: another process conducts this experiment here ({folder})"
        ) from error


def announce(conductor: Conductor, to_do: int) -> None:
    """Say what is about to be done."""
    plan, board = conductor.plan, conductor.board
    told = f"{plan.name}: {len(plan.rows)} rows, {len(plan.cells)} cells"
    told += f", {board.count(DONE)} finished" if board.count(DONE) else ""
    board.console.print(f"{told}; {to_do} to train", style="bold", markup=False)
    board.console.print(f"data     {conductor.study.catalog.root}", markup=False)
    board.console.print(f"logs     {conductor.folder}", markup=False)
    if conductor.study.catalog.is_demo:
        board.console.print(f"! {SYNTHETIC}", style="bold yellow", markup=False)


def last_lines(run_id: str, plan: Plan, uri: str) -> tuple[str, ...]:
    """Write the last lines: the verdict, where the report is, the model."""
    run = get_run(run_id)
    tags, tracker = run.data.tags, Tracker(run_id, run.info.experiment_id)
    lines = [tags["verdict"]] if "verdict" in tags else []
    lines += where_lines(plan.name, tracker, uri)
    if "verdict" in tags:
        lines.append(f"report    {tracker.artifact_uri()}/comparison/report.html")
    if REGISTERED in tags:
        lines.append(f"best      {tags[BEST]}: {tags[REGISTERED]}")
    return tuple(lines)
