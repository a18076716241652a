"""Options of true or false: with a value, as MLproject must write them, or alone."""

from __future__ import annotations

import pytest

from cxr_mlflow.cli.experiment import experiment
from cxr_mlflow.cli.train import train

run = experiment.commands["run"]


@pytest.mark.parametrize(
    ("words", "fresh"),
    [
        ("x.yaml", False),
        ("x.yaml --fresh", True),
        ("x.yaml --fresh --jobs 2", True),
        ("--fresh true x.yaml", True),
        ("x.yaml --fresh=false", False),
    ],
)
def test_a_true_may_be_left_out(words, fresh):
    told = run.make_context("run", words.split()).params
    assert (told["file"], told["fresh"]) == ("x.yaml", fresh)
    assert told["jobs"] == (2 if "--jobs" in words else 1)


def test_one_that_is_true_by_default_is_still_set_to_false():
    told = train.make_context("train", ["--register", "false", "--fresh"]).params
    assert (told["register"], told["fresh"]) == (False, True)
