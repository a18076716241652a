"""Runs that are not over: a folder each, found again by the command that is typed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import psutil

from cxr_mlflow.data.storage import explained, remove_torn, write_whole
from cxr_mlflow.environment import default_state_dir
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import slug
from cxr_mlflow.tracking.journal import DamagedJournal, Journal, read_records

ADVICE = "name another folder with $CXR_STATE_DIR"
FILE = "run.json"
MOST = 1000
"""Runs of one command that may be under way at a time."""
NEAR = 3
"""Options in which another interrupted run may differ to be named."""
WAIT_SECONDS = 30.0
"""Longest wait for a process that is about to let go of the run."""
POLL_SECONDS = 0.2
TRAINING, OVER = "training", "over"
RUNS, ENDS, SYNCS, LOOKS = "runs", "was asked to stop", "sends it (cxr sync)", "looks at it"
"""What a process may hold a run for: all but the first are over soon."""


@dataclass(frozen=True)
class Command:
    """What was asked for: equal commands are the same run, where that is not over."""

    name: str
    """Of the run."""
    options: Mapping[str, str]
    place: Mapping[str, str]
    """Where it acts: data folder, tracking URI, and tags given from outside."""

    @property
    def key(self) -> str:
        """Digest of it."""
        told = json.dumps([self.options, self.place], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Unfinished:
    """A run on this machine that is not over: its folder is this process's alone."""

    folder: Path
    command: Command
    evidence: Mapping[str, str]
    """Digests of what it is trained on and begins with: they must be the same to go on."""
    made_with: Mapping[str, str]
    """Versions and machine: others may give other bits."""
    journal_id: str
    attempt: int = 1
    state: str = TRAINING
    begun: float = field(default_factory=time.time)

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier attempt got so far that there is something to go on with."""
        return self.attempt > 1

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def journal(self) -> Path:
        """Folder of its journal."""
        return self.folder / "journal"

    def write(self) -> None:
        """Note it on the disk."""
        told = {k: v for k, v in asdict(self).items() if k != "folder"}
        with write_whole(self.folder / FILE, ADVICE) as part:
            part.write_text(json.dumps(told, indent=2), encoding="utf-8")

    @property
    def size(self) -> int:
        """Bytes it takes on the disk."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def train_no_more(self) -> None:
        """Note that there is nothing to go on with; what was told may still be on its way."""
        replace(self, state=OVER).write()
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def forget(self) -> None:
        """Remove it: all has arrived, or is given up."""
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def claim(
    command: Command,
    evidence: Mapping[str, str],
    made_with: Mapping[str, str],
    *,
    fresh: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> Iterator[Unfinished]:
    """Take the interrupted run of a command, or begin a new one, and hold it.

    Several processes may be given the same command at once: each holds a run of its own, and takes
    only what no living process holds. One that only sends, or was asked to stop, is waited for.

    Parameters
    ----------
    command : Command
    evidence, made_with : mapping of str to str
        As in `Unfinished`.
    fresh : bool
        Begin a new run; what the interrupted one told is kept until it has arrived.
    say : callable
        Takes a line when another process holds the command's run.

    Raises
    ------
    InputError
        If the command's interrupted run was made of other data or first weights, by name.
    """
    deadline = time.monotonic() + (0 if fresh else WAIT_SECONDS)
    for number in range(MOST):
        folder = runs_dir() / f"{slug(command.name)[:60]}-{command.key}-{number}"
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(_held_soon(folder, deadline, say)):
                continue
            remove_torn(folder)
            found = read(folder)
            if found and (fresh or found.state == OVER):
                found.train_no_more()
                if not _is_sent(found, say):
                    continue  # its last words keep the folder
                found.forget()
                found = None
            if found:
                _check(found, evidence)
                run = replace(found, attempt=found.attempt + 1)
            else:
                shutil.rmtree(folder, ignore_errors=True)  # torn before its first note
                journal_id = uuid.uuid4().hex
                run = Unfinished(folder, command, dict(evidence), dict(made_with), journal_id)
            run.write()
            yield run
            return
    raise InputError(f"{runs_dir()}: {MOST} runs of this very command are under way")


def undelivered(
    wanted: Callable[[Command], bool] = lambda command: True,
) -> Iterator[Unfinished]:
    """Yield the runs of this machine that no living process holds; each is held while it is out.

    Parameters
    ----------
    wanted : callable
        Tells of a command whether its run is asked for.
    """
    for folder in sorted(path.parent for path in runs_dir().glob(f"*/{FILE}")):
        if not (seen := read(folder)) or not wanted(seen.command):
            continue
        with _held(folder, SYNCS) as free:
            if free and (found := read(folder)):
                yield found


def others_like(command: Command) -> list[tuple[Unfinished, list[str]]]:
    """Interrupted runs in the same place whose options differ a little, and in which options."""
    near = []
    for path in runs_dir().glob(f"*/{FILE}"):
        found = read(path.parent)
        if not found or found.state == OVER or found.command.place != command.place:
            continue
        own, its = command.options, found.command.options
        names = [name for name in own if own[name] != its.get(name)]
        if 0 < len(names) <= NEAR:
            with _held(path.parent, LOOKS) as free:
                if free:
                    near.append((found, names))
    return sorted(near, key=lambda pair: (len(pair[1]), -pair[0].begun))


def read(folder: Path) -> Unfinished | None:
    """Read the note of a run; None if there is none, or it cannot be read."""
    try:
        told: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
        return Unfinished(folder=folder, **{**told, "command": Command(**told["command"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def runs_dir() -> Path:
    """Folder of the runs on this machine that are not over."""
    return default_state_dir() / "runs"


@contextlib.contextmanager
def _held(folder: Path, doing: str) -> Iterator[bool]:
    """Hold a run's folder, if no living process does; the system lets go for the dead."""
    locks = runs_dir().parent / "locks"  # kept: to remove a lock file is a race
    with explained(locks, ADVICE):
        locks.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(locks / f"{folder.name}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        _holder(folder).write_text(json.dumps([os.getpid(), doing]))
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def _held_soon(folder: Path, deadline: float, say: Callable[[str], object]) -> Iterator[bool]:
    """Hold a run's folder; wait for one who is about to let go, say who else holds it."""
    told = False
    while True:
        with _held(folder, RUNS) as free:
            if free:
                yield True
                return
        pid, doing = _what_holds(folder)
        if doing == RUNS or time.monotonic() > deadline:
            say(f"this very command is already under way (process {pid}); a new run begins")
            yield False
            return
        if not told:
            say(f"waits for process {pid}, which {doing}; {WAIT_SECONDS:.0f} s at most")
            told = True
        time.sleep(POLL_SECONDS)


def _what_holds(folder: Path) -> tuple[int, str]:
    """Process that holds a run's folder, and what for."""
    try:
        pid, doing = json.loads(_holder(folder).read_text())
        records, _ = read_records(folder / "journal" / "records")
    except (OSError, ValueError):
        return 0, LOOKS  # the note is just being written
    if not psutil.pid_exists(pid):
        return pid, LOOKS  # the note is of the one before
    last = records[-1] if records else None
    if last and last.verb == "end" and last.told["status"] != "FINISHED":
        return pid, ENDS
    return pid, doing


def _holder(folder: Path) -> Path:
    return runs_dir().parent / "locks" / f"{folder.name}.holder"


def _is_sent(found: Unfinished, say: Callable[[str], object]) -> bool:
    """Whether all that a run told has arrived, or never can: a damaged journal is put aside."""
    try:
        return Journal(found.journal).all_sent
    except DamagedJournal as error:
        aside = runs_dir().parent / "damaged" / f"{found.folder.name}-{time.time():.0f}"
        aside.parent.mkdir(exist_ok=True)
        os.rename(found.journal, aside)
        say(f"{error.args[0].partition(';')[0]}; what it told is now in {aside}")
        return True


def _check(found: Unfinished, evidence: Mapping[str, str]) -> None:
    changed = [
        f"{name.replace('_', ' ')} was {found.evidence.get(name, '?')[:12]}, is {value[:12]}"
        for name, value in evidence.items()
        if found.evidence.get(name) != value
    ]
    if changed:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.begun))
        raise InputError(
            f"this command was interrupted (begun {begun}) and cannot go on, for what it is made "
            f"of has changed: {'; '.join(changed)}. --fresh true starts over"
        )
