"""Experiment files: what stands in them becomes cells, and what is wrong in them is named."""

from __future__ import annotations

import hashlib
import json

import pytest
from mlflow.entities import Metric, Run, RunData, RunInfo

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.experiment.best import CHOSEN_BY, choose
from cxr_mlflow.experiment.plan import load_plan
from cxr_mlflow.tracking.parents import Child


@pytest.fixture
def plan(tmp_path):
    """Lay out the cells of a file with the given text."""

    def load(text: str, **asked: object):
        path = tmp_path / "table.yaml"
        path.write_text(text)
        return load_plan(ExperimentConfig(file=str(path), **asked), experiment="x")

    return load


TWO_ROWS = """
base: {epochs: 3, lr: 1e-3, weights: first.pth}
rows:
  - {model: cnn, lr: 0.01}
  - {model: resnet18}
matrix: {strategy: [none, weighted]}
seeds: [4, 5]
"""


def test_what_stands_further_down_wins(plan):
    cells = plan(TWO_ROWS).cells
    assert [cell.row for cell in cells[:4]] == [
        "cnn, none",
        "cnn, weighted",
        "resnet18, none",
        "resnet18, weighted",
    ]
    cnn, resnet = cells[0].config, cells[2].config
    assert (cnn.train.epochs, cnn.train.lr, resnet.train.lr) == (3, 0.01, 0.001)
    over = plan(TWO_ROWS, overrides="epochs=7, image-size=64").cells
    assert {(c.config.train.epochs, c.config.data.image_size) for c in over} == {(7, 64)}


def test_cells_come_seed_by_seed_so_that_half_a_table_is_balanced(plan):
    assert [cell.seed for cell in plan(TWO_ROWS).cells] == [4] * 4 + [5] * 4
    assert [cell.seed for cell in plan("seeds: [0]", seeds="1-3,9").cells] == [1, 2, 3, 9]


def test_first_weights_of_all_are_not_those_of_the_cnn(plan):
    cells = plan(TWO_ROWS, weights="other.pth", overrides="freeze=2").cells
    models = [cell.config.model for cell in cells]
    assert {(model.model, model.weights, model.freeze) for model in models} == {
        ("cnn", "auto", 0),
        ("resnet18", "other.pth", 2),
    }


def test_cells_register_nothing_and_the_file_says_where_the_best_goes(plan):
    told = plan("base: {registered_model: mine}")
    assert told.tracking.register
    assert told.tracking.registered_model == "mine"
    assert not told.cells[0].config.tracking.register


def test_a_key_tells_what_comes_out_and_nothing_else(plan):
    key = plan("rows: [{model: cnn}]").cells[0].key(data="d")
    assert plan("rows: [{model: cnn}]\nname: other").cells[0].key(data="d") == key
    assert plan("rows: [{model: cnn}]", data_dir="there").cells[0].key(data="d") == key
    assert plan("rows: [{model: cnn}]").cells[0].key(data="e") != key
    assert plan("rows: [{model: cnn, lr: 0.5}]").cells[0].key(data="d") != key
    assert plan("rows: [{model: cnn}]", seeds="1").cells[0].key(data="d") != key


