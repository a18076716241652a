"""Which process a run belongs to, whether it still lives, and not living on without a parent."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HOST, PROCESS, HEARTBEAT = "host", "process", "heartbeat"
"""Tags of a run: machine; process id, start, boot and pid namespace; last sign of life (s)."""
SILENCE_SECONDS = 600.0
"""A run that another system on a machine of our name started is dead after so long a silence."""
HEARTBEAT_SECONDS = 60.0
POLL_SECONDS = 1.0
GRACE_SECONDS = 180.0
"""How long a process without its `mlflow run` may take to close its run."""
CLOCK_SECONDS = 2.0
"""By how much the clock may be set while a process lives: its start is told from the boot's."""


def own_process() -> dict[str, str]:
    """Tags that tell this process from every other one, and that it lives now."""
    process = psutil.Process()
    told = f"{process.pid}@{process.create_time():.2f}"
    return {HOST: platform.node(), PROCESS: " ".join([told, *_system()]), **heartbeat()}


def heartbeat() -> dict[str, str]:
    """Tag that says that a process lives now."""
    return {HEARTBEAT: f"{time.time():.0f}"}


@contextmanager
def beating(beat: Callable[[], None]) -> Iterator[None]:
    """Show a sign of life every minute, in a thread, for as long as the block lasts.

    Parameters
    ----------
    beat : callable
        What it raises is let pass: the next one comes in a minute.
    """
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(HEARTBEAT_SECONDS):
            with suppress(Exception):
                beat()

    threading.Thread(target=go_on, daemon=True, name="heartbeat").start()
    try:
        yield
    finally:
        over.set()


def is_dead(tags: Mapping[str, str], *, started: float = 0.0, now: float | None = None) -> bool:
    """Whether the process of an open run is known to be gone.

    On the same boot and in the same pid namespace the process table is the proof, where it shows
    the processes of others. Otherwise the machine was started anew, or the run is in another
    container: there silence decides.

    Parameters
    ----------
    tags : mapping
        Of the run.
    started : float
        Seconds since 1970 when the run began, for one that never gave a sign of life.
    now : float, optional
        Seconds since 1970.
    """
    told = tags.get(PROCESS, "").split(" ")
    if tags.get(HOST) != platform.node() or len(told) != 3:
        return False
    if told[1:] == _system() and psutil.pid_exists(1):
        pid, _, start = told[0].partition("@")
        found = birth_of(int(pid))
        return found is None or abs(found - float(start)) > CLOCK_SECONDS
    beat = float(tags.get(HEARTBEAT) or started)
    return (now or time.time()) - beat > SILENCE_SECONDS


def end_with_parent() -> int | None:
    """Ask this process to end, as SIGTERM does, when the `mlflow run` that started it is gone.

    `mlflow run` does not pass on the signals it gets: its training would live on unseen. To be
    called first of all: who is gone already is not found.

    Returns
    -------
    int or None
        Process id of that `mlflow run`; None if there is none.
    """
    started = _starter()
    if started is None:
        return None

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while started.is_running() and started.status() != psutil.STATUS_ZOMBIE:
                time.sleep(POLL_SECONDS)
        print("the mlflow run that started this is gone: this ends too", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)  # somebody's code has swallowed the exception

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
    return started.pid


def _starter() -> psutil.Process | None:
    """Return the ancestor that is an `mlflow run`; None where there is none."""
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except (psutil.AccessDenied, psutil.NoSuchProcess):
            continue
        places = [i for i, word in enumerate(words) if Path(word).name == "mlflow"]
        if places and "run" in words[places[0] + 1 :]:
            return parent
    return None


def birth_of(pid: int) -> float | None:
    """Tell when a living process began, in seconds since 1970; None if there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _system() -> list[str]:
    """Boot and pid namespace; '?' where the system does not tell, as on macOS."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid")]
    except OSError:
        return [f"{psutil.boot_time():.0f}", "?"]
