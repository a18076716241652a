"""The view in which runs are compared is on every experiment, and no run fails for want of it."""

from __future__ import annotations

import json

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from cxr_mlflow.describe import where_lines
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import open_journaled
from cxr_mlflow.tracking.run import open_run
from cxr_mlflow.tracking.views import COLUMNS, KIND_TAG, TAG, offer_view, view_links
from tools.ui_links import lines


def tags(name="lab"):
    return mlflow.get_experiment_by_name(name).tags


def test_a_run_that_waits_for_mlflow_leaves_the_view(tracking):
    with open_run("lab", "a run", {}) as run:
        pass
    saved = json.loads(tags()[TAG])
    state = json.loads(saved["state"])
    assert saved["name"] == "cxr: scores and figures"
    assert set(COLUMNS) <= set(state["selectedColumns"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`test/f1_macro`", False)
    kinds = {chart["type"] for chart in state["compareRunCharts"]}
    assert kinds == {"BAR", "PARALLEL", "IMAGE"}
    link = f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs?viewStateShareKey=cxr"
    assert f"compare   {link}&compareRunsMode=CHART" in where_lines("a run", run, tracking)
    assert lines(tracking, "http://127.0.0.1:5000")[0] == f"lab, table: {link}"


def test_a_run_that_is_told_to_a_journal_leaves_the_view(tracking, tmp_path):
    with open_journaled(Journal(tmp_path / "j"), "j1", "lab", "a run", {}, {}, handlers={}):
        pass
    assert TAG in tags()


def test_the_view_is_written_once_and_another_kind_of_experiment_is_left(tracking, monkeypatch):
    home = mlflow.create_experiment("lab", tags={KIND_TAG: "genai_development"})
    offer_view(home)
    before = tags()
    assert before[KIND_TAG] == "genai_development"
    monkeypatch.delattr(mlflow.MlflowClient, "set_experiment_tag")  # it would be an AttributeError
    offer_view(home)
    assert tags() == before


@pytest.mark.parametrize("error", [MlflowException("no"), OSError("gone")])
def test_no_run_fails_for_want_of_a_view(tracking, monkeypatch, error):
    def refuse(*args):
        raise error

    monkeypatch.setattr(mlflow.MlflowClient, "set_experiment_tag", refuse)
    with open_run("lab", "a run", {}) as run:
        pass
    assert mlflow.get_run(run.run_id).info.status == "FINISHED"
    assert TAG not in tags()


def test_a_link_names_the_server_the_experiment_and_the_view():
    assert view_links("http://there:80", "7") == {
        "table": "http://there:80/#/experiments/7/runs?viewStateShareKey=cxr",
        "charts": "http://there:80/#/experiments/7/runs?viewStateShareKey=cxr"
        "&compareRunsMode=CHART",
    }
