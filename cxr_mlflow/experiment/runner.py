"""Trains cells in processes of their own, some at a time; none outlives the runner."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cxr_mlflow.config import RunConfig
from cxr_mlflow.experiment.board import Board, stage
from cxr_mlflow.experiment.plan import Cell

POLL_SECONDS = 0.5
GRACE_SECONDS = 90.0
"""How long a process may take to close its run after it was asked to end."""
TAIL_BYTES = 4000
OF_THE_RUNNER = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")


@dataclass(frozen=True)
class Job:
    """A cell to be trained, with the tags of its run."""

    cell: Cell
    tags: Mapping[str, str]


@dataclass
class _Process:
    job: Job
    popen: subprocess.Popen[bytes]
    log: Path
    start: float


def train_cells(
    work: Sequence[Job],
    folder: Path,
    board: Board,
    *,
    jobs: int,
    max_seconds: float,
    on_end: Callable[[Job, int, Path, float], None],
) -> bool:
    """Train cells, `jobs` at a time, in the order given.

    Parameters
    ----------
    work : sequence of Job
    folder : Path
        For each cell's description, lock and log.
    board : Board
        Told how far each cell is.
    jobs : int
        Processes at a time; they share the cores.
    max_seconds : float
        No cell is begun after so long; 0: no limit.
    on_end : callable
        Told of a cell's exit status, log and seconds, as soon as its process has ended.

    Returns
    -------
    bool
        False if time was up before all cells had begun.
    """
    start = time.monotonic()
    waiting, running = list(work), list[_Process]()
    try:
        while waiting or running:
            in_time = not max_seconds or time.monotonic() - start < max_seconds
            while waiting and in_time and len(running) < jobs:
                running.append(_start(waiting.pop(0), folder, jobs))
                board.running(running[-1].job.cell)
            if not running:
                return False
            time.sleep(POLL_SECONDS)
            for process in list(running):
                status = process.popen.poll()
                if status is None:
                    board.running(process.job.cell, stage(tail(process.log)) or "started")
                    continue
                running.remove(process)
                seconds = time.monotonic() - process.start
                _close(process)
                on_end(process.job, status, process.log, seconds)
        return True
    finally:
        _end(running)


def tail(log: Path) -> list[str]:
    """Last lines of a log, without empty ones."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def options_of(config: RunConfig) -> dict[str, object]:
    """Flat option values of a config, as `RunConfig.from_options` takes them."""
    return {name: value for part in asdict(config).values() for name, value in part.items()}


def _start(job: Job, folder: Path, jobs: int) -> _Process:
    path = folder / f"{job.cell.name}.json"
    told = {"options": options_of(job.cell.config), "tags": dict(job.tags)}
    path.write_text(json.dumps(told, indent=2), encoding="utf-8")
    environment = {k: v for k, v in os.environ.items() if k not in OF_THE_RUNNER}
    if jobs > 1:  # several networks on all cores each would wait for one another
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment["OMP_NUM_THREADS"] = str(threads)
    log = path.with_suffix(".log")
    with log.open("wb") as file:
        popen = subprocess.Popen(
            [sys.executable, "-m", "cxr_mlflow.experiment.child", str(path)],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the runner, which then ends the cells
        )
    return _Process(job, popen, log, time.monotonic())


def _close(process: _Process) -> None:
    if process.popen.stdin:
        with contextlib.suppress(OSError):
            process.popen.stdin.close()


def _end(running: Sequence[_Process]) -> None:
    """End processes as their own run would want it: asked first, made to after a while."""
    for process in running:
        process.popen.terminate()
        _close(process)
    deadline = time.monotonic() + GRACE_SECONDS
    for process in running:
        try:
            process.popen.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
