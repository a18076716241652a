"""Write MLproject from the config: `python tools/write_mlproject.py`; a test compares the two."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from cxr_mlflow.command_config import (
    ControlConfig,
    EvaluateConfig,
    ExperimentConfig,
    PredictConfig,
)
from cxr_mlflow.config import SECTIONS, DataConfig, TrackingConfig, flag, option_type

HEADER = """\
# Written by tools/write_mlproject.py from cxr_mlflow/config.py: change it there.
# MLflow does not check types; the command does, and names the choices.
"""
ENTRY_POINTS: dict[str, tuple[str, list[tuple[type[Any], set[str] | None]]]] = {
    "main": (
        "train",
        [(section, None) for section in SECTIONS.values()],
    ),
    "evaluate": (
        "evaluate",
        [
            (EvaluateConfig, None),
            (DataConfig, {"data_dir", "split_file", "source_file", "on_bad_file", "cache_dir"}),
            (TrackingConfig, {"experiment", "run_name", "bootstrap_samples"}),
        ],
    ),
    "predict": ("predict", [(PredictConfig, None)]),
    "experiment": (
        "experiment run",
        [(ExperimentConfig, None), (TrackingConfig, {"experiment"})],
    ),
    "control": ("control", [(ControlConfig, None)]),
}
TYPES = {str: "string", int: "int", float: "float", bool: "string"}


def entry_point(command: str, parts: list[tuple[type[Any], set[str] | None]]) -> dict[str, Any]:
    """Describe one entry point: its parameters and the command line they fill."""
    parameters, words = {}, [f"python -m cxr_mlflow {command}"]
    for part, only in parts:
        for field in fields(part):
            if only is not None and field.name not in only:
                continue
            plain, choices = option_type(part, field.name)
            told = field.metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")
            default = field.default if plain is not bool else json.dumps(field.default)
            parameters[field.name] = {"type": TYPES[plain], "default": default, "help": told}
            place = f"{{{field.name}}}"
            argument = field.metadata["argument"]
            words.append(place if argument else f"--{flag(field.name)} {place}")
    return {"parameters": parameters, "command": " ".join(words)}


def render() -> str:
    """Return the text of MLproject."""
    project = {
        "name": "cxr_mlflow",
        "conda_env": "conda.yaml",
        "entry_points": {name: entry_point(*told) for name, told in ENTRY_POINTS.items()},
    }
    return HEADER + yaml.safe_dump(project, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    (Path(__file__).parents[1] / "MLproject").write_text(render())
