"""`cxr sync`: one run that cannot be sent does not keep the others; what waits is listed."""

from __future__ import annotations

import time

import mlflow
import pytest

from cxr_mlflow.config import RunConfig
from cxr_mlflow.sync import sync_runs
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.unfinished import Command, claim


@pytest.fixture
def interrupted(tracking, tmp_path, monkeypatch):
    """Begin a run of a learning rate and be killed before MLflow heard of it."""
    monkeypatch.setenv("CXR_STATE_DIR", str(tmp_path / "state"))

    def begin(lr, **tags):
        options = RunConfig().to_params() | {"lr": lr, "run_name": "two words"}
        place = {"tracking_uri": tracking, "data": "/data"} | tags
        with claim(Command(f"run {lr}", options, place), {}, {}) as run:
            told = {"experiment": "lab", "tags": {"mlflow.runName": f"run {lr}"}, "joined": None}
            told["tags"]["journal"] = lr
            Journal(run.journal).append("open", told)
        return run

    return begin


def test_a_damaged_journal_is_named_and_the_others_are_sent(interrupted):
    first, second = interrupted("0.1"), interrupted("0.2")
    records = first.journal / "records"
    records.write_bytes(records.read_bytes().replace(b"lab", b"bal") * 2)
    lines, all_sent = sync_runs()
    assert not all_sent
    assert "line 1 is damaged; --fresh true" in lines[0]
    assert "2 sent" in lines[1]
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    assert run.info.run_name == "run 0.2"
    assert second.folder.is_dir()


def test_an_interrupted_run_is_listed_with_age_size_and_command(interrupted, monkeypatch):
    now = time.time()
    run = interrupted("0.1")
    run.checkpoints.mkdir()
    (run.checkpoints / "1.checkpoint").write_bytes(bytes(7_000_000))
    monkeypatch.setattr("cxr_mlflow.tracking.journal.time.time", lambda: now + 2 * 86_400)
    (line,), all_sent = sync_runs()
    assert all_sent
    assert "interrupted 2.0 days ago, 7 MB" in line
    assert "interrupted 2.0 days ago" in sync_runs()[0][0], "and not since cxr sync came by"
    assert "cxr train --lr 0.1 --run-name 'two words')" in line
    assert f"rm -r {run.folder}" in line
    interrupted("0.3", **{"tag cell": "c"})
    assert "(cxr experiment run)" in "".join(sync_runs()[0])
