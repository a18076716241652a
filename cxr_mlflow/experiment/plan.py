"""An experiment file: a small diff over the defaults, turned into the cells to train."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.config import (
    FILE,
    FROM_SCRATCH,
    NONE,
    DataConfig,
    RunConfig,
    TrackingConfig,
)
from cxr_mlflow.errors import InputError
from cxr_mlflow.labels import label_rows, recipe
from cxr_mlflow.names import slug
from cxr_mlflow.typed_options import near_name, typed_options

KEYS = ("name", "description", "base", "rows", "matrix", "seeds")
NOT_IN_FILE = {"seed": "write it under seeds:", "run_name": "cells get names of their own"}
NOT_IN_FILE |= {"experiment": "give it as --experiment"}
SHARED = {"data_dir", "cache_dir", "on_bad_file", "split_seed", "val_fraction", "test_fraction"}
SHARED |= {"split_file", "source_file", "register", "registered_model", "bootstrap_samples"}
"""Options that hold for all cells: they stand under `base`."""


@dataclass(frozen=True)
class Cell:
    """One run to be made: a row of the table, repeated with one seed."""

    row: str
    config: RunConfig

    @property
    def seed(self) -> int:
        """Seed of weights, order and augmentation."""
        return self.config.train.seed

    @property
    def title(self) -> str:
        """Row and seed in words."""
        return f"{self.row}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Name of the run and of its files."""
        words = self.row.replace("=", "-").replace(".", "p").split(", ")
        return "-".join([*map(slug, words), f"seed{self.seed}"])

    @cached_property
    def recipe(self) -> dict[str, str]:
        """Options that decide what comes out, its seed among them.

        Not the path of a split: its digest is among the evidence, wherever the file lies.
        """
        return recipe(self.config.to_params()) | {"split_file": NONE}

    def key(self, *, known: Container[str] | None = None, **evidence: str) -> str:
        """Digest of all that decides what comes out of the cell.

        Two cells with one key are the same run; a finished one is never trained again.

        Parameters
        ----------
        known : container of str, optional
            The options there were when the key was made; all of today's by default.
        **evidence : str
            Digests of data, split and first weights.
        """
        told = {name: v for name, v in self.recipe.items() if known is None or name in known}
        text = json.dumps({"recipe": told, **evidence}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def is_made_by(self, key: str, params: Mapping[str, str], **evidence: str) -> bool:
        """Whether a run is an attempt at this cell, also one made when there were fewer options.

        What a run did not know it did as the default has it, so the cell must have the default
        there. All that it knew is in its key by value: where a default changed, it does not match.

        Parameters
        ----------
        key : str
            Key of the cell it was made for.
        params : mapping
            Parameters it logged; of names only their presence counts.
        **evidence : str
            As in `key`.
        """
        if key == self.key(**evidence):
            return True
        defaults = recipe({})
        later = [name for name in self.recipe if name not in params]
        if not later or any(self.recipe[name] != defaults[name] for name in later):
            return False
        return key == self.key(known=params, **evidence)


@dataclass(frozen=True)
class Plan:
    """The cells of an experiment file, in the order they are trained: seed by seed."""

    name: str
    description: str
    cells: tuple[Cell, ...]
    text: str
    tracking: TrackingConfig
    """As the file asks: where the best model goes. The cells themselves register nothing."""

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Labels of the rows, in the order of the file."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def data(self) -> DataConfig:
        """The data options that all cells share."""
        return self.cells[0].config.data

    def inputs(self) -> Iterator[DataConfig]:
        """Yield each way in which the images are prepared for the cells, once."""
        yield from dict.fromkeys(cell.config.data for cell in self.cells)


def load_plan(asked: ExperimentConfig, *, experiment: str) -> Plan:
    """Read an experiment file and lay out its cells.

    A file holds `name`, `description`, `base` (options of all cells), `rows` (a list of option
    sets), `matrix` (option -> list of values, crossed with each other and with the rows) and
    `seeds`. What stands further down wins: defaults, base, row, matrix, then the command line.

    Parameters
    ----------
    asked : ExperimentConfig
    experiment : str
        MLflow experiment of the runs.

    Raises
    ------
    InputError
        If the file cannot be read, or says something that is no option; file and key are named.
    """
    path = Path(asked.file).expanduser()
    text, told = _read(path)
    given = _given(asked)
    base = _options(told.get("base") or {}, f"{path}: base")
    rows = _list(told.get("rows", [{}]), f"{path}: rows", "a list of option sets")
    matrix = told.get("matrix") or {}
    if not isinstance(matrix, dict):
        raise InputError(f"{path}: matrix must map option names to lists of values")
    names = [str(name) for name in matrix]
    choices = [_list(matrix[n], f"{path}: matrix: {n}", "a list of values") for n in names]
    seeds = _seeds(told.get("seeds", [0]) if asked.seeds == FILE else asked.seeds, path)
    settings: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        own = _options(row or {}, where, shared=False)
        for values in itertools.product(*choices):
            crossed = dict(zip(names, values, strict=True))
            crossed = _options(crossed, f"{path}: matrix", shared=False)
            if twice := sorted(crossed.keys() & own.keys()):
                raise InputError(f"{where} and the matrix both set {twice[0]}; leave one out")
            each = {**base, **own, **crossed, **given, "experiment": experiment}
            if each.get("model") in FROM_SCRATCH:  # "base" speaks of the others' first weights
                for name in {"weights", "freeze"} - own.keys():
                    each.pop(name, None)
            settings.append(each)
    configs = [_config(each, str(path)) for each in settings]
    recipes = [recipe(config.to_params()) for config in configs]
    labels = label_rows([{k: v for k, v in each.items() if k != "seed"} for each in recipes])
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise InputError(f"{path}: two rows are the same run ({twice[0]}); leave one out")
    cells = [
        Cell(label, replace(config, train=replace(config.train, seed=seed)))
        for seed in seeds
        for label, config in zip(labels, configs, strict=True)
    ]
    name = str(told.get("name") or path.stem)
    if not re.fullmatch(r"[\w. -]{1,100}", name):
        raise InputError(f"{path}: name {name!r} may hold letters, digits, spaces and . _ - only")
    about = " ".join(str(told.get("description") or "").split())
    return Plan(name, about, tuple(map(_as_cell, cells)), text, configs[0].tracking)


def _as_cell(cell: Cell) -> Cell:
    tracking = replace(cell.config.tracking, run_name=cell.name, register=False)
    return replace(cell, config=replace(cell.config, tracking=tracking))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        told = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no experiment file can be read there ({error})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(told, dict):
        raise InputError(f"{path} must hold the keys {', '.join(KEYS)}")
    if unknown := [str(key) for key in told if key not in KEYS]:
        raise InputError(f"{path}: unknown key {unknown[0]!r}{near_name(unknown[0], KEYS)}")
    return text, told


def _given(asked: ExperimentConfig) -> dict[str, Any]:
    """Options that the command line sets over the file."""
    given: dict[str, Any] = {}
    if asked.overrides != NONE:
        for part in asked.overrides.split(","):
            name, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"--overrides: {part!r} is not NAME=VALUE")
            given[name.strip().replace("-", "_")] = value.strip()
    given = _options(given, "--overrides")
    if asked.data_dir != FILE:
        given["data_dir"] = asked.data_dir
    if asked.weights != FILE:
        given["weights"] = asked.weights
    return given


