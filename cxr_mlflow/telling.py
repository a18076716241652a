"""What a training run tells, moment by moment: start, epochs, pictures, the model."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

from cxr_mlflow.calibrate import Calibration
from cxr_mlflow.data.audit_report import write_page
from cxr_mlflow.data.contact_sheet import plot_contact_sheet
from cxr_mlflow.data.dataset import Draw
from cxr_mlflow.data.fingerprints import save_fingerprints
from cxr_mlflow.data.prepare import Study, source_file
from cxr_mlflow.describe import Plan, augmented_sheet
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.plots import (
    plot_class_distribution,
    plot_draws,
    plot_history,
    plot_worst_errors,
)
from cxr_mlflow.evaluation.report import RunSummary, worst_errors, write_note
from cxr_mlflow.handover import tell_gate, tell_model, tell_registration
from cxr_mlflow.names import SPLITS, slug
from cxr_mlflow.registration import gate_files
from cxr_mlflow.serving.package import write_folder
from cxr_mlflow.tracking.journaled import JournaledRun
from cxr_mlflow.tracking.record import record_epoch, record_start
from cxr_mlflow.tracking.tracker import Log
from cxr_mlflow.training.fitting import Trained, training_set
from cxr_mlflow.training.loop import EpochResult
from cxr_mlflow.weights import save_weights


class EpochRecorder:
    """Hands each epoch to MLflow while the loop goes on."""

    def __init__(self, log: Log, classes: tuple[str, ...]) -> None:
        self.log, self.classes = log, classes

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """Nothing is logged within an epoch."""

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """Log the epoch."""
        draws = dict(zip(self.classes, result.draws.tolist(), strict=True))
        record_epoch(self.log, result.epoch, result.metrics, draws)
        return False


def start_record(run: Log, plan: Plan) -> None:
    """Collect what a run tells before training."""
    study, audit = plan.study, plan.audit
    catalog, split = study.catalog, study.split
    sheets: dict[str, Figure] = {
        "data/class_distribution.png": plot_class_distribution(
            study.counts(), subtitle=plan.caption()
        ),
        "data/augmented_samples.png": augmented_sheet(plan),
    }
    if len(study.duplicates.pairs):
        sheets["data/near_duplicates.png"] = plot_contact_sheet(catalog.table, study.duplicates)
    record_start(
        run,
        params=plan.params(),
        config=asdict(plan.config),
        tables={"data/problems.csv": catalog.problems},
        figures=sheets,
        datasets=datasets_of(study),
    )
    page = write_page(audit, catalog, study.duplicates, split=split)
    run.log_text(page, "data/audit.html")
    run.log_text(audit.to_json(), "data/audit.json")
    run.log_metrics(audit.metrics())
    if corrected := source_file(plan.config.data):
        run.log_file(corrected, "data")
    with tempfile.TemporaryDirectory() as folder:
        split.save(Path(folder) / "split.csv")
        run.log_file(Path(folder) / "split.csv", "data")
        save_fingerprints(Path(folder) / "fingerprints.npz", catalog, split)
        run.log_file(Path(folder) / "fingerprints.npz", "data")


def datasets_of(study: Study) -> dict[str, tuple[pd.DataFrame, str, str]]:
    """Images of each split as MLflow datasets: context to (table, name, digest)."""
    catalog = study.catalog
    told = study.split.table.drop(columns="group")  # whole numbers: MLflow warns of missing values
    contexts = zip(SPLITS, ("training", "validation", "testing"), strict=True)
    return {
        context: (told[told["split"] == name], f"{catalog.name}-{name}", catalog.digest)
        for name, context in contexts
    }


def draw_sheets(run: Log, plan: Plan, trained: Trained, result: Assessment) -> None:
    """Log how training went, and the errors the model was surest of."""
    study, config = plan.study, plan.config
    caption = plan.caption()
    run.log_csv(trained.history, "training/history.csv")
    run.log_csv(trained.draws, "training/draws.csv")
    for key, values in (("train_share", trained.shares), ("prior_shift", trained.prior_shift)):
        named = zip(study.catalog.classes, values.tolist(), strict=True)
        run.log_metrics({f"{key}/{slug(name)}": value for name, value in named})
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


def tell_network(
    run: JournaledRun, plan: Plan, trained: Trained, fitted: Calibration, result: Assessment
) -> None:
    """Tell the run of the weights, of the exported network as an MLflow model, and of its gate.

    Parameters
    ----------
    run : JournaledRun
    plan : Plan
    trained : Trained
        Its network is copied, not touched.
    fitted : Calibration
        Goes into the model.
    result : Assessment
        Of the test images: its first probabilities are what the gate expects of the model.
    """
    about = plan.about_model() | {"journal": run.journal.folder.parent.name}
    if "run_id" in run.journal.remote:
        about["run_id"] = run.run_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_weights(trained.state, folder / "weights.safetensors", about=about)
        run.log_file(folder / "weights.safetensors", "weights")
        write_folder(
            folder / "model",
            copy.deepcopy(trained.network).cpu(),  # it is still explained, where it is
            classes=plan.study.catalog.classes,
            image_size=plan.config.data.image_size,
            mask_mode=plan.config.data.mask_mode,
            trained_on=about,
            temperature=fitted.temperature,
            abstaining=fitted.abstaining,
            prediction_sets=fitted.sets,
            prior=fitted.prior,
        )
        tell_model(run, folder / "model", about)
    if plan.config.tracking.register:
        tested = plan.study.catalog.table.iloc[plan.study.split.rows("test")]
        images, masks = gate_files(tested, plan.config.data.mask_mode)
        tell_gate(run, images, masks, result.probabilities[: len(images)])


def tell_version(run: JournaledRun, plan: Plan, result: Assessment, summary: RunSummary) -> None:
    """Tell the run that its model is to be registered, see `registration.enter_registry`."""
    tell_registration(
        run,
        tracking=plan.config.tracking,
        tags=plan.provenance() | {"f1_macro": f"{result.metrics['f1_macro']:.4f}"},
        description=write_note(summary),
    )
