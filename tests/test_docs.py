"""The code in the docs runs, and gives what the text beside it says."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cxr_mlflow.evaluation.report import predictions_table
from cxr_mlflow.tracking.run import open_run

SCORES = {("cnn", "none", "0"): 0.6, ("cnn", "none", "1"): 0.7, ("resnet18", "weighted", "0"): 0.9}
CELL = {"row": "cnn, none", "in_experiment": "original-table-small", "test_digest": "d"}
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])


def pieces_of(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def log_run(tracking):
    """Log a run as a cell of an experiment does."""
    predictions = predictions_table(
        image_ids=[f"COVID/{number}" for number in range(4)],
        sources=["somewhere"] * 4,
        y_true=np.array([0, 1, 1, 1]),
        probabilities=PROBABILITIES,
        classes=["COVID", "Normal"],
    )

    def log(row: str, score: float, **told: str) -> None:
        tags = {**CELL, "row": row, **told}
        with open_run("chest-xray", row, tags) as run:
            run.log_metrics({"test/f1_macro": score})
            run.log_csv(predictions, "test/predictions.csv")

    return log


@pytest.fixture
def store(log_run):
    """The cells of an experiment, and three runs that a table of it must leave out."""
    for (model, strategy, seed), score in SCORES.items():
        log_run(f"{model}, {strategy}", score, seed=seed)
    log_run("cnn, none", 0.99, in_experiment="on other images", test_digest="e")
    log_run("cnn, none", 0.99, in_experiment="")
    with pytest.raises(RuntimeError), open_run("chest-xray", "failed", CELL):
        raise RuntimeError


@pytest.fixture
def pieces(repo, tracking) -> list[str]:
    """The code, on the store of this test: MLflow keeps a relative one open in its first folder."""
    text = (repo / "docs" / "notebook.md").read_text()
    assert text.count("sqlite:///mlflow.db") == 1
    return pieces_of(text.replace("sqlite:///mlflow.db", tracking))


def test_runs_in_pandas(store, pieces, capsys):
    told: dict[str, object] = {}
    for piece in pieces:
        exec(compile(piece, "docs/notebook.md", "exec"), told)
    shown = capsys.readouterr()
    assert re.search(r"cnn, none\s+0\.65\s+0\.07\d+\s+2", shown.out)
    assert re.search(r"resnet18, weighted\s+0\.90?\s+NaN\s+1", shown.out)
    assert "Downloading" not in shown.err
    axes = told["plt"].gca()
    assert sorted(axes.lines[0].get_xdata()) == sorted(SCORES.values())
    assert {label.get_text() for label in axes.get_yticklabels()} == {
        "cnn, none",
        "resnet18, weighted",
    }
    errors = told["surest_errors"]
    assert errors["image_id"].tolist() == ["COVID/3", "COVID/2"]
    assert errors["confidence"].tolist() == [0.7, 0.6]
    told["plt"].close()


def test_the_first_piece_is_ten_lines(pieces):
    assert len([line for line in pieces[0].splitlines() if line.strip()]) <= 10


def test_runs_of_different_test_images_are_not_averaged(store, log_run, pieces):
    log_run("cnn, none", 0.99, test_digest="e")
    with pytest.raises(AssertionError, match="tested on different images"):
        exec(compile(pieces[0], "docs/notebook.md", "exec"), {})
