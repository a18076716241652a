from __future__ import annotations

import io

import pytest
from rich.console import Console

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.experiment.board import DONE, FAILED, Board, stage
from cxr_mlflow.experiment.plan import load_plan
from cxr_mlflow.pipeline import SENDING, TESTING


@pytest.fixture
def board(tmp_path):
    path = tmp_path / "four.yaml"
    path.write_text("matrix: {strategy: [none, weighted]}\nseeds: [0, 1]")
    plan = load_plan(ExperimentConfig(file=str(path)), experiment="x")
    out = Console(file=io.StringIO(), width=120, highlight=False)
    return Board(plan, jobs=1, console=out)


def test_time_left_is_what_the_rows_took(board):
    first, second, third, _ = board.plan.cells
    assert board.minutes_left() is None
    board.done(first, 0.8, 10.0)
    assert board.minutes_left() == pytest.approx(30.0)
    board.done(second, 0.8, 20.0)
    assert board.minutes_left() == pytest.approx(30.0)  # a row each of 10 and 20
    board.failed(third, "no memory")
    assert board.minutes_left() == pytest.approx(20.0)
    board.jobs = 2
    assert board.minutes_left() == pytest.approx(10.0)


def test_without_a_terminal_every_event_is_a_line(board):
    first, second = board.plan.cells[:2]
    with board.shown():
        board.running(first)
        board.running(first, "epoch 1/3")
        board.done(first, 0.8125, 2.0)
        board.failed(second, "it said [why]")
    lines = board.console.file.getvalue().splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "started resnet18, none, seed 0",
        "[1/4] resnet18, none, seed 0: macro F1 0.812, 2.0 min; 3 to go, about 6 min",
        "[2/4] resnet18, weighted, seed 0: FAILED: it said [why]; 2 to go, about 4 min",
    ]
    assert (board.count(DONE), board.count(FAILED)) == (1, 1)


def test_the_table_shows_every_cell(board):
    first, second, third, _ = board.plan.cells
    board.done(first, 0.8, 1.0, now=False)
    board.running(second, "epoch 2/5")
    board.failed(third, "why")
    board.console.file = io.StringIO()
    board.console.print(board)
    table = board.console.file.getvalue()
    for told in (
        "seed 0",
        "seed 1",
        "resnet18, none",
        "0.800",
        "epoch 2/5",
        "failed",
        "1 of 4 done",
    ):
        assert told in table, told


def test_time_left_is_told_until_nothing_is_left(board):
    board.done(board.plan.cells[0], 0.8, 1.0)
    board.console.print(board)
    assert "min left" in board.console.file.getvalue()
    for cell in board.plan.cells[1:]:
        board.done(cell, 0.8, 1.0)
    board.console.file = io.StringIO()
    board.console.print(board)
    assert "min left" not in board.console.file.getvalue()


def test_a_small_terminal_cuts_off_cells_not_the_counts(board):
    board.console.print(board)
    assert board.console.file.getvalue().startswith("0 of 4 done")


def test_less_than_a_minute_is_not_none(board):
    for cell in board.plan.cells[:3]:
        board.done(cell, 0.8, 0.2)
    assert board.console.file.getvalue().splitlines()[-1].endswith("1 to go, under a minute")


def test_a_cell_that_mlflow_has_not_got_says_so(board):
    board.done(board.plan.cells[0], 0.8, 0.2, sent=False)
    assert "macro F1 0.800, 0.2 min, not sent yet" in board.console.file.getvalue()
    board.console.print(board)
    assert "0.800, unsent" in board.console.file.getvalue()


def test_how_far_a_training_is_stands_in_what_it_printed_last():
    assert stage(["weights random"]) is None
    assert stage(["epoch   1/3  train", "epoch   2/3  train loss", "! word"]) == "epoch 2/3"
    assert stage(["epoch   3/3  train", f"{TESTING}    the best epoch"]) == "testing"
    assert stage(["epoch   3/3  train", f"{TESTING}    x", f"{SENDING}    what"]) == "sending"
