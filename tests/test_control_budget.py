"""What controls will cost is said before they are trained, from what the run's own epochs took."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest

from cxr_mlflow.command_config import ControlConfig
from cxr_mlflow.control_models import budget_lines, check_masks, modes_of
from cxr_mlflow.errors import InputError


@pytest.mark.parametrize(
    ("own", "modes"),
    [
        ("lungs", ["lungs-out", "box-out", "mask-only"]),
        ("lungs-crop", ["lungs-out", "box-out", "mask-only"]),
        ("none", ["lungs-out", "box-out", "lungs"]),
        ("crop", ["lungs-out", "box-out", "lungs"]),
        ("lungs-out", ["box-out", "mask-only"]),
    ],
)
def test_a_run_that_saw_more_than_the_lungs_is_held_against_them_too(own, modes):
    assert modes_of(ControlConfig(), own) == modes


def test_the_modes_that_are_asked_for_are_trained_once():
    assert modes_of(ControlConfig(modes="none,lungs-out,none"), "lungs") == ["none", "lungs-out"]
    with pytest.raises(InputError, match="--modes=lungs: that is what the run itself"):
        modes_of(ControlConfig(modes="lungs-out,lungs"), "lungs")


def test_the_time_is_told_from_the_median_epoch():
    seconds = [300.0, 60.0, 60.0, 62.0]  # the first one waits for the cache
    (line,) = budget_lines(["lungs-out", "mask-only"], ["lungs-out", "mask-only"], 5, 5, seconds)
    assert "2 controls (lungs-out, mask-only) of at most 5 epochs each" in line
    assert "up to about 10 min of training, at the 61.0 s" in line
    told = budget_lines(["lungs-out", "mask-only"], ["mask-only"], 5, 5, [1.0])
    assert told[0] == "finished already: 1 of 2"
    assert "1 control (mask-only) of at most 5 epochs: up to about 1 min" in told[1]
    (line,) = budget_lines(["lungs-out"], [], 5, 5, seconds)
    assert line == "finished already: 1 of 1"
    (line,) = budget_lines(["lungs-out"], ["lungs-out"], 5, 5, [])
    assert "does not tell how long its epochs took" in line


def test_a_smaller_budget_is_called_weak_before_it_is_spent():
    told = budget_lines(["lungs-out"], ["lungs-out"], 1, 10, [1.0])
    assert told[0] == "the run had 10 epochs: controls of fewer score less, and say little"
    assert "1 control (lungs-out) of at most 1 epoch: up to" in told[1]


@pytest.mark.parametrize(
    ("masks", "modes", "told"),
    [
        (["", ""], ["lungs-out"], "no image has a mask: no control is possible"),
        (["a.png", ""], ["none", "box-out"], "1 of 2 images have no mask, and controls use the"),
        (["", ""], ["none"], None),
        (["a.png", "b.png"], ["lungs-out"], None),
    ],
)
def test_controls_without_masks_are_refused_before_anything_is_trained(masks, modes, told):
    study = SimpleNamespace(
        catalog=SimpleNamespace(table=pd.DataFrame({"mask_path": masks}, dtype=str))
    )
    if told is None:
        check_masks(study, modes)
        return
    with pytest.raises(InputError, match=told):
        check_masks(study, modes)
