"""The one place that joins the parts: a configuration becomes a trained, told, registered model."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from cxr_mlflow.calibrate import Calibration, CalibrationCheck, calibrate, check
from cxr_mlflow.config import RunConfig
from cxr_mlflow.controls import audit_study, source_controls
from cxr_mlflow.data.audit import Audit
from cxr_mlflow.data.audit_report import write_page
from cxr_mlflow.data.dataset import Draw
from cxr_mlflow.data.duplicates import plot_contact_sheet
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.describe import (
    Plan,
    announce,
    augmented_sheet,
    closing_lines,
    summarize,
)
from cxr_mlflow.environment import package_versions
from cxr_mlflow.evaluation.assessment import Assessment, assess, validation_scores
from cxr_mlflow.evaluation.plots import (
    plot_class_distribution,
    plot_draws,
    plot_history,
    plot_worst_errors,
)
from cxr_mlflow.evaluation.report import RunSummary, metrics_json, worst_errors, write_note
from cxr_mlflow.models import load_model
from cxr_mlflow.names import SPLITS
from cxr_mlflow.registration import GATE_FILE, enter_registry
from cxr_mlflow.serving.package import log_model, write_folder
from cxr_mlflow.tracking.record import record_assessment, record_end, record_epoch, record_start
from cxr_mlflow.tracking.registry import NotRegistered
from cxr_mlflow.tracking.run import Tracker, open_run, use_tracking_uri
from cxr_mlflow.training.callbacks import pick_device
from cxr_mlflow.training.checkpoint import save_weights
from cxr_mlflow.training.fitting import Trained, score_split, train, training_set
from cxr_mlflow.training.loop import EpochResult


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves its caller with."""

    run_id: str
    metrics: Mapping[str, float]
    registered: str | None
    """Name, version and alias in words; None if it was not to be registered."""
    lines: tuple[str, ...]


def run_experiment(config: RunConfig, *, tags: Mapping[str, str] | None = None) -> Outcome:
    """Train one configuration, test it, tell MLflow everything, register the model.

    Parameters
    ----------
    config : RunConfig
    tags : mapping of str to str, optional
        Tags of the run, beside those that every run has.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        If data, weights or options cannot be used as asked. Where that shows before the run is
        opened, no run is opened.
    NotRegistered
        If the model did not load in a clean process; the run has everything else and is FAILED.
    """
    tracking_uri = use_tracking_uri()
    device = pick_device(config.train.device)
    study = prepare(config.data)
    classes, mask_mode = study.catalog.classes, config.data.mask_mode
    loaded = load_model(
        config.model.model, len(classes), weights=config.model.weights, seed=config.train.seed
    )
    plan = Plan(config, study, loaded)
    announce(Console(file=sys.stderr, highlight=False, soft_wrap=True), plan)
    audit = audit_study(study, config.data)
    with open_run(config.tracking.experiment, plan.name, {**plan.tags(), **(tags or {})}) as run:
        start_record(run, plan, audit)
        trained = train(
            loaded.network,
            study,
            config.train,
            mask_mode=mask_mode,
            device=device,
            measure=lambda logits, labels: validation_scores(logits, labels, classes),
            callbacks=[EpochRecorder(run, classes)],
        )
        logits = {
            split: score_split(trained, study, split, mask_mode=mask_mode, device=device)[0]
            for split in ("val", "test")
        }
        fitted, checked, result = judge(plan, logits["val"], logits["test"])
        run.log_metrics({f"test/{name}": value for name, value in checked.metrics.items()})
        record_assessment(run, result)
        draw_sheets(run, plan, trained, result)
        controls = source_controls(study, result, samples=config.tracking.bootstrap_samples)
        run.log_metrics(controls.metrics)
        found = {"data audit": audit.headline(), **controls.lines, **checked.lines}
        summary = summarize(plan, trained, result, found)
        model_uri = log_network(run, plan, trained, fitted)
        refused: NotRegistered | None = None
        if config.tracking.register:
            try:
                registered = register_trained(run, plan, result, model_uri, summary)
            except NotRegistered as error:  # the scores are told all the same, then it is raised
                refused, registered = error, f"not registered: {error}"
            summary = replace(summary, registered_version=registered)
        record_end(
            run,
            note=write_note(summary),
            metrics_json=metrics_json(result.metrics, result.intervals),
            tags={"registered": summary.registered_version or "no"},
            metrics={
                "best_epoch": float(trained.best_epoch),
                "best_val_f1_macro": float(trained.history["val/f1_macro"].max()),
            },
        )
        if refused:
            raise refused
    lines = closing_lines(summary, run, tracking_uri)
    return Outcome(run.run_id, result.metrics, summary.registered_version, tuple(lines))


def judge(
    plan: Plan, val_logits: NDArray[np.float64], test_logits: NDArray[np.float64]
) -> tuple[Calibration, CalibrationCheck, Assessment]:
    """Calibrate on the validation images, then score the test images with it."""
    study, config = plan.study, plan.config
    classes, samples = study.catalog.classes, config.tracking.bootstrap_samples
    rows = {split: study.split.rows(split) for split in ("val", "test")}
    groups = {split: study.duplicates.groups[rows[split]] for split in rows}
    fitted = calibrate(val_logits, study.labels[rows["val"]], groups["val"], config.calibration)
    told = plan.caption(f"test, n = {len(rows['test']):,}")
    result = assess(
        study.catalog.table.iloc[rows["test"]].reset_index(drop=True),
        fitted.probabilities(test_logits),
        classes,
        split="test",
        subtitle=told,
        samples=samples,
        groups=groups["test"],
    )
    checked = check(
        fitted,
        test_logits,
        result.y_true,
        classes,
        groups=groups["test"],
        samples=samples,
        subtitle=told,
    )
    result = replace(
        result,
        predictions=fitted.add_columns(result.predictions, result.probabilities, classes),
        figures={**result.figures, **checked.figures},
    )
    return fitted, checked, result


