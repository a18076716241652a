"""Every option is checked, and every message names its flag."""

from __future__ import annotations

import json

import pytest

from cxr_mlflow.config import RunConfig, all_options, flag
from cxr_mlflow.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "resnet19"),
        ("strategy", "smote"),
        ("mask_mode", "lung"),
        ("augment", "wild"),
        ("on_bad_file", "ignore"),
        ("device", "tpu"),
        ("image_size", 8),
        ("epochs", 0),
        ("batch_size", 0),
        ("patience", 0),
        ("freeze", -1),
        ("freeze", 4),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("warmup", 1.0),
        ("ema_decay", 1.0),
        ("label_smoothing", -0.1),
        ("clip_norm", -1.0),
        ("workers", -2),
        ("seed", -1),
        ("split_seed", 2**31),
        ("val_fraction", 0.0),
        ("test_fraction", 0.85),
        ("bootstrap_samples", 10),
        ("run_name", " "),
    ],
)
def test_bad_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"--{flag(name)}"):
        RunConfig.from_options({name: value})


def test_choice_errors_list_the_choices():
    with pytest.raises(InputError, match="none, weighted, oversample"):
        RunConfig.from_options({"strategy": "smote"})


def test_unknown_option_is_refused():
    with pytest.raises(InputError, match="--image-sise"):
        RunConfig.from_options({"image_sise": 64})


def test_params_hold_every_option_once_and_read_back():
    config = RunConfig.from_options({"lr": 0.0005, "register": False, "model": "cnn"})
    params = config.to_params()
    assert set(params) == {field.name for _, field in all_options()}
    assert params["register"] == "false"
    assert params["model"] == "cnn"
    assert json.loads(params["lr"]) == 0.0005


def test_every_option_has_a_help_text():
    assert all(field.metadata["help"].endswith(".") for _, field in all_options())
