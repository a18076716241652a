from __future__ import annotations

from cxr_mlflow.config import RunConfig
from cxr_mlflow.labels import label_rows, recipe


def row(**options):
    told = recipe(RunConfig.from_options(options).to_params())
    return {name: value for name, value in told.items() if name != "seed"}


def test_model_and_strategy_are_named_even_where_all_rows_share_them():
    rows = [row(model="cnn", strategy="none"), row(model="cnn", strategy="weighted")]
    assert label_rows(rows) == ["cnn, none", "cnn, weighted"]
    assert label_rows(rows[:1]) == ["cnn, none"]
    assert label_rows([]) == []


def test_numbers_are_named_only_where_rows_would_be_called_alike():
    other_lr = [row(model="cnn", lr=0.003), row(model="resnet18", lr=0.001)]
    assert label_rows(other_lr) == ["cnn, oversample", "resnet18, oversample"]
    alike = [row(lr=0.003), row(lr=0.001)]
    assert label_rows(alike) == ["resnet18, oversample, lr=0.003", "resnet18, oversample, lr=0.001"]


def test_a_choice_that_is_none_says_what_of():
    rows = [row(mask_mode="lungs"), row(mask_mode="none")]
    assert label_rows(rows) == [
        "resnet18, oversample, lungs",
        "resnet18, oversample, mask-mode=none",
    ]


def test_a_recipe_leaves_out_where_the_data_are_and_who_computes():
    here = RunConfig.from_options({"data_dir": "here", "workers": 3, "run_name": "x"})
    assert recipe(here.to_params()) == recipe(RunConfig().to_params())
    assert recipe(RunConfig.from_options({"lr": 0.1}).to_params()) != recipe({})
    assert recipe({}) == recipe(RunConfig().to_params()), "an old run has what it does not tell"
