"""What a run is called, what its readers must know, and what is printed: words, no decisions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from cxr_mlflow.config import AUTO, RunConfig
from cxr_mlflow.data.audit import Audit
from cxr_mlflow.data.dataset import Draw
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.data.preprocess import CONTROLS
from cxr_mlflow.environment import git_commit, package_versions
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.control_facts import CONTROL, NONE_FOUND
from cxr_mlflow.evaluation.metrics import confusion
from cxr_mlflow.evaluation.note import NO_CONTROLS_YET
from cxr_mlflow.evaluation.plots import plot_samples
from cxr_mlflow.evaluation.report import NOT_CONTROLLED, RunSummary, summary_lines
from cxr_mlflow.models import LoadedModel
from cxr_mlflow.names import SPLITS
from cxr_mlflow.tracking.journaled import JournaledLog
from cxr_mlflow.tracking.tracker import Tracker
from cxr_mlflow.tracking.views import view_links
from cxr_mlflow.training.fitting import Trained, training_set

SYNTHETIC = (
    "Synthetic data: drawn by this program, no patient. The scores say that the software works, "
    "and nothing about medicine."
)
NONE_YET = "none when the model was made; its training run tells of later ones"
"""Fact `controls` in the files of a model."""
LOCAL_UI = "http://127.0.0.1:5000"
"""Where `make ui`, and the command that is printed, serve a store on this machine."""
CODE_DIR = Path(__file__).parents[1]
SAMPLES_PER_CLASS, COPIES_PER_SAMPLE = 2, 5


@dataclass(frozen=True)
class Plan:
    """A run that is about to be made: its options, images, first weights, and their audit."""

    config: RunConfig
    study: Study
    loaded: LoadedModel
    audit: Audit

    @property
    def is_demo(self) -> bool:
        """Whether the images are drawn, not taken."""
        return self.study.catalog.is_demo

    @cached_property
    def name(self) -> str:
        """What the run is, in a word, unless a name was given."""
        config = self.config
        if config.tracking.run_name != AUTO:
            return config.tracking.run_name
        parts = [config.model.model, config.train.strategy, f"{config.data.image_size}px"]
        parts += [config.data.mask_mode, f"seed{config.train.seed}", self.study.catalog.name]
        return "-".join(parts)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What is said wherever a score of this run is shown."""
        warnings = [SYNTHETIC] if self.is_demo else []
        warnings += self.loaded.warnings
        warnings += left_out(self.study.catalog.problems)
        warnings += self.audit.warnings
        if self.control:
            return (*warnings, f"A control: this model sees {self.control}, and is no classifier.")
        return (*warnings, NOT_CONTROLLED)

    @property
    def control(self) -> str | None:
        """What the model sees, in words, if it is trained as a control; else None."""
        return CONTROLS.get(self.config.data.mask_mode)

    @cached_property
    def commit(self) -> str:
        """Commit of this checkout, asked once: a run that takes hours names one commit."""
        return git_commit(CODE_DIR)

    def caption(self, what: str = "") -> str:
        """Subtitle of a figure: the run, what is shown, and what must not be overlooked."""
        parts = [self.name, what, f"weights={self.loaded.weights}"]
        parts += ["synthetic data"] if self.is_demo else []
        return ", ".join(part for part in parts if part)

    def tags(self) -> dict[str, str]:
        """Tags to group and filter runs by in the UI."""
        return {
            "kind": "training",
            "model": self.config.model.model,
            "strategy": self.config.train.strategy,
            "seed": str(self.config.train.seed),
            "mask_mode": self.config.data.mask_mode,
            "test_digest": self.study.split.test_digest,
            **self.provenance(),
        }

    @property
    def unregistered(self) -> str:
        """Why the model is not to be registered; empty if it is to be."""
        if not self.config.tracking.register:
            return "--register false"
        return CONTROL + self.control if self.control else ""

    def params(self) -> dict[str, str]:
        """Parameters of the run: the whole config, digests, commit, versions."""
        return {
            **self.config.to_params(),
            "data_digest": self.study.catalog.digest,
            "split_digest": self.study.split.digest,
            "test_digest": self.study.split.test_digest,
            "first_weights": self.loaded.weights,
            "git_commit": self.commit,
            **package_versions(),
        }

    def provenance(self) -> dict[str, str]:
        """What a run and a registered version both carry."""
        return {
            "data": self.study.catalog.name,
            "weights": self.loaded.weights,
            "synthetic": str(self.is_demo).lower(),
            "controls": CONTROL + self.control if self.control else NONE_FOUND,
        }

    def about_model(self) -> dict[str, str]:
        """What travels with the weights and the served model, and is never told anew.

        Control models come later, so that none was there is told as of when the model was made.
        """
        warnings = [NO_CONTROLS_YET if w == NOT_CONTROLLED else w for w in self.warnings]
        provenance = self.provenance()
        if provenance["controls"] == NONE_FOUND:
            provenance["controls"] = NONE_YET
        return {
            "model": self.config.model.model,
            "strategy": self.config.train.strategy,
            "data_digest": self.study.catalog.digest,
            "warnings": " ".join(warnings),
            **provenance,
        }