def key_before(cell, *later: str, **other: str) -> str:
    """Key of a cell as code wrote it that lacked some options, or had other values for some."""
    known = {k: v for k, v in {**cell.recipe, **other}.items() if k not in later}
    told = json.dumps({"recipe": known, "data": "d"}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def test_a_cell_is_the_same_though_options_were_added_since(plan):
    """A new option trains no finished cell again, where the cell has its default."""
    (cell,) = plan("rows: [{model: cnn}]").cells
    params = cell.config.to_params()
    old = {name: value for name, value in params.items() if name not in ("freeze", "start_size")}
    key = key_before(cell, "freeze", "start_size")
    assert cell.is_made_by(cell.key(data="d"), params, data="d")
    assert cell.is_made_by(key, old, data="d")
    assert not cell.is_made_by(key, old, data="other")
    (grown,) = plan("rows: [{model: cnn, start_size: 0.5}]").cells
    assert not grown.is_made_by(key, old, data="d"), "it was trained at the whole size"
    other_default = key_before(cell, "freeze", lr="0.01")
    assert not cell.is_made_by(other_default, old | {"lr": "0.01"}, data="d"), "a default changed"


def test_the_path_of_a_split_is_not_in_the_key(plan):
    one, other = (
        plan(f"base: {{split_file: {path}}}\nrows: [{{model: cnn}}]").cells[0]
        for path in ("a/split.csv", "b/split.csv")
    )
    assert one.config.data.split_file == "a/split.csv"
    assert one.key(split="s") == other.key(split="s") != one.key(split="t")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rows: [{epoch: 3}]", "row 1: no option 'epoch'; did you mean epochs?"),
        ("row: []", "unknown key 'row'; did you mean rows?"),
        ("rows: [{epochs: many}]", "row 1: epochs='many' is not a whole number"),
        ("rows: [{epochs: 2.5}]", "epochs=2.5 is not a whole number"),
        ("rows: [{epochs: true}]", "epochs=True is not a whole number"),
        ("base: {prior_correction: maybe}", "base: prior_correction='maybe' is not true or false"),
        ("rows: [{epochs: 0}]", "--epochs=0 must be at least 1"),
        ("rows: [{model: vgg}]", "--model='vgg' is not one of cnn, resnet18"),
        ("rows: [{seed: 3}]", "seed cannot be set here; write it under seeds:"),
        ("rows: [{split_seed: 3}]", "all cells share split_seed; set it under base"),
        ("rows: [{split_file: s.csv}]", "all cells share split_file; set it under base"),
        ("matrix: {data_dir: [a, b]}", "all cells share data_dir"),
        ("rows: [{model: cnn}, {model: cnn}]", "two rows are the same run (cnn, oversample)"),
        ("rows: [{lr: 0.1}]\nmatrix: {lr: [0.2]}", "row 1 and the matrix both set lr"),
        ("matrix: {lr: 0.2}", "matrix: lr must be a list of values"),
        ("rows: cnn", "rows must be a list of option sets"),
        ("rows: [cnn]", "row 1 must be a set of options"),
        ("seeds: [1, 1]", "is not a list of different seeds"),
        ("seeds: 3", "is not a list of different seeds"),
        ("name: it's", "may hold letters, digits"),
        ("just words", "must hold the keys"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(plan, text, told):
    with pytest.raises(InputError) as error:
        plan(text)
    assert told in str(error.value)
    assert "table.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"overrides": "epochs"}, "--overrides: 'epochs' is not NAME=VALUE"),
        ({"overrides": "epoch=3"}, "--overrides: no option 'epoch'"),
        ({"overrides": "epochs=x"}, "--overrides: epochs='x' is not a whole number"),
        ({"seeds": "a"}, "--seeds: 'a' is not a list"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(plan, asked, told):
    with pytest.raises(InputError) as error:
        plan("rows: [{model: cnn}]", **asked)
    assert told in str(error.value)


def test_no_file_is_said(tmp_path):
    with pytest.raises(InputError, match="no experiment file"):
        load_plan(ExperimentConfig(file=str(tmp_path / "no.yaml")), experiment="x")


@pytest.mark.parametrize(
    ("name", "rows", "seeds"),
    [
        ("original_table", 4, 3),
        ("original_table_small", 4, 3),
        ("full_matrix", 18, 3),
        ("smoke", 2, 2),
    ],
)
def test_the_files_that_come_with_the_project_are_what_they_say(repo, name, rows, seeds):
    file = str(repo / "experiments" / f"{name}.yaml")
    told = load_plan(ExperimentConfig(file=file), experiment="x")
    assert (len(told.rows), len(told.cells)) == (rows, rows * seeds)
    assert len({cell.name for cell in told.cells}) == rows * seeds


def finished(score: float) -> Child:
    info = RunInfo("id", "1", "root", "FINISHED", 0, 1, "active")
    return Child(Run(info, RunData(metrics=[Metric(CHOSEN_BY, score, 0, 0)])))


def test_a_control_is_never_the_best_model_of_an_experiment(plan):
    cells = plan("matrix: {mask_mode: [lungs, none, lungs-out, box-out, mask-only]}").cells
    scores = dict(zip(cells, (0.7, 0.8, 0.9, 0.95, 0.99), strict=True))
    assert choose({cell: finished(s) for cell, s in scores.items()}) is cells[1]
    assert choose({cell: finished(scores[cell]) for cell in cells[2:]}) is None