def _list(value: Any, where: str, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} must be {what}")
    return value


def _seeds(told: Any, path: Path) -> list[int]:
    """Read `[0, 1]`, or the text '0,1' or '0-4'."""
    parts = told.split(",") if isinstance(told, str) else told
    try:
        seeds: list[int] = []
        for part in parts:
            first, dash, last = str(part).strip().partition("-")
            seeds += range(int(first), int(last) + 1) if dash else [int(first)]
    except (TypeError, ValueError):
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        where = "--seeds" if isinstance(told, str) else f"{path}: seeds"
        raise InputError(f"{where}: {told!r} is not a list of different seeds, as 0,1,2 or 0-4")
    return seeds


def _options(told: Any, where: str, *, shared: bool = True) -> dict[str, Any]:
    """Check what may stand in a place of the file; return it in the types the config takes."""
    if not isinstance(told, dict):
        raise InputError(f"{where} must be a set of options, as {{model: cnn, lr: 0.003}}")
    for name in told:
        if name in NOT_IN_FILE:
            raise InputError(f"{where}: {name} cannot be set here; {NOT_IN_FILE[name]}")
        if not shared and name in SHARED:
            raise InputError(f"{where}: all cells share {name}; set it under base")
    return typed_options(told, where)


def _config(options: Mapping[str, Any], where: str) -> RunConfig:
    try:
        return RunConfig.from_options(options)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
