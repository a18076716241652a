"""Asked to stop (Ctrl-C, SIGTERM, a closed terminal), a command ends by one exception, in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ABORTS = 3
"""Ctrl-C so many times ends a command in whatever it does."""


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

    def begin(self, *, listening: bool) -> None:
        """Forget what came."""
        self.listening, self.asked, self.raised, self.interrupts = listening, 0, False, 0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raise at the first signal; those behind it would break off the closing of a run."""
        self.interrupts += number == signal.SIGINT
        if self.interrupts >= ABORTS:
            raise KeyboardInterrupt
        self.asked = self.asked or number
        if not self.held:
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
    """
    if _state.listening or not _in_main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    _state.begin(listening=True)
    before = {number: signal.signal(number, _state.hear) for number in heard}
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


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
