"""Calls of MLflow that must not stop a caller who has better to do than to wait for its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import mlflow

from cxr_mlflow.tracking.delivery import in_short

PAUSE_SECONDS = 1.0
Answer = TypeVar("Answer")


class NoAnswer(RuntimeError):
    """MLflow does not answer; the message says how."""


def trouble() -> str:
    """Why MLflow does not answer now; empty if it does."""
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:  # whatever it is, there was no answer
        return in_short(error)
    return ""


def ask(call: Callable[[], Answer]) -> Answer:
    """Make a call of MLflow.

    Raises
    ------
    NoAnswer
        If it failed, and MLflow does not answer at all. Another error is the call's own.
    """
    try:
        return call()
    except Exception as error:
        if told := trouble():
            raise NoAnswer(told) from error
        raise


class Backlog:
    """What is to be told to MLflow: at once if it answers, else later, in the same order.

    Parameters
    ----------
    say : callable
        Takes the one line that says so when MLflow ceases to take what it is told.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.waiting: list[Callable[[], None]] = []
        self._is_silent = False

    def tell(self, call: Callable[[], None]) -> None:
        """Tell MLflow something; what it does not take now is kept."""
        self.waiting.append(call)
        self.try_now(self._send)

    def try_now(self, call: Callable[[], None]) -> bool:
        """Make a call; of an error a line is said, no more. Return whether it went well."""
        try:
            call()
        except Exception as error:  # nothing that is told is worth a training
            if not self._is_silent:
                self.say(
                    f"MLflow: {in_short(error)}. Training goes on; what it misses is told later"
                )
            self._is_silent = True
            return False
        self._is_silent = False
        return True

    def finish(self, *, seconds: float) -> None:
        """Tell all that was kept, trying for so long.

        Raises
        ------
        NoAnswer
            If MLflow does not answer in that time. What it answers and refuses raises as it is.
        """
        end = time.monotonic() + seconds
        while not self.try_now(lambda: ask(self._send)):
            if time.monotonic() > end:
                ask(self._send)
                return
            time.sleep(PAUSE_SECONDS)

    def _send(self) -> None:
        while self.waiting:
            self.waiting[0]()
            self.waiting.pop(0)
