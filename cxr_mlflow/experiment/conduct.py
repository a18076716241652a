"""Conducts the cells of an experiment: what is missing is trained, what is done compared."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.compare import Compared, about_experiment, describe
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.evaluation.comparison_report import Missing
from cxr_mlflow.experiment.best import register_best
from cxr_mlflow.experiment.board import DONE, FAILED, RUNNING, WAITING, Board
from cxr_mlflow.experiment.earlier import DIED, whereabouts, why_dead
from cxr_mlflow.experiment.parent_run import (
    BEST,
    COMPLETE,
    LOGS,
    OF_A_TABLE,
    REGISTERED,
    STATE,
    marks_of,
    tell_beginning,
    tell_logs,
    tell_plan,
)
from cxr_mlflow.experiment.plan import Cell, Plan
from cxr_mlflow.experiment.runner import Job, tail, train_cells
from cxr_mlflow.experiment.unsent import SCORE, Unsent, send_cells
from cxr_mlflow.stopping import Stopped
from cxr_mlflow.tracking.parents import (
    CELL,
    HOST,
    PARENT,
    ROW,
    Child,
    children_of,
    end_dead,
    get_run,
)
from cxr_mlflow.tracking.patience import Backlog, ask
from cxr_mlflow.tracking.run import Tracker
from cxr_mlflow.tracking.tested import as_tested

END_SECONDS = 10.0
"""Longest wait, when all is trained, for a server that does not answer."""
GOES_ON = "the same command goes on"


class CellsFailed(RuntimeError):
    """Some cells of an experiment ended without a result."""


@dataclass
class Conductor:
    """One session of an experiment file: what is asked, what is done, what is to do."""

    asked: ExperimentConfig
    plan: Plan
    study: Study
    evidence: Mapping[Cell, Mapping[str, str]]
    folder: Path
    board: Board
    done: dict[Cell, Child] = field(default_factory=dict)
    unsent: set[Cell] = field(default_factory=set)
    """Trained, and not wholly at MLflow."""
    table: Compared | None = None
    """The newest comparison."""
    tabled: int = 0
    """Finished cells in it."""
    backlog: Backlog = field(init=False)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.board.warn)

    @property
    def keys(self) -> dict[Cell, str]:
        """Key of each cell; where it is done, the one its run was made for."""
        return {
            cell: self.done[cell].cell if cell in self.done else cell.key(**self.evidence[cell])
            for cell in self.plan.cells
        }

    @property
    def told(self) -> str:
        """How far it is, in words."""
        failed = self.board.count(FAILED)
        told = f"{self.board.count(DONE)} of {len(self.plan.cells)} cells done"
        return f"{told}, {failed} failed" if failed else told

    def settle(self, children: Sequence[Child], unsent: Sequence[Unsent] = ()) -> list[Cell]:
        """Sort out what earlier sessions left behind; return the cells to train."""
        on_its_way = {each.key for each in unsent}
        closed = set()
        for child in children:
            if child.is_open and child.cell not in on_its_way and (why := why_dead(child)):
                end_dead(child.run_id, why)
                closed.add(child.run_id)
        to_do = []
        for cell in self.plan.cells:
            own = [child for child in children if self._is_of(child, cell)]
            finished = [child for child in own if child.is_done]
            alive = [child for child in own if child.is_open and child.run_id not in closed]
            trained = [each for each in unsent if self._has_left(each, cell)]
            if finished:
                self._finish(cell, finished[-1], now=False)
            elif trained:
                self.unsent.add(cell)
                self.board.done(cell, trained[-1].f1_macro, 0.0, sent=False)
            elif alive:
                self.board.elsewhere(cell, whereabouts(alive[-1]))
            else:
                to_do.append(cell)
        return to_do

    def conduct(self, run: Tracker, to_do: list[Cell]) -> None:
        """Train what is missing and record the table.

        Raises
        ------
        CellsFailed
            If cells failed; the others are trained and compared all the same.
        Stopped
            At Ctrl-C: the cells are ended, those that are done compared.
        NoAnswer
            If MLflow does not answer in the end; all that was trained is kept on this machine.
        """
        tell_beginning(run, self.asked, self.plan, self.study, self.keys)
        run.set_tags({STATE: f"{self.told}; {len(to_do)} in training"})
        tags = {PARENT: run.run_id, HOST: platform.node(), "in_experiment": self.plan.name}
        keys = self.keys
        work = [Job(c, {**tags, CELL: keys[c], ROW: c.row}) for c in to_do]

        def on_end(job: Job, status: int, log: Path, seconds: float) -> None:
            self.backlog.tell(lambda: run.log_file(log, LOGS))
            self._after(job.cell, status, log, run.run_id, seconds)
            self._between(run, job.cell.seed)

        try:
            with self.board.shown():
                train_cells(
                    work,
                    self.folder,
                    self.board,
                    jobs=self.asked.jobs,
                    max_seconds=60 * self.asked.max_time,
                    on_end=on_end,
                )
        except KeyboardInterrupt:
            told = f"stopped; {self.told}, {GOES_ON}"
            self.backlog.try_now(lambda: self._last_words(run, told))
            raise Stopped(told) from None
        self._collect(run)
        self._log_table(run)
        self._conclude(run)

    def _collect(self, run: Tracker) -> None:
        """Tell what was kept for want of an answer, and take in what arrived late."""
        self.backlog.finish(seconds=END_SECONDS)
        ask(lambda: tell_logs(run, self.plan, self.folder))
        if not self.unsent:
            return
        send_cells(run.run_id)
        children = ask(lambda: children_of(get_run(run.run_id)))
        for cell in sorted(self.unsent, key=self.plan.cells.index):
            if found := [c for c in children if c.is_done and self._is_of(c, cell)]:
                self._finish(cell, found[-1], now=False)
                self.unsent.discard(cell)

    def _conclude(self, run: Tracker) -> None:
        """Say on the run how the session ended; where nothing is missing, register the best."""
        failed = {c: p.reason for c, p in self.board.places.items() if p.state == FAILED}
        if failed:
            run.set_tags({STATE: f"{self.told}; {GOES_ON}"})
            cell, reason = next(iter(failed.items()))
            raise CellsFailed(
                f"{len(failed)} of {len(self.plan.cells)} cells; {cell.title}: {reason}"
            )
        if len(self.done) < len(self.plan.cells):
            run.set_tags({STATE: f"{self.told}; {self.why_left()}; {GOES_ON}"})
            return
        tags = {COMPLETE: marks_of(self.keys), STATE: "complete"}
        tell_plan(run, self.plan, self.keys)
        if self.plan.tracking.register:
            best, told = register_best(self.plan, self.study, self.done)
            tags |= {REGISTERED: told} | ({BEST: best.title} if best else {})
        run.set_tags(tags)

    def why_left(self) -> str:
        """Why cells are left though none failed."""
        if self.unsent:
            return f"{len(self.unsent)} trained here and not sent: `cxr sync` says why"
        return "the time was up" if self.board.count(WAITING) else "another machine has the others"

    def _between(self, run: Tracker, seed: int) -> None:
        """Record a table when a seed is through, so that an interruption leaves one."""
        places = self.board.places.items()
        under_way = {cell.seed for cell, p in places if p.state in (WAITING, RUNNING)}
        if under_way and seed not in under_way and self.tabled < len(self.done):
            self.backlog.try_now(lambda: self._log_table(run))

    def _last_words(self, run: Tracker, told: str) -> None:
        if self.tabled < len(self.done):
            self._log_table(run)
        run.set_tags({STATE: told})

    def _log_table(self, run: Tracker) -> None:
        """Compare the finished cells, and record it; without one, take back an older table's words.

        Raises
        ------
        NoAnswer
            If MLflow does not answer.
        """
        self.table, self.tabled = ask(self.compared), len(self.done)
        table = self.table
        if table is None:
            ask(lambda: run.forget(tags=OF_A_TABLE))
        else:
            ask(lambda: table.log_to(run.run_id, run.experiment_id))

    def compared(self) -> Compared | None:
        """Compare the finished cells; None while there is none."""
        if not self.done:
            return None
        words = {WAITING: "not run yet", DONE: "not sent yet"}
        missing = [
            Missing(c.row, str(c.seed), words.get(p.state, p.state), p.reason)
            for c, p in self.board.places.items()
            if c not in self.done
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

    def _after(self, cell: Cell, status: int, log: Path, parent: str, seconds: float) -> None:
        """See what became of a cell whose process has ended."""
        unsent = send_cells(parent, self.keys[cell])
        attempts: list[Child] = []
        heard = self.backlog.try_now(
            lambda: attempts.extend(c for c in children_of(get_run(parent)) if self._is_of(c, cell))
        )
        last = attempts[-1] if attempts else None
        if status == 0 and last and last.is_done:
            self._finish(cell, last, now=True, minutes=seconds / 60)
            return
        if status == 0 and (unsent or not heard):
            self.unsent.add(cell)
            score = unsent[-1].f1_macro if unsent else None
            self.board.done(cell, score, seconds / 60, sent=False)
            return
        if last and last.is_open:
            self.backlog.tell(lambda: end_dead(last.run_id, DIED))
        lines = tail(log)
        reason = last.failure if last and last.failure else (lines[-1] if lines else DIED)
        self.board.failed(cell, f"{reason} (exit status {status}; {log})")

    def _is_of(self, child: Child, cell: Cell) -> bool:
        return cell.is_made_by(child.cell, child.run.data.params, **self.evidence[cell])

    def _has_left(self, unsent: Unsent, cell: Cell) -> bool:
        return cell.is_made_by(unsent.key, unsent.options, **self.evidence[cell])

    def _finish(self, cell: Cell, child: Child, *, now: bool, minutes: float | None = None) -> None:
        self.done[cell] = child
        score = child.run.data.metrics.get(SCORE)
        self.board.done(cell, score, child.minutes if minutes is None else minutes, now=now)
