"""What is said of a run that goes on, and what makes two commands one run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cxr_mlflow.attempts import announce_attempt, attempt_tags, command_of
from cxr_mlflow.config import RunConfig
from cxr_mlflow.tracking.unfinished import Unfinished

MADE_WITH = {"version/torch": "2.15.0", "threads": "2"}


def plan(**options):
    catalog = SimpleNamespace(root="/films")
    config = RunConfig.from_options({"model": "cnn", **options})
    return SimpleNamespace(name="run", config=config, study=SimpleNamespace(catalog=catalog))


def command(uri="sqlite:///a", tags=None, **options):
    return command_of(plan(**options), uri, tags or {})


@pytest.mark.parametrize(
    "option", [{"fresh": True}, {"checkpoint_minutes": 1.0}, {"workers": 3}, {"cache_dir": "/c"}]
)
def test_what_changes_no_result_does_not_make_another_run(option):
    assert command(**option).key == command().key


@pytest.mark.parametrize(
    "other",
    [
        command(lr=0.1),
        command(register=False),
        command(uri="sqlite:///b"),
        command(tags={"cell": "1"}),
        command(experiment="other"),
    ],
)
def test_what_is_told_elsewhere_or_otherwise_is_another_run(other):
    assert other.key != command().key


def said(unfinished, made_with):
    text = io.StringIO()
    announce_attempt(Console(file=text, width=200), unfinished, made_with)
    return text.getvalue()


def test_other_software_is_said_and_tagged():
    first = Unfinished(Path(), command(), {}, MADE_WITH, "j", attempt=2)
    assert "goes on" in said(first, MADE_WITH)
    assert "!" not in said(first, MADE_WITH)
    assert attempt_tags(first, MADE_WITH) == {"attempts": "2"}
    other = {**MADE_WITH, "version/torch": "2.16.0"}
    assert "! version/torch was 2.15.0, is 2.16.0: other bits" in said(first, other)
    assert attempt_tags(first, other)["resumed_with_other"] == "version/torch"


def test_a_first_attempt_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_STATE_DIR", str(tmp_path))
    first = Unfinished(Path(), command(), {}, MADE_WITH, "j")
    assert said(first, MADE_WITH) == ""
    assert attempt_tags(replace(first), {"threads": "9"}) == {}
