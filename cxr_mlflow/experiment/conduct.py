"""Conducts an experiment file: a parent run, the cells that are missing, the table, the best."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.compare import Compared, about_experiment, describe
from cxr_mlflow.data.prepare import Study, cache_folder
from cxr_mlflow.data.storage import explained
from cxr_mlflow.describe import SYNTHETIC, where_lines
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison_report import Missing
from cxr_mlflow.experiment.best import register_best
from cxr_mlflow.experiment.board import DONE, FAILED, WAITING, Board
from cxr_mlflow.experiment.plan import Cell, Plan, load_plan
from cxr_mlflow.experiment.preflight import key_cells, prepare_all
from cxr_mlflow.experiment.runner import Job, tail, train_cells
from cxr_mlflow.names import slug
from cxr_mlflow.tracking.parents import (
    CELL,
    HOST,
    KIND,
    NAME,
    PARENT,
    PLAN_FILE,
    ROW,
    Child,
    PlannedCell,
    children_of,
    end_dead,
    find_parent,
    get_run,
    link,
    write_plan,
)
from cxr_mlflow.tracking.run import Stopped, Tracker, joined_run, open_run, use_tracking_uri
from cxr_mlflow.tracking.tested import as_tested

DIED = "its process ended without a word (killed, or out of memory)"


class CellsFailed(RuntimeError):
    """Some cells of an experiment ended without a result."""


@dataclass(frozen=True)
class Result:
    """What an experiment leaves its caller with."""

    run_id: str
    lines: tuple[str, ...]
    failed: int = 0
    left: int = 0


@dataclass
class Conductor:
    """One session of an experiment file: what is asked, what is done, what is to do."""

    asked: ExperimentConfig
    plan: Plan
    study: Study
    keys: Mapping[Cell, str]
    folder: Path
    board: Board
    done: dict[Cell, Child] = field(default_factory=dict)

    @property
    def marks(self) -> str:
        """Digest of the cells asked for: a parent run that has it is complete."""
        return hashlib.sha256("".join(sorted(self.keys.values())).encode()).hexdigest()

    def settle(self, children: list[Child]) -> list[Cell]:
        """Sort out what earlier sessions left behind; return the cells to train."""
        here = platform.node()
        by_key: dict[str, Child] = {}
        for child in children:
            if child.is_open and child.host == here:  # none runs: this process holds the lock
                end_dead(child.run_id, DIED)
            elif child.is_done or child.cell not in by_key or not by_key[child.cell].is_done:
                by_key[child.cell] = child
        to_do = []
        for cell in self.plan.cells:
            last = by_key.get(self.keys[cell])
            if last and last.is_done:
                self._finish(cell, last, now=False)
            elif last and last.is_open:
                self.board.elsewhere(
                    cell, f"run {last.run_id} is being made on {last.host}, says the server"
                )
            else:
                to_do.append(cell)
        return to_do

    def conduct(self, run: Tracker, to_do: list[Cell]) -> Compared | None:
        """Train what is missing and record the table.

        Raises
        ------
        CellsFailed
            If cells failed; the others are trained and compared all the same.
        Stopped
            If time was up before all cells had begun, or another machine holds some.
        """
        planned = [PlannedCell(self.keys[c], c.row, str(c.seed), c.name) for c in self.plan.cells]
        run.log_json(write_plan(planned), PLAN_FILE)
        run.log_text(self.plan.text, "experiment.yaml")
        tags = {PARENT: run.run_id, HOST: platform.node(), "in_experiment": self.plan.name}
        work = [Job(c, {**tags, CELL: self.keys[c], ROW: c.row}) for c in to_do]

        def on_end(job: Job, status: int, log: Path, seconds: float) -> None:
            run.log_file(log, "cells")
            self._after(job.cell, status, log, get_run(run.run_id), seconds)

        with self.board.shown():
            train_cells(
                work,
                self.folder,
                self.board,
                jobs=self.asked.jobs,
                max_seconds=60 * self.asked.max_time,
                on_end=on_end,
            )
        compared = self.compared()
        if compared:
            compared.log_to(run.run_id, run.experiment_id)
        failed = {c: p.reason for c, p in self.board.places.items() if p.state == FAILED}
        if failed:
            cell, reason = next(iter(failed.items()))
            raise CellsFailed(f"{len(failed)} of {len(self.keys)} cells; {cell.title}: {reason}")
        if left := len(self.keys) - len(self.done):
            raise Stopped(f"{left} of {len(self.keys)} cells are left; the same command goes on")
        tags = {"complete": self.marks}
        if self.plan.tracking.register:
            best, told = register_best(self.plan, self.study, self.done)
            tags |= {"best": best.title, "registered": told}
        run.set_tags(tags)
        return compared

    def compared(self) -> Compared | None:
        """Compare the finished cells; None while there is none."""
        if not self.done:
            return None
        places = self.board.places.items()
        missing = [
            Missing(c.row, str(c.seed), "not run yet" if p.state == WAITING else p.state, p.reason)
            for c, p in places
            if p.state != DONE
        ]
        catalog = self.study.catalog
        about = about_experiment(self.plan.description, catalog.name, synthetic=catalog.is_demo)
        return describe(
            [as_tested(child.run, cell.row) for cell, child in self.done.items()],
            title=self.plan.name,
            about=about,
            missing=missing,
            samples=self.plan.tracking.bootstrap_samples,
        )

    def _after(self, cell: Cell, status: int, log: Path, parent: object, seconds: float) -> None:
        """See what became of a cell whose process has ended."""
        attempts = [c for c in children_of(parent) if c.cell == self.keys[cell]]
        last = attempts[-1] if attempts else None
        if status == 0 and last and last.is_done:
            self._finish(cell, last, now=True, minutes=seconds / 60)
            return
        if last and last.is_open:
            end_dead(last.run_id, DIED)
        lines = tail(log)
        reason = last.failure if last and last.failure else (lines[-1] if lines else DIED)
        self.board.failed(cell, f"{reason} (exit status {status}; {log})")

    def _finish(self, cell: Cell, child: Child, *, now: bool, minutes: float | None = None) -> None:
        self.done[cell] = child
        score = child.run.data.metrics.get("test/f1_macro")
        self.board.done(cell, score, child.minutes if minutes is None else minutes, now=now)


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
    keys = key_cells(plan, study)
    place = f"{Path.cwd() if uri.startswith('sqlite') else ''}|{uri}|{experiment}"
    digest = hashlib.sha256(f"{place}|{study.split.test_digest}".encode()).hexdigest()
    folder = cache_folder(plan.data) / "experiments" / f"{slug(plan.name)}-{digest[:12]}"
    conductor = Conductor(asked, plan, study, keys, folder, Board(plan, asked.jobs))
    with only_one(folder, plan):
        parent = None
        if not asked.fresh:
            parent = find_parent(experiment, plan.name, study.split.test_digest)
        to_do = conductor.settle(children_of(parent) if parent else [])
        own = joined_run()
        if parent and own and own != parent.info.run_id:
            link(own, parent)
        if parent and parent.data.tags.get("complete") == conductor.marks:
            told = f"nothing to do: all {len(keys)} cells are finished"
            return Result(parent.info.run_id, (told, *last_lines(parent.info.run_id, plan, uri)))
        tags = {
            "kind": KIND,
            NAME: plan.name,
            "test_digest": study.split.test_digest,
            "data": study.catalog.name,
            "synthetic": str(study.catalog.is_demo).lower(),
        }
        try:
            with open_run(
                experiment,
                plan.name,
                tags,
                run_id=parent.info.run_id if parent else None,
                system_metrics=False,
            ) as run:
                announce(conductor, len(to_do))
                compared = conductor.conduct(run, to_do)
        except (CellsFailed, Stopped) as error:
            failed = conductor.board.count(FAILED)
            left = len(keys) - len(conductor.done) - failed
            lines = (f"! {error}", *last_lines(run.run_id, plan, uri))
            return Result(run.run_id, lines, failed, left)
    if compared:
        compared.show(conductor.board.console)
    return Result(run.run_id, last_lines(run.run_id, plan, uri))


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
    if "registered" in tags:
        lines.append(f"best      {tags['best']}: {tags['registered']}")
    return tuple(lines)
