"""The first signal ends a command by one exception; the others, and what must be whole, wait."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from cxr_mlflow.stopping import Terminated, stop_asked, stop_raises, unbroken
from cxr_mlflow.tracking.journal import Journal

pytestmark = pytest.mark.usefixtures("hears_ctrl_c")


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
        (signal.SIGHUP, Terminated),
    ],
)
def test_the_first_signal_raises_and_a_second_is_not_heard(number, error):
    closed = []

    @stop_raises()
    def live():
        try:
            send(number)
        finally:
            send(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            closed.append(stop_asked())

    with pytest.raises(error):
        live()
    assert closed == [True]
    assert not stop_asked(), "the next command begins anew"


def test_a_third_ctrl_c_ends_whatever_is_done():
    with stop_raises():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_raises():
            send(signal.SIGHUP)
            assert not stop_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_within_another_it_changes_nothing_and_afterwards_all_is_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_raises():
        with pytest.raises(Terminated), stop_raises():
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # still the outer one's, which has raised
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_must_be_whole_is_finished_first():
    done = []

    @stop_raises()
    def live():
        with unbroken():
            with unbroken():
                send(signal.SIGTERM)
            done.append("inner")
        done.append("never")

    with pytest.raises(Terminated):
        live()
    assert done == ["inner"]


class Sending(threading.Condition):
    """A condition behind whose lock a signal comes: between the lock and the block it guards."""

    def __enter__(self):
        got = super().__enter__()
        send(signal.SIGTERM)
        return got


def test_a_signal_never_leaves_the_lock_of_a_journal_held(tmp_path):
    journal = Journal(tmp_path)
    journal._changed = Sending()
    with stop_raises(), pytest.raises(Terminated):
        journal.append("a", {})
    assert [record.verb for record in journal] == ["a"]
    assert not journal._changed._is_owned()