def left_out(problems: pd.DataFrame) -> list[str]:
    """Warn of damaged files that are not in the data that were used."""
    number = int(problems["fatal"].sum())
    return [f"{number} damaged files were left out: see data/problems.csv."] if number else []


def announce(console: Console, plan: Plan) -> None:
    """Say on the terminal what is about to be trained, and what is unusual about it."""
    console.print(plan.name, style="bold", markup=False)
    console.print(f"data     {plan.study.catalog.root}", markup=False)
    for split, row in plan.study.counts().iterrows():
        told = ", ".join(f"{name} {count:,}" for name, count in row.items())
        console.print(f"{split:<8} {row.sum():,} images: {told}")
    kept = f", the first {n} stages kept" if (n := plan.config.model.freeze) else ""
    console.print(f"weights  {plan.loaded.weights}{kept}", markup=False)
    if plan.loaded.report:
        console.print(f"         {plan.loaded.report}", markup=False)
    for warning in plan.warnings:
        console.print(f"! {warning}", style="bold yellow", markup=False)


def augmented_sheet(plan: Plan) -> Figure:
    """Training images as the network gets them: the original, then draws of the real pipeline."""
    config, study = plan.config, plan.study
    dataset = training_set(study, config.train, config.data.mask_mode)
    labels = study.labels[dataset.rows]
    picked = [
        int(row)
        for label in range(len(study.catalog.classes))
        for row in np.flatnonzero(labels == label)[:SAMPLES_PER_CLASS]
    ]
    draws = [[Draw(k + 1, row, row) for k in range(COPIES_PER_SAMPLE)] for row in picked]
    copies = [np.stack([dataset.pixels(draw) for draw in each]) for each in draws]
    dataset.transform = None
    originals = [dataset.pixels(Draw(0, row, row))[None] for row in picked]
    return plot_samples(
        np.stack([np.concatenate(pair) for pair in zip(originals, copies, strict=True)]),
        [study.catalog.classes[labels[row]] for row in picked],
        subtitle=plan.caption(f"augment={config.train.augment}"),
    )


def summarize(
    plan: Plan, trained: Trained, result: Assessment, controls: Mapping[str, str]
) -> RunSummary:
    """Gather what note and terminal tell; `controls` maps each control to what it found."""
    config, study = plan.config, plan.study
    sizes = {split: len(study.split.rows(split)) for split in SPLITS}
    classes = study.catalog.classes
    return RunSummary(
        run_name=plan.name,
        model=config.model.model,
        strategy=config.train.strategy,
        weights=plan.loaded.weights,
        seed=config.train.seed,
        image_size=config.data.image_size,
        mask_mode=config.data.mask_mode,
        epochs_run=len(trained.history),
        best_epoch=trained.best_epoch,
        data_name=study.catalog.name,
        data_digest=study.catalog.digest,
        split_digest=study.split.digest,
        num_train=sizes["train"],
        num_val=sizes["val"],
        num_test=sizes["test"],
        classes=classes,
        metrics=result.metrics,
        intervals=result.intervals,
        confusion=confusion(result.y_true, result.probabilities.argmax(axis=1), len(classes)),
        warnings=plan.warnings,
        num_duplicate_groups=int((np.bincount(study.duplicates.groups) > 1).sum()),
        git_commit=plan.commit,
        controls=controls,
    )


def closing_lines(
    summary: RunSummary, run: JournaledLog, tracking_uri: str, became: str
) -> list[str]:
    """Write the last lines of a run: scores, where its pictures are, the model.

    Parameters
    ----------
    summary : RunSummary
    run : JournaledLog
    tracking_uri : str
    became : str
        What became of the model, in words.
    """
    return [
        "",
        *summary_lines(summary),
        *where_lines(summary.run_name, run, tracking_uri),
        f"model     {became}",
    ]


def where_lines(name: str, run: Tracker | JournaledLog, tracking_uri: str) -> list[str]:
    """Tell where a run is to be seen."""
    if not run.experiment_id:
        return [f"run       {name}, not at MLflow yet", f"pictures  {run.artifact_uri()}"]
    address = tracking_uri if tracking_uri.startswith("http") else LOCAL_UI
    if tracking_uri.startswith("http"):
        ui = f"{tracking_uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    elif os.environ.get("MAKELEVEL"):
        ui = "make ui"
    else:
        ui = f"mlflow server --backend-store-uri {tracking_uri} --host 127.0.0.1 --port 5000"
    return [
        f"run       {run.run_id} ({name})",
        f"pictures  {run.artifact_uri()}",
        f"see it    {ui}",
        f"compare   {view_links(address, run.experiment_id)['charts']}",
    ]
