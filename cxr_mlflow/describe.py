"""What a run is called, what its readers must know, and what is printed: words, no decisions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console

from cxr_mlflow.config import AUTO, RunConfig
from cxr_mlflow.data.dataset import Draw
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.environment import git_commit
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.metrics import confusion
from cxr_mlflow.evaluation.report import NOT_CONTROLLED, RunSummary, summary_lines
from cxr_mlflow.evaluation.sheets import plot_samples
from cxr_mlflow.models import LoadedModel
from cxr_mlflow.names import SPLITS
from cxr_mlflow.tracking.run import Tracker
from cxr_mlflow.training.fitting import Trained, training_set

SYNTHETIC = (
    "Synthetic data: drawn by this program, no patient. The scores say that the software works, "
    "and nothing about medicine."
)
SAMPLES_PER_CLASS, COPIES_PER_SAMPLE = 2, 5


def is_demo(study: Study) -> bool:
    """Whether the images are drawn, not taken."""
    return study.catalog.is_demo


def what_readers_must_know(study: Study, loaded: LoadedModel) -> tuple[str, ...]:
    """List what is said wherever a score of this run is shown."""
    warnings = [SYNTHETIC] if is_demo(study) else []
    warnings += loaded.warnings
    if left_out := int(study.catalog.problems["fatal"].sum()):
        warnings.append(f"{left_out} damaged files were left out (data/problems.csv lists them).")
    return (*warnings, NOT_CONTROLLED)


def run_name(config: RunConfig, study: Study) -> str:
    """Name that says what the run is, unless one was given."""
    if config.tracking.run_name != AUTO:
        return config.tracking.run_name
    parts = [config.model.model, config.train.strategy, f"{config.data.image_size}px"]
    parts += [config.data.mask_mode, f"seed{config.train.seed}", study.catalog.name]
    return "-".join(parts)


def grouping_tags(config: RunConfig, study: Study, loaded: LoadedModel) -> dict[str, str]:
    """Tags to group and filter runs by in the UI."""
    return {
        "kind": "training",
        "model": config.model.model,
        "strategy": config.train.strategy,
        "seed": str(config.train.seed),
        "data": study.catalog.name,
        "mask_mode": config.data.mask_mode,
        "weights": loaded.weights,
        "synthetic": str(is_demo(study)).lower(),
        "controls": "not controlled",
        "test_digest": study.split.test_digest,
    }


def about_model(
    config: RunConfig, study: Study, loaded: LoadedModel, warnings: tuple[str, ...]
) -> dict[str, str]:
    """What travels with the weights and the registered version."""
    return {
        "data": study.catalog.name,
        "data_digest": study.catalog.digest,
        "synthetic": str(is_demo(study)).lower(),
        "weights": loaded.weights,
        "model": config.model.model,
        "strategy": config.train.strategy,
        "warnings": " ".join(warnings),
    }


def announce(
    console: Console, name: str, study: Study, loaded: LoadedModel, warnings: tuple[str, ...]
) -> None:
    """Say on the terminal what is about to be trained, and what is unusual about it."""
    console.print(f"[bold]{name}[/bold]")
    counts = study.counts()
    console.print(f"data     {study.catalog.root}")
    for split in SPLITS:
        row = ", ".join(f"{c} {n:,}" for c, n in counts.loc[split].items())
        console.print(f"{split:<8} {int(counts.loc[split].sum()):,} images: {row}")
    console.print(f"weights  {loaded.weights}. {loaded.report}")
    for warning in warnings:
        console.print(f"! {warning}", style="bold yellow", markup=False)


def augmented_sheet(study: Study, config: RunConfig) -> Figure:
    """Training images as the network gets them: the original, then draws of the real pipeline."""
    dataset = training_set(study, config.train, config.data.mask_mode)
    plain = training_set(study, config.train, config.data.mask_mode)
    plain.transform = None
    labels = study.labels[dataset.rows]
    picked = [
        int(index)
        for label in range(len(study.catalog.classes))
        for index in np.flatnonzero(labels == label)[:SAMPLES_PER_CLASS]
    ]
    rows = []
    for index in picked:
        copies = [dataset.pixels(Draw(k + 1, index, index)) for k in range(COPIES_PER_SAMPLE)]
        rows.append(np.stack([plain.pixels(Draw(0, index, index)), *copies]))
    titles = [study.catalog.classes[labels[index]] for index in picked]
    return plot_samples(
        np.stack(rows),
        titles,
        subtitle=f"augment={config.train.augment}, "
        f"mask_mode={config.data.mask_mode}, {config.data.image_size} px",
    )


def summarize(
    config: RunConfig,
    study: Study,
    loaded: LoadedModel,
    trained: Trained,
    result: Assessment,
    warnings: tuple[str, ...],
    name: str,
) -> RunSummary:
    """Gather what note and terminal tell."""
    counts = study.counts().sum(axis=1)
    classes = study.catalog.classes
    true, predicted = (
        pd.Categorical(result.predictions[column], categories=list(classes)).codes.astype(np.int64)
        for column in ("true", "predicted")
    )
    return RunSummary(
        run_name=name,
        model=config.model.model,
        strategy=config.train.strategy,
        weights=loaded.weights,
        seed=config.train.seed,
        image_size=config.data.image_size,
        mask_mode=config.data.mask_mode,
        epochs_run=len(trained.history),
        best_epoch=trained.best_epoch,
        data_name=study.catalog.name,
        data_digest=study.catalog.digest,
        split_digest=study.split.digest,
        num_train=int(counts["train"]),
        num_val=int(counts["val"]),
        num_test=int(counts["test"]),
        classes=classes,
        metrics=result.metrics,
        intervals=result.intervals,
        confusion=confusion(true, predicted, len(classes)),
        warnings=warnings,
        num_duplicate_groups=int((np.bincount(study.duplicates.groups) > 1).sum()),
        git_commit=git_commit(Path(__file__).parents[1]),
    )


def closing_lines(summary: RunSummary, run: Tracker, tracking_uri: str) -> list[str]:
    """Write the last lines of a run: scores, where its pictures are, the model, the next command."""
    told = summary.registered_version or "not registered (--register false)"
    ui = f"mlflow server --backend-store-uri {tracking_uri} --host 127.0.0.1 --port 5000"
    if tracking_uri.startswith("http"):
        ui = f"{tracking_uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    elif os.environ.get("MAKELEVEL"):
        ui = "make ui"
    return [
        "",
        *summary_lines(summary),
        f"run       {run.run_id} ({summary.run_name})",
        f"pictures  {run.artifact_uri()} (test/, training/, data/)",
        f"model     {told}",
        f"see it    {ui}",
    ]
