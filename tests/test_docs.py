"""The code in the docs runs, and gives what the text beside it says."""

from __future__ import annotations

import re

import mlflow
import numpy as np
import pandas as pd
import pytest

from cxr_mlflow.evaluation.report import predictions_table
from cxr_mlflow.tracking.run import open_run

SCORES = {("cnn", "none", "0"): 0.6, ("cnn", "none", "1"): 0.7, ("resnet18", "weighted", "0"): 0.9}
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])


def code_of(text: str) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


@pytest.fixture
def store(tracking):
    """Runs as a training logs them, and two that a table of scores must leave out."""
    predictions = predictions_table(
        image_ids=[f"COVID/{number}" for number in range(4)],
        sources=["somewhere"] * 4,
        y_true=np.array([0, 1, 1, 1]),
        probabilities=PROBABILITIES,
        classes=["COVID", "Normal"],
    )
    for (model, strategy, seed), score in SCORES.items():
        tags = {"kind": "training", "model": model, "strategy": strategy, "seed": seed}
        with open_run("chest-xray", f"{model}-{strategy}", tags) as run:
            run.log_metrics({"test/f1_macro": score})
            run.log_csv(predictions, "test/predictions.csv")
    with open_run("chest-xray", "scored again", {"kind": "evaluation"}) as run:
        run.log_metrics({"test/f1_macro": 0.99})
    failed = mlflow.MlflowClient().create_run(
        mlflow.get_experiment_by_name("chest-xray").experiment_id, tags={"kind": "training"}
    )
    mlflow.MlflowClient().set_terminated(failed.info.run_id, "FAILED")


def test_runs_in_pandas(repo, store, capsys):
    code = code_of((repo / "docs" / "notebook.md").read_text())
    told: dict[str, object] = {}
    exec(compile(code, "docs/notebook.md", "exec"), told)

    table = told["table"]
    assert isinstance(table, pd.DataFrame)
    expected = sorted(((*row, score) for row, score in SCORES.items()), key=lambda row: -row[-1])
    found = table[["model", "strategy", "seed", "f1_macro"]].itertuples(index=False, name=None)
    assert list(found) == expected
    assert re.search(r"cnn\s+none\s+0\.65\s+0\.07\d+\s+2", capsys.readouterr().out)

    axes = told["axes"]
    assert sorted(axes.lines[0].get_xdata()) == sorted(SCORES.values())
    assert {label.get_text() for label in axes.get_yticklabels()} == {
        "cnn, none",
        "resnet18, weighted",
    }
    errors = told["surest_errors"]
    assert errors["image_id"].tolist() == ["COVID/3", "COVID/2"]
    assert errors["confidence"].tolist() == [0.7, 0.6]
    told["plt"].close(told["figure"])
