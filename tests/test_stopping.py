"""The first signal ends a command by one exception; the others, and what must be whole, wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from sqlalchemy import create_engine, text

from cxr_mlflow import stopping
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


def wait_for_it() -> None:
    """Give a signal that waits the time to be tried again."""
    time.sleep(60)


TERM = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\n"


def test_a_module_is_loaded_to_its_end_first(tmp_path, monkeypatch):
    (tmp_path / "loaded_whole.py").write_text(TERM + "time.sleep(0.2)\nend = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with stop_raises():
        import loaded_whole  # type: ignore[import-not-found]

        with pytest.raises(Terminated):
            wait_for_it()
    assert loaded_whole.end == 1


def test_a_program_in_the_body_of_a_module_is_stopped_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "trains_here.py").write_text(TERM + "time.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.2)
    with stop_raises(), pytest.raises(Terminated):
        import trains_here  # type: ignore[import-not-found]  # noqa: F401


IN_THE_CPP_OF_TORCH = """
import signal, sys, time
from cxr_mlflow import stopping

stopping.SIGNALS = (signal.SIGALRM,)  # a clock sends it while C++ runs

class Patching:
    def find_spec(name, path=None, target=None):
        if name == "torch.distributed":
            from torch import _C
            begin = _C._c10d_init
            def begin_with_a_clock():
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                return begin()
            _C._c10d_init = begin_with_a_clock

sys.meta_path.insert(0, Patching)
with stopping.stop_raises():
    import torch
    time.sleep(60)
"""


def test_the_cpp_of_torch_does_not_end_the_process_at_a_signal():
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_CPP_OF_TORCH], capture_output=True, text=True
    )
    assert done.returncode == 128 + signal.SIGALRM, done.stderr


def test_a_statement_is_finished_first_and_locks_no_database(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/a.db", connect_args={"timeout": 0.1})
    with engine.begin() as made:
        made.execute(text("CREATE TABLE t AS SELECT 1 AS a UNION SELECT 2"))

    def read():
        with engine.connect() as reading:
            raw = reading.connection.dbapi_connection
            raw.create_function("term", 0, lambda: send(signal.SIGTERM))
            reading.execute(text("SELECT a, term() FROM t"))
            wait_for_it()

    with stop_raises():
        with pytest.raises(Terminated) as stopped:  # which holds the frames, as an exit does
            read()
        with engine.begin() as closing:
            closing.execute(text("UPDATE t SET a = 3"))
    assert stopped.value.code == 128 + signal.SIGTERM


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
