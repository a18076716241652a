"""Asked to stop (Ctrl-C, SIGTERM, a closed terminal), a command ends by one exception, in order."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ABORTS = 3
"""Ctrl-C so many times ends a command in whatever it does."""
FINISHES = ("importlib._bootstrap", "_frozen_importlib", "sqlalchemy")
"""Modules in which nothing is broken off: what they began is waited for."""
AGAIN_SECONDS = 0.05
"""How soon it is tried again to stop a command that was in one of them."""
PATIENCE_SECONDS = 30.0
"""How long that is done at most: a program may do all its work in the body of a module."""


class Stopped(Exception):
    """The run was stopped on purpose before its end; the message says why."""


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, as an exception: the run is closed as KILLED on the way out."""


@dataclass
class _State:
    listening: bool = False
    asked: int = 0
    """The first signal; 0 if none has come."""
    raised: bool = False
    interrupts: int = 0
    held: int = 0
    """How deep in blocks that must not be broken off."""
    patience_ends: float = 0.0
    """When it is waited no longer for what was begun, monotonic; 0 before the signal."""

    def begin(self, *, listening: bool) -> None:
        """Forget what came."""
        self.listening, self.asked, self.raised, self.interrupts = listening, 0, False, 0
        self.patience_ends = 0.0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raise at the first signal; those behind it would break off the closing of a run."""
        self.interrupts += number == signal.SIGINT
        if self.interrupts >= ABORTS:
            raise KeyboardInterrupt
        self.asked = self.asked or number
        self.patience_ends = self.patience_ends or time.monotonic() + PATIENCE_SECONDS
        self.try_to_stop(number, frame)

    def try_to_stop(self, _: int, frame: FrameType | None) -> None:
        """Raise, but where something is to be finished first."""
        if self.held:  # the end of the block raises
            return
        if _finishes(frame) and time.monotonic() < self.patience_ends:
            _thread.start_new_thread(_try_again, ())  # takes no lock, as signal handlers must
        else:
            self.stop()

    def stop(self) -> None:
        """Raise for the first signal, once."""
        if not self.asked or self.raised:
            return
        self.raised = True
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(128 + self.asked)


_state = _State()


@contextmanager
def stop_raises() -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP an exception, so that all is closed on the way out.

    Those that follow are not heard, but for a third Ctrl-C: `mlflow run` and people send more than
    one. Signals that are ignored stay so: `nohup`, and jobs in the background of a script. Within
    another such block, and in other threads, nothing is changed.

    The exception waits for the end of two things that could not be put right to close the run. A
    module that was loaded in part is not loaded again, and torch's C++, which loads some too, ends
    the process at an exception (`terminate called`). A statement that was broken off locks a
    database. Meanwhile SIGVTALRM, which nothing else uses, tries again.
    """
    if _state.listening or not _in_main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _state.begin(listening=True)
    before = {number: signal.signal(number, _state.hear) for number in heard}
    signal.signal(signal.SIGVTALRM, _state.try_to_stop)  # for good: one may still be on its way
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.begin(listening=False)


@contextmanager
def unbroken() -> Iterator[None]:
    """Let a signal wait for the end of this block: locks are let go, files are whole.

    Also a decorator.
    """
    if not _in_main_thread():  # signals break off nothing there
        yield
        return
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if not _state.held:
            _state.stop()


def stop_asked() -> bool:
    """Whether a signal has come."""
    return bool(_state.asked)


def _try_again() -> None:
    time.sleep(AGAIN_SECONDS)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGVTALRM)


def _finishes(frame: FrameType | None) -> bool:
    """Whether it was called, however deep, by a module that must finish what it began."""
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(FINISHES):
            return True
        frame = frame.f_back
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
