"""Control models of a finished run: its own recipe, trained on what should not be enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from rich.console import Console

from cxr_mlflow.command_config import ControlConfig
from cxr_mlflow.compare import Compared
from cxr_mlflow.config import AUTO, MaskMode, RunConfig, all_options
from cxr_mlflow.controlled import (
    CONTROL_OF,
    SEEN,
    epochs_of,
    strongest,
    tell_controls,
    wanted_of,
)
from cxr_mlflow.data.prepare import Study, prepare
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.control_words import in_epochs, in_full
from cxr_mlflow.experiment.plan import Cell
from cxr_mlflow.pipeline import run_experiment
from cxr_mlflow.serving.predictor import is_model_folder, open_predictor
from cxr_mlflow.tracking.origin import RUNS, is_run_id, origin_of
from cxr_mlflow.tracking.parents import CELL, PARENT, ROW, get_run, link
from cxr_mlflow.tracking.registry import use_registry
from cxr_mlflow.tracking.tested import options_of_run


@dataclass(frozen=True)
class Controlled:
    """What the control models of a run found."""

    compared: Compared
    lines: tuple[str, ...]


def control_run(asked: ControlConfig) -> Controlled:
    """Train control models beside a run, and write what they score beside its score.

    Each control is a run of its own under the controlled one, with the same options, seed and split
    but another mask mode. One that is finished is not trained again, nor with fewer epochs. What is
    written is derived from all controls that the run has, of this call and of earlier ones.

    Parameters
    ----------
    asked : ControlConfig

    Raises
    ------
    InputError
        If the run is not finished, its images are not those it was tested on any more, or have no
        masks.
    """
    use_registry()
    run = get_run(asked.run_id)
    if run.data.tags.get("kind") != "training" or run.info.status != "FINISHED":
        raise InputError(f"run {asked.run_id} is no finished training run; cxr control takes those")
    if own_run := os.environ.pop(
        "MLFLOW_RUN_ID", None
    ):  # opened by `mlflow run`; controls have theirs
        link(own_run, run)
    config = config_of(asked)
    study = prepare(config.data)
    if study.split.test_digest != run.data.tags["test_digest"]:
        raise InputError(
            f"run {asked.run_id} was tested on other images than {study.catalog.root} gives now; "
            "name its folder with --data-dir"
        )
    modes = modes_of(asked, config.data.mask_mode)
    check_masks(study, modes)
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    cells = {mode: control_cell(config, mode, asked.epochs) for mode in modes}
    budget = asked.epochs or config.train.epochs
    there = {mode: epochs_of(child) for mode, child in strongest(asked.run_id).items()}
    left = [mode for mode in modes if there.get(mode, 0) < budget]
    origin = origin_of(f"{RUNS}{asked.run_id}")
    seconds = origin.epoch_seconds() if origin else []
    for line in budget_lines(modes, left, budget, config.train.epochs, seconds):
        console.print(line, markup=False)
    for mode in left:
        cell = cells[mode]
        console.print(f"control  {cell.row}: {SEEN[mode]}", style="bold")
        key = cell.key(data=study.catalog.digest, split=study.split.digest)
        tags = {"kind": "control", PARENT: asked.run_id, CONTROL_OF: asked.run_id}
        run_experiment(cell.config, tags={**tags, CELL: key, ROW: cell.row})
    beside = tell_controls(asked.run_id)
    told = in_full(beside.found)
    return Controlled(beside.compared, (told, f"run       {asked.run_id} ({run.info.run_name})"))


def check_masks(study: Study, modes: Sequence[str]) -> None:
    """Refuse controls that need masks where images have none, before anything is trained.

    Raises
    ------
    InputError
        If an image lacks a mask: a control is trained and tested on the images of its run.
    """
    number = len(study.catalog.table)
    without = int((study.catalog.table["mask_path"] == "").sum())
    if without and any(map(needs_mask, modes)):
        who = "no image has a mask"
        if without < number:
            who = f"{without:,} of {number:,} images have no mask, and controls use the same images"
        raise InputError(f"{who}: no control is possible; the run stays not controlled")


def run_behind_model(word: str) -> str:
    """Id of the training run that a run id or the URI of a model names.

    Raises
    ------
    InputError
        If this store knows none.
    """
    use_registry()
    if is_run_id(word):
        return word
    told = None
    if is_model_folder(word):
        told = open_predictor(word).trained_on.get("run_id")
    if not (origin := origin_of(word, told)):
        raise InputError(f"{word}: no training run of it in this store; name the run to control")
    return origin.run_id


def modes_of(asked: ControlConfig, own: str) -> list[str]:
    """Mask modes to train as controls of a run that was trained on the mode `own`.

    Raises
    ------
    InputError
        If the run's own mode is asked for.
    """
    if asked.modes == AUTO:
        return wanted_of(own)
    modes = list(dict.fromkeys(asked.modes.split(",")))
    if own in modes:
        raise InputError(f"--modes={own}: that is what the run itself was trained on")
    return modes


def budget_lines(
    modes: Sequence[str], left: Sequence[str], budget: int, own: int, seconds: Sequence[float]
) -> list[str]:
    """Say before anything is trained what it will cost, by what the run's own epochs took.

    Parameters
    ----------
    modes, left : sequence of str
        Mask modes of the controls asked for, and those of them that are to be trained.
    budget, own : int
        Most epochs of a control, and of the run itself.
    seconds : sequence of float
        What each epoch of the run took; empty if it does not tell.
    """
    finished = len(modes) - len(left)
    lines = [f"finished already: {finished} of {len(modes)}"] if finished else []
    if not left:
        return lines
    if budget < own:
        lines.append(f"the run had {in_epochs(own)}: controls of fewer score less, and say little")
    told = f"1 control ({left[0]}) of at most {in_epochs(budget)}"
    if len(left) > 1:
        told = f"{len(left)} controls ({', '.join(left)}) of at most {in_epochs(budget)} each"
    if not seconds:
        return [*lines, f"{told}; the run does not tell how long its epochs took"]
    each = float(np.median(seconds))
    minutes = max(1, round(len(left) * budget * each / 60))
    return [
        *lines,
        f"{told}: up to about {minutes} min of training, at the {each:.1f} s that an epoch of the "
        "run itself took",
    ]


def config_of(asked: ControlConfig) -> RunConfig:
    """Options that the run was made with, at the place where its images are now."""
    options = options_of_run(asked.run_id, [f.name for _, f in all_options()])
    options["cache_dir"] = asked.cache_dir
    if asked.data_dir != "run":
        options["data_dir"] = asked.data_dir
    return RunConfig.from_options(options)


def control_cell(config: RunConfig, mode: str, epochs: int) -> Cell:
    """The same recipe on another view of the images.

    Parameters
    ----------
    config : RunConfig
        Of the run that is controlled.
    mode : str
        Mask mode of the control.
    epochs : int
        Most of them; 0: as many as `config` says.
    """
    name = f"control-{mode}-of-{config.model.model}-{config.train.strategy}-seed{config.train.seed}"
    return Cell(
        mode,
        replace(
            config,
            data=replace(config.data, mask_mode=cast(MaskMode, mode)),
            train=replace(config.train, epochs=epochs or config.train.epochs),
            tracking=replace(config.tracking, run_name=name, register=False),
        ),
    )
