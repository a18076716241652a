"""What a journal has taken is there after any death, in order, once."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from cxr_mlflow.data import storage
from cxr_mlflow.errors import InputError
from cxr_mlflow.handover import tell_model
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import JournaledLog
from cxr_mlflow.training.checkpoint import Checkpoints


def told(folder):
    return [(record.number, record.verb, record.told) for record in Journal(folder)]


def test_records_come_back_in_order_with_their_times(tmp_path):
    journal = Journal(tmp_path / "j")
    first = journal.append("metrics", {"metrics": {"a": 0.1}, "step": 1})
    journal.append("tags", {"tags": {"b": "ü\n"}})
    again = Journal(tmp_path / "j")
    assert [r.number for r in again] == [0, 1]
    assert next(iter(again)) == first
    assert list(again)[1].told == {"tags": {"b": "ü\n"}}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_cut_off_in_mid_write_is_dropped_and_overwritten(tmp_path, cut):
    journal = Journal(tmp_path)
    journal.append("tags", {"tags": {"a": "1"}})
    journal.append("tags", {"tags": {"a": "2"}})
    path = tmp_path / "records"
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(tmp_path)
    assert len(journal) == 1
    journal.append("tags", {"tags": {"a": "3"}})
    assert [t["tags"]["a"] for _, _, t in told(tmp_path)] == ["1", "3"]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    journal = Journal(tmp_path)
    for value in "123":
        journal.append("tags", {"tags": {"a": value}})
    path = tmp_path / "records"
    path.write_bytes(path.read_bytes().replace(b'"2"', b'"7"'))
    with pytest.raises(InputError, match=r"records: line 2 is damaged; --fresh true"):
        Journal(tmp_path)


def test_a_record_that_a_signal_broke_off_is_not_in_the_file_either(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.append("tags", {"tags": {"a": "1"}})
    fsync = os.fsync

    def interrupted(handle):
        fsync(handle)
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.append("tags", {"tags": {"a": "2"}})
    journal.append("end", {"status": "KILLED"})
    assert [(number, verb) for number, verb, _ in told(tmp_path)] == [(0, "tags"), (1, "end")]


def test_what_has_arrived_is_counted_and_answers_are_kept(tmp_path):
    journal = Journal(tmp_path)
    assert journal.all_sent
    journal.append("tags", {"tags": {}})
    assert (journal.sent, journal.all_sent) == (0, False)
    journal.sent = 1
    journal.remember(run_id="r", model_uri="m")
    journal.remember(model_uri="")
    again = Journal(tmp_path)
    assert again.all_sent
    assert again.remote == {"run_id": "r"}


def test_nan_is_not_told_and_never_written(tmp_path):
    log = JournaledLog(Journal(tmp_path))
    log.log_metrics({"a": np.nan, "b": np.inf})
    assert told(tmp_path) == []
    with pytest.raises(ValueError, match="JSON"):
        Journal(tmp_path).append("metrics", {"metrics": {"a": np.nan}})


def test_told_again_by_a_second_attempt_it_is_there_once(tmp_path):
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = pd.DataFrame({"class_name": ["a", "b"], "n": [1, 2]})

    def attempt(loss):
        log = JournaledLog(Journal(tmp_path))
        log.log_params({"lr": "0.1"})
        log.set_tags({"kind": "training"})
        log.log_metrics({"loss": loss, "seconds": loss}, step=1)
        log.log_csv(table, "data/table.csv")
        log.log_figure(figure, "curves.png")
        log.log_comparable(figure, "curves")
        log.log_dataset(table, name="demo", digest="d", context="training")

    attempt(0.5)
    before = told(tmp_path)
    verbs = ["params", "tags", "metrics", "file", "file", "image", "dataset"]
    assert [verb for _, verb, _ in before] == verbs
    attempt(0.7)  # of a number the first telling stands
    assert told(tmp_path) == before


def test_what_is_new_or_has_changed_is_told(tmp_path):
    for step, text in ((1, "one"), (2, "two")):
        log = JournaledLog(Journal(tmp_path))
        log.log_metrics({"loss": 0.5, f"only_{step}": 1.0}, step=step)
        log.log_metrics({"loss": 0.5}, step=step)
        log.log_text(text, "note.md")
        log.set_tags({"state": text, "kind": "training"})
    found = told(tmp_path)
    metrics = [(sorted(t["metrics"]), t["step"]) for _, verb, t in found if verb == "metrics"]
    assert metrics == [(["loss", "only_1"], 1), (["loss", "only_2"], 2)]
    assert [t["tags"] for _, verb, t in found if verb == "tags"] == [
        {"state": "one", "kind": "training"},
        {"state": "two"},
    ]
    assert Journal(tmp_path).path("artifacts/note.md").read_text() == "two"


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    digests = []
    for name in ("a", "b"):
        figure = Figure()
        figure.subplots().bar(["x", "y"], [3, 4])
        JournaledLog(Journal(tmp_path / name)).log_figure(figure, "bars.png")
        digests.append(told(tmp_path / name)[0][2]["digest"])
    assert digests[0] == digests[1]


def test_killed_while_a_folder_is_kept_again_what_was_told_is_whole(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    for name in ("model.onnx", "scorer.json"):
        (source / name).write_text(name)

    def tell():
        tell_model(JournaledLog(Journal(tmp_path / "j")), source, {})

    tell()
    child = os.fork()
    if not child:
        shutil.copytree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        tell()
        os._exit(0)
    os.waitpid(child, 0)
    journal = Journal(tmp_path / "j")
    assert [record.verb for record in journal] == ["model"]
    assert {p.name: p.read_text() for p in journal.path("model").iterdir()} == {
        name: name for name in ("model.onnx", "scorer.json")
    }


def test_the_names_of_new_folders_are_synced_too(tmp_path, monkeypatch):
    """A power cut takes a folder, with all that was synced in it, whose own name was not."""
    synced = set()
    monkeypatch.setattr(storage, "sync", lambda path: synced.add(path))
    Journal(tmp_path / "runs" / "x" / "journal").keep("artifacts/deep/er/note.md", b"1")
    Checkpoints(tmp_path / "runs" / "x" / "checkpoints", seconds=0, warn=print).write({"n": 1})
    folders = {path for path in tmp_path.rglob("*") if path.is_dir()}
    assert {path.parent for path in folders} <= synced


def test_a_kept_folder_is_a_copy(tmp_path):
    source = tmp_path / "model"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "weights").write_bytes(b"1")
    journal = Journal(tmp_path / "j")
    journal.keep("model", source)
    (source / "inner" / "weights").write_bytes(b"2")
    assert (journal.path("model") / "inner" / "weights").read_bytes() == b"1"
