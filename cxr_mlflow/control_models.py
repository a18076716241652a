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
from cxr_mlflow.compare import Compared, describe
from cxr_mlflow.config import AUTO, MaskMode, RunConfig, all_options
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.data.preprocess import CONTROLS
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.note import with_controls
from cxr_mlflow.experiment.plan import Cell
from cxr_mlflow.pipeline import run_experiment
from cxr_mlflow.serving.predictor import is_model_folder, open_predictor
from cxr_mlflow.tracking.cards import add_control_models
from cxr_mlflow.tracking.origin import RUNS, is_run_id, origin_of
from cxr_mlflow.tracking.parents import CELL, PARENT, ROW, Child, children_of, get_run, link
from cxr_mlflow.tracking.registry import describe_versions_of, use_registry
from cxr_mlflow.tracking.tested import as_tested, options_of_run
from cxr_mlflow.tracking.tracker import Tracker

WHOLE = ("none", "crop")
"""Mask modes that show more than the lungs: their twin on the lungs alone is a control as well."""
SEEN = CONTROLS | {
    "lungs": "the lungs alone",
    "lungs-crop": "the lungs alone, enlarged",
    "crop": "the box around the lungs",
    "none": "the whole image",
}


@dataclass(frozen=True)
class Controlled:
    """What the control models of a run found."""

    compared: Compared
    lines: tuple[str, ...]


def control_run(asked: ControlConfig) -> Controlled:
    """Train control models beside a run, and write what they score beside its score.

    Each control is a run of its own under the controlled one, with the same options, seed and split
    but another mask mode; one that is finished is not trained again.

    Parameters
    ----------
    asked : ControlConfig

    Raises
    ------
    InputError
        If the run is not finished, or its images are not those it was tested on any more.
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
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    modes = modes_of(asked, config.data.mask_mode)
    cells = {mode: control_cell(config, mode, asked.epochs) for mode in modes}
    keys = {
        mode: cell.key(data=study.catalog.digest, split=study.split.digest)
        for mode, cell in cells.items()
    }
    left = [mode for mode in modes if find(asked.run_id, keys[mode]) is None]
    budget = asked.epochs or config.train.epochs
    origin = origin_of(f"{RUNS}{asked.run_id}")
    seconds = origin.epoch_seconds() if origin else []
    for line in budget_lines(modes, left, budget, seconds):
        console.print(line, markup=False)
    done = []
    for mode, cell in cells.items():
        key = keys[mode]
        if mode in left:
            console.print(f"control  {cell.row}: {SEEN.get(mode, mode)}", style="bold")
            tags = {"kind": "control", PARENT: asked.run_id, "control_of": asked.run_id}
            run_experiment(cell.config, tags={**tags, CELL: key, ROW: cell.row})
        child = find(asked.run_id, key)
        assert child is not None, f"the control {cell.title} left no finished run"
        done.append((mode, as_tested(child.run, cell.row)))
    own = as_tested(run, config.data.mask_mode)
    compared = describe(
        [own, *(tested for _, tested in done)],
        title=f"Controls of {run.info.run_name}",
        baseline=config.data.mask_mode,
        samples=config.tracking.bootstrap_samples,
    )
    words = budget_words(budget, config.train.epochs)
    found = write_beside(compared, asked.run_id, modes, words)
    return Controlled(compared, (found, f"run       {asked.run_id} ({run.info.run_name})"))


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
        wanted = [*CONTROLS, *(["lungs"] if own in WHOLE else [])]
        return [mode for mode in wanted if mode != own]
    modes = list(dict.fromkeys(asked.modes.split(",")))
    if own in modes:
        raise InputError(f"--modes={own}: that is what the run itself was trained on")
    return modes


def budget_lines(
    modes: Sequence[str], left: Sequence[str], budget: int, seconds: Sequence[float]
) -> list[str]:
    """Say before anything is trained what it will cost, by what the run's own epochs took."""
    finished = len(modes) - len(left)
    lines = [f"{finished} of {len(modes)} controls are finished already"] if finished else []
    if not left:
        return lines
    told = f"1 control ({left[0]}) of at most {budget} epochs"
    if len(left) > 1:
        told = f"{len(left)} controls ({', '.join(left)}) of at most {budget} epochs each"
    if not seconds:
        return [*lines, f"{told}; the run does not tell how long its epochs took"]
    each = float(np.median(seconds))
    minutes = max(1, round(len(left) * budget * each / 60))
    return [
        *lines,
        f"{told}: up to about {minutes} min of training, at the {each:.1f} s that an epoch of the "
        "run itself took",
    ]


def budget_words(budget: int, own: int) -> str:
    """Say in how many epochs controls were trained, if not in as many as the run."""
    return "" if budget == own else f", trained for at most {budget} epochs instead of {own},"


def config_of(asked: ControlConfig) -> RunConfig:
    """Options that the run was made with, at the place where its images are now."""
    options = options_of_run(asked.run_id, [f.name for _, f in all_options()])
    options["cache_dir"] = asked.cache_dir
    if asked.data_dir != "run":
        options["data_dir"] = asked.data_dir
    return RunConfig.from_options(options)


def control_cell(config: RunConfig, mode: str, epochs: int) -> Cell:
    """The same recipe on another view of the images."""
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


def find(run_id: str, key: str) -> Child | None:
    """Finished control of a run that has a key; None if there is none."""
    done = [c for c in children_of(get_run(run_id)) if c.cell == key and c.is_done]
    return done[-1] if done else None


def write_beside(compared: Compared, run_id: str, modes: Sequence[str], budget: str = "") -> str:
    """Put what the controls scored on the controlled run and the versions made from it.

    `budget` says in words how the controls' training differs from the run's, if it does.
    """
    rows = {row.row: row for row in compared.comparison.rows}
    gaps = {pair.a: pair.difference for pair in compared.comparison.pairs}
    metrics: dict[str, float] = {}
    told = []
    for mode in modes:
        score, gap = rows[mode].scores["f1_macro"], gaps[mode]
        key = f"control/{mode.replace('-', '_')}"
        metrics |= {f"{key}/f1_macro": score.value, f"{key}/f1_macro_low": score.low}
        metrics |= {f"{key}/f1_macro_high": score.high, f"{key}/difference": gap.value}
        metrics |= {f"{key}/difference_low": gap.low, f"{key}/difference_high": gap.high}
        what = SEEN.get(mode, mode)
        told.append(f"on {what} {score.value:.3f} ({score.low:.3f}–{score.high:.3f})")
    found = f"Controls: the same recipe{budget} scores macro F1 {', '.join(told)}."
    run = get_run(run_id)
    tracker = Tracker(run_id, run.info.experiment_id)
    tracker.log_metrics(metrics)
    for name, text in (("report.html", compared.html()), ("report.md", compared.markdown())):
        tracker.log_text(text, f"controls/{name}")
    note = with_controls(run.data.tags.get("mlflow.note.content", ""), found)
    tracker.log_text(note, "README.md")
    tracker.set_tags({"controls": found.removeprefix("Controls: "), "mlflow.note.content": note})
    describe_versions_of(run_id, note, {"controls": found.removeprefix("Controls: ")})
    scores = {SEEN.get(mode, mode): rows[mode].scores["f1_macro"] for mode in modes}
    add_control_models(
        tracker,
        {what: f"{s.value:.3f} ({s.low:.3f}–{s.high:.3f}){budget}" for what, s in scores.items()},
    )
    return found
