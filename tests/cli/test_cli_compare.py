"""`cxr compare` on runs as MLflow keeps them: what it takes, what it tells, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from cxr_mlflow.cli import main


@pytest.fixture
def log_parent(log_run):
    """Log the parent run of an experiment file with cells of the given shares of hits.

    A cell whose share is a text is a run of that status; None is a cell without a run.
    """
    client = mlflow.MlflowClient()

    def log(cells: dict[tuple[str, int], float | str | None], digest: str = "d" * 64) -> str:
        home = client.get_experiment_by_name("chest-xray").experiment_id
        tags = {"kind": "experiment", "experiment_name": "mine", "test_digest": digest}
        tags |= {"data": "a folder", "synthetic": "true"}
        parent = client.create_run(home, tags=tags, run_name="mine").info.run_id
        plan = []
        for (strategy, seed), found in cells.items():
            key = f"{strategy}{seed}"
            plan.append({"key": key, "row": f"cnn, {strategy}", "seed": str(seed), "name": key})
            own = {"mlflow.parentRunId": parent, "cell": key}
            if isinstance(found, float):
                epochs = 5 if strategy == "none" else 7
                told = {"strategy": strategy, "seed": seed, "epochs": epochs}
                log_run(found, digest, tags=own, bootstrap_samples=150, **told)
            elif found:
                run = client.create_run(home, tags=own | {"failure": f"why {key}"})
                client.set_terminated(run.info.run_id, found)
        client.log_text(parent, json.dumps(plan), "plan.json")
        client.log_text(parent, "name: mine\ndescription: What for.\n", "experiment.yaml")
        client.set_terminated(parent)
        return parent

    return log


FEW = ("--bootstrap-samples", 100)


def compare(*args: object) -> Result:
    result = CliRunner().invoke(main, ["compare", *map(str, args)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def told(done: Result) -> str:
    """Output as one line."""
    return " ".join(done.output.split())


def test_runs_that_differ_in_the_seed_alone_are_one_row(log_run, tmp_path):
    good = [log_run(0.95, strategy="oversample", seed=seed) for seed in range(3)]
    bad = [log_run(0.6, strategy="none", seed=seed) for seed in range(3)]
    done = compare(
        *good, *bad, *FEW, "--output", tmp_path / "a.csv", "--output", tmp_path / "a.html"
    )
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
    for words in ("cnn, none", f"cxr compare {runs[1][:8]}", "d" * 12, "e" * 12):
        assert words in done.output
    assert "Traceback" not in done.output


def test_versions_of_a_registered_model_are_rows_of_their_own(log_run):
    client = mlflow.MlflowClient()
    client.create_registered_model("mine")
    for hits in (0.9, 0.8):
        client.create_model_version("mine", "file:///nowhere", run_id=log_run(hits))
    client.set_registered_model_alias("mine", "champion", "1")
    client.set_registered_model_alias("mine", "best", "1")
    done = compare("models:/mine", *FEW, "--baseline", "@champion")
    assert done.exit_code == 0, done.output
    assert "Against the baseline v1 champion/best: cnn, oversample" in told(done)
    assert "v2: cnn, oversample" in told(done)
    one = compare("models:/mine@champion", "models:/mine/2", *FEW, "--baseline", "v1")
    assert one.exit_code == 0, one.output
    assert "Against the baseline v1 champion/best: cnn, oversample" in told(one)


def test_a_version_and_the_run_behind_it_count_once(log_run, tmp_path):
    client = mlflow.MlflowClient()
    run = log_run(0.9)
    for name in ("mine", "yours"):
        client.create_registered_model(name)
        client.create_model_version(name, "file:///nowhere", run_id=run)
    done = compare("models:/mine/1", run, "models:/mine", *FEW, "--output", tmp_path / "a.csv")
    assert done.exit_code == 0, done.output
    assert list(pd.read_csv(tmp_path / "a.csv")["row"]) == ["v1: cnn, oversample"]
    both = compare("models:/mine", "models:/yours", *FEW, "--output", tmp_path / "b.csv")
    assert both.exit_code == 0, both.output
    assert list(pd.read_csv(tmp_path / "b.csv")["row"]) == ["mine v1 = yours v1: cnn, oversample"]


def test_versions_of_other_test_sets_are_told_with_the_commands_that_compare_them(log_run):
    client = mlflow.MlflowClient()
    client.create_registered_model("mine")
    for seed, digest in enumerate("ded"):
        run = log_run(0.9, digest * 64, seed=seed)
        client.create_model_version("mine", "file:///nowhere", run_id=run)
    client.set_registered_model_alias("mine", "champion", "2")
    done = compare("models:/mine")
    assert done.exit_code == 2
    assert "cxr compare models:/mine/1 models:/mine/3\n" in done.output
    assert "cxr compare models:/mine/2\n" in done.output
    assert "test_digest eeeeeeeeeeee, 120 images: v2 champion: cnn, oversample" in done.output
    assert compare("models:/mine/1", "models:/mine/3", *FEW).exit_code == 0


def test_cells_without_a_score_are_told_on_screen_and_stay_in_the_parents_report(
    log_parent, tmp_path
):
    cells = {("none", 0): 0.9, ("none", 1): "FAILED", ("none", 2): None}
    parent = log_parent(cells | {("oversample", 0): 0.8, ("oversample", 1): "KILLED"})
    done = compare(parent, "--log")
    assert done.exit_code == 0, done.output
    client = mlflow.MlflowClient()
    path = client.download_artifacts(parent, "comparison/report.md", str(tmp_path))
    report = " ".join(Path(path).read_text().replace("| ", "").split())
    for text in (told(done), report):
        assert "cnn, none 1 failed why none1" in text
        assert "cnn, none 2 not run yet" in text
        assert "cnn, oversample 1 stopped why oversample1" in text
        assert "1 of 3" in text
        assert "What for." in text
        assert "machine 2 cores of a processor" in text
        assert "a folder. Synthetic data" in text
        assert re.search(r"epochs (5 / 7|7 / 5)", text), "what differs beside the label"
    assert "150 resamples" in report, "as the experiment's runs were told"
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert note.startswith("**! not controlled; ")
    assert "3 cells without a score." in note.split("\n")[0]


def test_an_experiment_is_named_by_its_name_and_a_run_by_the_start_of_its_id(log_parent, log_run):
    client = mlflow.MlflowClient()
    old = log_parent({("none", 0): 0.9})
    new = log_parent({("none", 0): 0.8}, "e" * 64)
    client.update_run(old, name="old")
    done = compare("mine", *FEW)
    assert done.exit_code == 0, done.output
    assert (
        f"! mine was trained on 2 sets of test images; taken: {new[:8]} (a folder," in done.output
    )
    assert f"Others: {old[:8]} (a folder, " in done.output
    assert "test dddddddddddd)" in done.output
    one = compare(old[:8], *FEW)
    assert one.exit_code == 0, one.output
    assert "old\n" in one.output
    twins = [log_run(0.9, seed=seed) for seed in range(2)]
    assert compare(*(run[:12] for run in twins), *FEW).exit_code == 0


def test_the_start_of_several_ids_is_refused_with_the_ids(log_run, monkeypatch):
    ids = iter(["abcdef01" + "0" * 24, "abcdef02" + "0" * 24])
    monkeypatch.setattr(
        "mlflow.store.tracking.sqlalchemy_store.uuid.uuid4", lambda: SimpleNamespace(hex=next(ids))
    )
    runs = [log_run(0.9, seed=seed) for seed in range(2)]
    done = compare("abcdef")
    assert done.exit_code == 2
    assert "'abcdef' is the beginning of several run ids" in done.output
    assert all(run in done.output for run in runs)


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
    done = compare(*runs, "--baseline", "cnn, none", *FEW, "--output", tmp_path / "a.md")
    assert done.exit_code == 0, done.output
    assert "cnn, weighted is not distinguishable from cnn, none" in (tmp_path / "a.md").read_text()
    part = compare(*runs, "--baseline", "weighted", *FEW)
    assert "Against the baseline cnn, weighted" in part.output
    wrong = compare(*runs, "--baseline", "cnn")
    assert wrong.exit_code == 2
    assert "may be cnn, none; cnn, oversample; cnn, weighted" in wrong.output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["0" * 32], "no run 000000"),
        (["nothing"], "'nothing' is neither a run id or its beginning, nor models"),
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
    empty = client.create_run(home, run_name="half-way", tags={"failure": "no memory"}).info.run_id
    client.set_terminated(empty, "FAILED")
    done = compare(log_run(0.9), empty)
    assert done.exit_code == 2
    assert f"run half-way ({empty}), which is FAILED (no memory), does not say" in done.output


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
    assert "macro F1" not in done.output, "it is said before the report"