class EpochRecorder:
    """Hands each epoch to MLflow while the loop goes on."""

    def __init__(self, tracker: Tracker, classes: tuple[str, ...]) -> None:
        self.tracker, self.classes = tracker, classes

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """Nothing is logged within an epoch."""

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """Log the epoch."""
        draws = dict(zip(self.classes, result.draws.tolist(), strict=True))
        record_epoch(self.tracker, result.epoch, result.metrics, draws)
        return False


def start_record(run: Tracker, plan: Plan, audit: Audit) -> None:
    """Collect what a run tells before training."""
    study = plan.study
    catalog, split = study.catalog, study.split
    sheets: dict[str, Figure] = {
        "data/class_distribution.png": plot_class_distribution(
            study.counts(), subtitle=plan.caption()
        ),
        "data/augmented_samples.png": augmented_sheet(plan),
    }
    if len(study.duplicates.pairs):
        sheets["data/near_duplicates.png"] = plot_contact_sheet(catalog.table, study.duplicates)
    told = split.table.drop(columns="group")  # whole numbers make MLflow warn of missing values
    contexts = zip(SPLITS, ("training", "validation", "testing"), strict=True)
    record_start(
        run,
        params={
            **plan.config.to_params(),
            "data_digest": catalog.digest,
            "split_digest": split.digest,
            "test_digest": split.test_digest,
            "first_weights": plan.loaded.weights,
            "git_commit": plan.commit,
            **package_versions(),
        },
        config=asdict(plan.config),
        tables={"data/problems.csv": catalog.problems},
        figures=sheets,
        datasets={
            context: (told[told["split"] == name], f"{catalog.name}-{name}", catalog.digest)
            for name, context in contexts
        },
    )
    page = write_page(audit, catalog, study.duplicates, split=split)
    run.log_text(page, "data/audit.html")
    run.log_text(audit.to_json(), "data/audit.json")
    run.log_metrics(audit.metrics())
    with tempfile.TemporaryDirectory() as folder:
        split.save(Path(folder) / "split.csv")
        run.log_file(Path(folder) / "split.csv", "data")


def draw_sheets(run: Tracker, plan: Plan, trained: Trained, result: Assessment) -> None:
    """Log how training went, and the errors the model was surest of."""
    study, config = plan.study, plan.config
    caption = plan.caption()
    run.log_csv(trained.history, "training/history.csv")
    run.log_csv(trained.draws, "training/draws.csv")
    curves = plot_history(trained.history, best_epoch=trained.best_epoch, subtitle=caption)
    run.log_figure(curves, "training/curves.png")
    run.log_comparable(curves, "training_curves")
    classes = study.catalog.classes
    counts = np.bincount(study.labels[study.split.rows("train")], minlength=len(classes))
    drawn = plot_draws(
        trained.draws,
        classes,
        available=dict(zip(classes, counts.tolist(), strict=True)),
        subtitle=caption,
    )
    run.log_figure(drawn, "training/draws.png")
    worst = worst_errors(result.predictions)
    if len(worst):
        dataset = training_set(study, config.train, config.data.mask_mode)
        dataset.transform, dataset.rows = None, study.split.rows("test")
        pixels = np.stack([dataset.pixels(Draw(0, 0, int(place))) for place in worst.index])
        sheet = plot_worst_errors(pixels, worst, subtitle=caption)
        run.log_figure(sheet, "test/worst_errors.png")


def log_network(run: Tracker, plan: Plan, trained: Trained, fitted: Calibration) -> str:
    """Log the weights, and the exported network as an MLflow model; return the model's URI."""
    about = plan.about_model() | {"run_id": run.run_id}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_weights(trained.state, folder / "weights.safetensors", about=about)
        run.log_file(folder / "weights.safetensors", "weights")
        write_folder(
            folder / "model",
            trained.network.cpu(),
            classes=plan.study.catalog.classes,
            image_size=plan.config.data.image_size,
            mask_mode=plan.config.data.mask_mode,
            trained_on=about,
            temperature=fitted.temperature,
            abstaining=fitted.abstaining,
            prediction_sets=fitted.sets,
        )
        model_uri = log_model(folder / "model", run_id=run.run_id, tags=about)
    run.set_tags({"model_uri": model_uri})
    return model_uri


def register_trained(
    run: Tracker, plan: Plan, result: Assessment, model_uri: str, summary: RunSummary
) -> str:
    """Register the model just logged, see `enter_registry`."""
    config, study = plan.config, plan.study
    return enter_registry(
        model_uri,
        study.catalog.table.iloc[study.split.rows("test")],
        result.probabilities,
        mask_mode=config.data.mask_mode,
        tracking=config.tracking,
        tags=plan.provenance() | {"f1_macro": f"{result.metrics['f1_macro']:.4f}"},
        description=write_note(summary),
        log_gate=lambda text: run.log_text(text, GATE_FILE),
    )
