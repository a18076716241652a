"""`cxr compare` on runs as MLflow keeps them: what it takes, what it tells, what it refuses."""

from __future__ import annotations

import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cxr_mlflow.cli import main


def compare(*args: object) -> Result:
    result = CliRunner().invoke(main, ["compare", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_runs_that_differ_in_the_seed_alone_are_one_row(log_run, tmp_path):
    good = [log_run(0.95, strategy="oversample", seed=seed) for seed in range(3)]
    bad = [log_run(0.6, strategy="none", seed=seed) for seed in range(3)]
    done = compare(*good, *bad, "--output", tmp_path / "a.csv", "--output", tmp_path / "a.html")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table["row"]) == ["cnn, oversample", "cnn, none"]
    assert list(table["runs"]) == [3, 3]
    scores = [mlflow.get_run(run).data.metrics["test/f1_macro"] for run in good]
    assert table["f1_macro_mean"][0] == pytest.approx(np.mean(scores))
    assert "cnn, oversample is better than cnn, none" in " ".join(done.output.split())
    assert "not controlled" in done.output, "no score without what must stand beside it"
    assert "cnn, oversample" in (tmp_path / "a.html").read_text()


def test_it_refuses_to_rank_runs_tested_on_different_images(log_run):
    runs = [log_run(0.9), log_run(0.9, "e" * 64, strategy="none")]
    done = compare(*runs)
    assert done.exit_code == 2
    for told in ("cnn-0.9", "d" * 12, "e" * 12):
        assert told in done.output
    assert "Traceback" not in done.output


def test_versions_of_a_registered_model_are_rows_of_their_own(log_run):
    client = mlflow.MlflowClient()
    client.create_registered_model("mine")
    for hits in (0.9, 0.8):
        client.create_model_version("mine", "file:///nowhere", run_id=log_run(hits))
    client.set_registered_model_alias("mine", "champion", "1")
    done = compare("models:/mine")
    assert done.exit_code == 0, done.output
    assert "version 1 (champion)" in done.output
    assert "version 2" in done.output
    one = compare("models:/mine@champion", "models:/mine/2")
    assert one.exit_code == 0, one.output
    assert "version 1 (champion)" in one.output


def test_the_cells_an_experiment_asks_for_are_compared_and_no_others(log_run, tmp_path):
    client = mlflow.MlflowClient()
    home = client.get_experiment_by_name("chest-xray").experiment_id
    tags = {"kind": "experiment", "experiment_name": "mine", "test_digest": "d" * 64}
    parent = client.create_run(home, tags=tags, run_name="mine").info.run_id
    for key, hits in {"kept": 0.9, "dropped": 0.5}.items():
        log_run(hits, strategy="none", tags={"mlflow.parentRunId": parent, "cell": key})
    plan = [{"key": "kept", "row": "cnn, none", "seed": "0", "name": "cnn-none-seed0"}]
    client.log_text(parent, json.dumps(plan), "plan.json")
    done = compare(parent, "--output", tmp_path / "a.csv", "--log")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table["runs"]) == [1]
    logged = client.download_artifacts(parent, "comparison/table.csv", str(tmp_path))
    assert pd.read_csv(logged)["f1_macro_mean"][0] == table["f1_macro_mean"][0] > 0.8
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nrows: [{model: cnn, strategy: none}]")
    assert compare(file).exit_code == 0


def test_a_baseline_is_compared_with_every_other_row(log_run, tmp_path):
    runs = [log_run(0.9, strategy=s) for s in ("none", "weighted", "oversample")]
    done = compare(*runs, "--baseline", "cnn, none", "--output", tmp_path / "a.md")
    assert done.exit_code == 0, done.output
    assert "cnn, weighted is not distinguishable from cnn, none" in (tmp_path / "a.md").read_text()
    wrong = compare(*runs, "--baseline", "none")
    assert wrong.exit_code == 2
    assert "cnn, weighted" in wrong.output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["0" * 32], "no run 000000"),
        (["nothing"], "'nothing' is neither a run id, nor models:/NAME"),
        (["models:/nobody"], "models:/nobody: no such model or version"),
        (["0" * 32, "--output", "a.pdf"], "--output=a.pdf: end it in one of .html, .md, .csv"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_compared_is_named(log_run, args, told):
    done = compare(*args)
    assert done.exit_code == 2
    assert told in done.output


def test_a_run_without_a_test_is_named(log_run):
    client = mlflow.MlflowClient()
    home = client.get_experiment_by_name("chest-xray").experiment_id
    empty = client.create_run(home, run_name="half-way").info.run_id
    done = compare(log_run(0.9), empty)
    assert done.exit_code == 2
    assert "half-way" in done.output


def test_a_file_without_runs_is_named(log_run, tmp_path):
    file = tmp_path / "new.yaml"
    file.write_text("rows: [{model: cnn}]")
    done = compare(file)
    assert done.exit_code == 2
    assert "train it with cxr experiment run" in done.output


def test_log_wants_a_parent_run(log_run):
    done = compare(log_run(0.9), "--log")
    assert done.exit_code == 2
    assert "--log: give one experiment file" in done.output
