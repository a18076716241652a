"""Runs of dead processes are closed wherever they are; living ones, and those gone on with, not."""

from __future__ import annotations

import time

import mlflow
import pytest

from cxr_mlflow.tracking import parents, processes
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import open_journaled
from cxr_mlflow.tracking.processes import HEARTBEAT, PROCESS, own_process
from cxr_mlflow.tracking.run import open_run

DIED = "its process died without a word"


def dead() -> dict[str, str]:
    """Tags of a process of this boot that is gone."""
    tags = own_process()
    _, *system = tags[PROCESS].split(" ")
    return {**tags, PROCESS: " ".join(["4194303@1.00", *system])}


@pytest.fixture
def client(tracking, monkeypatch):
    monkeypatch.setattr(parents, "PAGE", 1)
    return mlflow.MlflowClient()


def journaled(folder):
    return open_journaled(Journal(folder), "j", "mine", "a run", {}, {}, handlers={})


@pytest.mark.parametrize("opened", ["journaled", "directly"])
def test_dead_runs_of_every_experiment_and_page_are_closed(client, tmp_path, opened):
    others = [client.create_experiment(name) for name in ("a", "b", "c")]
    gone = [client.create_run(at, tags=dead()).info.run_id for at in others * 2]
    lives = client.create_run(others[0], tags=own_process()).info.run_id
    with journaled(tmp_path) if opened == "journaled" else open_run("mine", "x", {}) as run:
        if opened == "journaled":
            assert run.delivery.wait(seconds=20)
        found = [client.get_run(run_id) for run_id in gone]
    assert {(r.info.status, r.data.tags["failure"]) for r in found} == {("KILLED", DIED)}
    assert client.get_run(lives).info.status == "RUNNING"


def test_a_run_whose_command_just_went_on_with_it_is_not_closed(client, monkeypatch):
    home = client.create_experiment("a")
    run_id = client.create_run(home, tags=dead()).info.run_id
    is_dead = parents.is_dead

    def and_resumed_behind_our_back(tags, **more):
        found = is_dead(tags, **more)
        client.set_tag(run_id, PROCESS, own_process()[PROCESS])
        return found

    monkeypatch.setattr(parents, "is_dead", and_resumed_behind_our_back)
    assert not parents.close_dead_runs()
    assert client.get_run(run_id).info.status == "RUNNING"


def test_taken_for_dead_it_ends_without_a_failure_all_the_same(client, tmp_path):
    with journaled(tmp_path) as run:
        assert run.delivery.wait(seconds=20)
        parents.end_dead(run.run_id, DIED)
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert "failure" not in found.data.tags


@pytest.mark.parametrize("opened", ["journaled", "directly"])
def test_every_run_that_is_open_gives_signs_of_life(client, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(processes, "HEARTBEAT_SECONDS", 0.2)
    with journaled(tmp_path) if opened == "journaled" else open_run("mine", "x", {}) as run:
        if opened == "journaled":
            assert run.delivery.wait(seconds=20)
        first = client.get_run(run.run_id).data.tags[HEARTBEAT]
        deadline = time.monotonic() + 20
        while client.get_run(run.run_id).data.tags[HEARTBEAT] == first:
            assert time.monotonic() < deadline
            time.sleep(0.1)
