"""Which interrupted run a command goes on with: its own, never a living or a changed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cxr_mlflow.data import storage
from cxr_mlflow.data.storage import TORN
from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.unfinished import Command, claim, others_like, undelivered
from cxr_mlflow.training.checkpoint import Checkpoints

EVIDENCE = {"data_digest": "d" * 64, "first_weights": "w" * 64}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_STATE_DIR", str(tmp_path / "state"))


def command(lr="0.001", uri="sqlite:///a.db", **more):
    return Command("cnn run", {"model": "cnn", "lr": lr, **more}, {"tracking_uri": uri})


def begin(what, **told):
    """Begin a run and be killed."""
    with claim(what, {**EVIDENCE, **told}, {"torch": "1"}) as run:
        return run


def test_the_same_command_goes_on_with_its_run():
    first = begin(command())
    again = begin(command())
    assert (first.attempt, first.is_resumed) == (1, False)
    assert (again.attempt, again.is_resumed) == (2, True)
    assert again.folder == first.folder
    assert again.journal_id == first.journal_id
    assert again.begun == first.begun


@pytest.mark.parametrize("other", [command(lr="0.01"), command(uri="sqlite:///b.db")])
def test_another_command_or_place_is_another_run(other):
    first = begin(command())
    assert begin(other).folder != first.folder


def test_what_a_living_process_holds_is_left_to_it():
    with claim(command(), EVIDENCE, {}) as first, claim(command(), EVIDENCE, {}) as second:
        assert first.folder != second.folder
        assert not second.is_resumed
        assert list(undelivered()) == []
    assert begin(command()).folder == first.folder


def test_a_dead_process_holds_nothing(tmp_path):
    code = (
        "import sys, time; from tests.tracking.test_unfinished import *\n"
        "with claim(command(), EVIDENCE, {}) as run: print(run.folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ
    ) as process:
        held = process.stdout.readline().strip()
        with claim(command(), EVIDENCE, {}) as other:
            assert str(other.folder) != held
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    with claim(command(), EVIDENCE, {}) as run:
        assert str(run.folder) == held
        assert run.is_resumed


def later(seconds, context):
    """Leave a context in another thread after some seconds; return the thread."""
    inside = threading.Event()

    def stay():
        with context:
            inside.set()
            time.sleep(seconds)

    thread = threading.Thread(target=stay)
    thread.start()
    assert inside.wait(20)
    return thread


def test_a_command_typed_while_cxr_sync_runs_waits_and_goes_on():
    @contextmanager
    def sync():
        held = undelivered()
        yield next(held)
        held.close()

    first, other = begin(command()), begin(command(lr="0.5"))
    syncing = later(1.0, sync())
    said = []
    for what, run in ((command(), first), (command(lr="0.5"), other)):
        with claim(what, EVIDENCE, {}, say=said.append) as again:
            assert again.folder == run.folder
            assert again.is_resumed
    syncing.join()
    assert len(said) == 1, "one run is held at a time"
    assert f"waits for process {os.getpid()}, which sends it (cxr sync)" in said[0]


def test_a_command_typed_while_its_process_still_closes_waits_and_goes_on():
    @contextmanager
    def asked_to_stop():
        with claim(command(), EVIDENCE, {}) as run:
            Journal(run.journal).append("end", {"status": "KILLED", "failure": "Terminated"})
            yield

    closing = later(1.0, asked_to_stop())
    said = []
    with claim(command(), EVIDENCE, {}, say=said.append) as run:
        assert run.is_resumed
    closing.join()
    assert "was asked to stop" in said[0]


def test_a_command_that_is_under_way_is_said_to_be():
    said = []
    with claim(command(), EVIDENCE, {}), claim(command(), EVIDENCE, {}, say=said.append) as second:
        assert not second.is_resumed
    told = f"this very command is already under way (process {os.getpid()}); a new run begins"
    assert said == [told]


def test_a_damaged_journal_is_put_aside_by_fresh():
    first = begin(command())
    journal = Journal(first.journal)
    for value in "123":
        journal.append("tags", {"tags": {"a": value}})
    records = first.journal / "records"
    records.write_bytes(records.read_bytes().replace(b'"2"', b'"7"'))
    said = []
    with claim(command(), EVIDENCE, {}, fresh=True, say=said.append) as new:
        assert not new.is_resumed
        assert not len(Journal(new.journal))
    assert "line 2 is damaged" in said[0]
    assert (Path(said[0].rpartition(" ")[2]) / "records").is_file()


def test_what_was_killed_in_mid_write_leaves_nothing_behind(tmp_path):
    """SIGKILL between the write and the rename: of a file as large as the weights, and a folder."""
    run = begin(command())
    source = tmp_path / "model"
    source.mkdir()
    (source / "weights").write_bytes(b"1")
    for write in (
        lambda: Checkpoints(run.checkpoints, seconds=0, warn=print).write({"n": 1}),
        lambda: Journal(run.journal).keep("model", source),
    ):
        child = os.fork()
        if not child:
            storage.sync = lambda path: TORN in str(path) and os.kill(os.getpid(), signal.SIGKILL)
            write()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(run.folder.rglob(f"*{TORN}"))) == 2
    begin(command())
    assert not list(run.folder.rglob(f"*{TORN}"))
    assert not list(run.checkpoints.iterdir())


def test_changed_data_refuse_and_say_what_changed():
    begin(command())
    with pytest.raises(InputError, match="data digest was dddddddddddd, is xxxxxxxxxxxx") as error:
        begin(command(), data_digest="x" * 64)
    assert "first weights" not in str(error.value)
    assert "--fresh true" in str(error.value)


def test_fresh_starts_over_and_keeps_what_is_not_delivered():
    first = begin(command())
    Journal(first.journal).append("tags", {"tags": {}})
    with claim(command(), EVIDENCE, {}, fresh=True) as new:
        assert not new.is_resumed
        assert new.folder != first.folder
    assert len(Journal(first.journal)) == 1
    assert {run.folder: run.state for run in undelivered()} == {
        first.folder: "over",
        new.folder: "training",
    }
    Journal(first.journal).sent = 1
    with claim(command(), EVIDENCE, {}, fresh=True) as third:
        assert third.folder == first.folder  # all of it had arrived: its place is free


def test_a_run_that_is_over_is_not_gone_on_with():
    first = begin(command())
    (first.checkpoints).mkdir()
    Journal(first.journal).append("tags", {"tags": {}})
    first.train_no_more()
    assert not first.checkpoints.exists()
    assert not begin(command()).is_resumed


def test_interrupted_runs_with_a_few_other_options_are_named():
    begin(command(lr="0.001", epochs="3"))
    begin(command(lr="0.001", epochs="5"))
    begin(Command("far", {"model": "resnet18", "lr": "1", "epochs": "9", "seed": "3"}, {}))
    found = others_like(command(lr="0.001", epochs="4"))
    assert [names for _, names in found] == [["epochs"], ["epochs"]]
    with claim(command(lr="0.001", epochs="3"), EVIDENCE, {}):
        assert len(others_like(command(lr="0.001", epochs="4"))) == 1  # the other one lives


def test_a_note_torn_in_mid_write_begins_anew():
    first = begin(command())
    (first.folder / "run.json").write_text("{")
    assert not begin(command()).is_resumed
