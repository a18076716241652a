"""The one place that joins the parts: a configuration becomes a trained, told, registered model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from cxr_mlflow.attempts import (
    GOES_ON,
    RETRY,
    SYNC,
    announce_attempt,
    announce_delivery,
    attempt_tags,
    command_of,
    evidence_of,
    undelivered_lines,
)
from cxr_mlflow.calibrate import Calibration, CalibrationCheck, calibrate, check
from cxr_mlflow.card import card_figures, card_of
from cxr_mlflow.config import RunConfig
from cxr_mlflow.controls import audit_study, source_controls
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.describe import Plan, announce, closing_lines, summarize
from cxr_mlflow.environment import code_digest, machine_kind, package_versions
from cxr_mlflow.evaluation.assessment import Assessment, assess, validation_scores
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.report import RunSummary, metrics_json, write_note
from cxr_mlflow.explain import explain_trained, probe_sources
from cxr_mlflow.handover import PENDING, handlers, retry_gate, tell_note
from cxr_mlflow.models import load_model
from cxr_mlflow.serving.scorer_config import Prior
from cxr_mlflow.telling import EpochRecorder, draw_sheets, start_record, tell_network, tell_version
from cxr_mlflow.tracking.cards import tell_card
from cxr_mlflow.tracking.journal import Journal
from cxr_mlflow.tracking.journaled import JournaledRun, open_journaled
from cxr_mlflow.tracking.record import record_assessment, record_end
from cxr_mlflow.tracking.registry import NotRegistered
from cxr_mlflow.tracking.run import open_store
from cxr_mlflow.tracking.unfinished import Unfinished, claim
from cxr_mlflow.training.callbacks import pick_device
from cxr_mlflow.training.checkpoint import Checkpoints
from cxr_mlflow.training.fitting import score_split, train

TESTING, SENDING = "testing", "sending"
"""First words of the lines that say what is done behind the last epoch."""


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
    tracking_uri = open_store()
    device = pick_device(config.train.device)
    study = prepare(config.data)
    loaded = load_model(
        config.model.model,
        len(study.catalog.classes),
        weights=config.model.weights,
        seed=config.train.seed,
        freeze=config.model.freeze,
    )
    plan = Plan(config, study, loaded, audit_study(study, config.data))
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    announce(console, plan)
    command = command_of(plan, tracking_uri, tags or {})
    made_with = {**package_versions(), "code": code_digest(), "device": str(device)}
    made_with["threads"] = str(torch.get_num_threads())
    machine = machine_kind(torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    with claim(
        command,
        evidence_of(plan),
        made_with,
        fresh=config.tracking.fresh,
        say=lambda line: console.print(f"! {line}", style="bold yellow", markup=False),
    ) as unfinished:
        announce_attempt(console, unfinished, made_with)
        journal = Journal(unfinished.journal)
        retry_gate(journal)
        try:
            with open_journaled(
                journal,
                unfinished.journal_id,
                config.tracking.experiment,
                plan.name,
                {
                    **plan.tags(),
                    "machine": machine,
                    **attempt_tags(unfinished, made_with),
                    **(tags or {}),
                },
                plan.params(),
                handlers=handlers(),
            ) as run:
                announce_delivery(console, run)
                result, summary = conduct(run, plan, device, unfinished, console)
                console.print(f"{SENDING}    what MLflow has not got yet")
        except FloatingPointError:
            unfinished.train_no_more()  # from the same checkpoint it would diverge again
            raise
        except (KeyboardInterrupt, SystemExit):
            console.print(GOES_ON, style="bold yellow", markup=False)
            raise
        known = journal.remote
        untried = retry_gate(journal, only_untried=True)
        if not untried:
            unfinished.train_no_more()
        became = known.get("registered", "" if run.is_delivered else f"not delivered yet: {SYNC}")
        lines = closing_lines(
            summary, run, tracking_uri, became or f"not registered ({plan.unregistered})"
        )
        lines += undelivered_lines(run)
        run_id = run.run_id
        if run.is_delivered:
            unfinished.forget()
    if "refused" in known:
        told = known["refused"].removeprefix("NotRegistered: ")
        raise NotRegistered(f"{told}. {RETRY}" if untried else told)
    return Outcome(run_id, result.metrics, known.get("registered"), tuple(lines))


def conduct(
    run: JournaledRun, plan: Plan, device: torch.device, unfinished: Unfinished, console: Console
) -> tuple[Assessment, RunSummary]:
    """Train, test and tell all of an open run; where it was interrupted, tell the rest."""
    config, study = plan.config, plan.study
    classes, mask_mode = study.catalog.classes, config.data.mask_mode
    start_record(run, plan)
    trained = train(
        plan.loaded.network,
        study,
        config.train,
        mask_mode=mask_mode,
        device=device,
        measure=lambda logits, labels: validation_scores(logits, labels, classes),
        callbacks=[EpochRecorder(run, classes)],
        checkpoints=Checkpoints(
            unfinished.checkpoints,
            seconds=60 * config.train.checkpoint_minutes,
            warn=lambda told: console.print(f"! {told}", style="bold yellow", markup=False),
        ),
    )
    console.print(f"{TESTING}    the best epoch, number {trained.best_epoch}")
    logits = {
        split: score_split(trained, study, split, mask_mode=mask_mode, device=device)[0]
        for split in ("val", "test")
    }
    prior = Prior(shares=tuple(trained.shares.tolist()), shift=tuple(trained.prior_shift.tolist()))
    fitted, checked, result = judge(plan, logits["val"], logits["test"], prior)
    tell_network(run, plan, trained, fitted, result)  # the gate's process runs beside what follows
    run.log_metrics({f"test/{name}": value for name, value in checked.metrics.items()})
    record_assessment(run, result)
    draw_sheets(run, plan, trained, result)
    samples, doubted = config.tracking.bootstrap_samples, plan.audit.doubted
    controls = source_controls(study, result, samples=samples, doubted=doubted)
    run.log_metrics(controls.metrics)
    heat = explain_trained(
        trained.network,
        study,
        result,
        mask_mode=mask_mode,
        device=device,
        samples=samples,
        caption=plan.caption(),
    )
    probe = probe_sources(
        trained.network,
        study,
        mask_mode=mask_mode,
        device=device,
        samples=samples,
        doubted=doubted,
    )
    explained = {**heat.lines, **probe.lines}
    run.log_metrics({**heat.metrics, **probe.metrics})
    for name, figure in {**heat.figures, **probe.figures}.items():
        run.log_figure(figure, f"test/{name}.png")
    found = {"data audit": plan.audit.headline(), **controls.lines, **explained, **checked.lines}
    summary = summarize(plan, trained, result, found)
    if plan.unregistered:
        run.set_tags({"registered": f"no ({plan.unregistered})"})
    else:
        summary = replace(summary, registered_version=PENDING)
        tell_version(run, plan, result, summary)
    card = card_of(
        plan,
        trained,
        result,
        checked,
        summary,
        controls=controls,
        explained=explained,
    )
    tell_card(run, card, card_figures({**result.figures, **heat.figures}))
    record_end(
        run,
        metrics_json=metrics_json(result.metrics, result.intervals),
        metrics={
            "best_epoch": float(trained.best_epoch),
            "best_val_f1_macro": float(trained.history["val/f1_macro"].max()),
        },
    )
    tell_note(run, write_note(summary))
    return result, summary


def judge(
    plan: Plan,
    val_logits: NDArray[np.float64],
    test_logits: NDArray[np.float64],
    prior: Prior,
) -> tuple[Calibration, CalibrationCheck, Assessment]:
    """Calibrate on the validation images, then score the test images with it.

    Parameters
    ----------
    plan : Plan
    val_logits, test_logits : float64 arrays of shape (N, C)
        In the order of `plan.study.split.rows`, with the prior correction in them.
    prior : Prior
        That correction; it goes into the served model.

    Returns
    -------
    fitted : Calibration
    checked : CalibrationCheck
        Of `fitted`, on the test images.
    result : Assessment
        Of the calibrated probabilities of the test images, with the figures of `checked`.
    """
    study, config = plan.study, plan.config
    classes = study.catalog.classes
    rows = {split: study.split.rows(split) for split in ("val", "test")}
    groups = {split: study.duplicates.groups[rows[split]] for split in rows}
    fitted = calibrate(
        val_logits, study.labels[rows["val"]], groups["val"], config.calibration, prior
    )
    how = Bootstrap(groups=groups["test"], samples=config.tracking.bootstrap_samples)
    told = plan.caption(f"test, n = {len(rows['test']):,}")
    result = assess(
        study.catalog.table.iloc[rows["test"]].reset_index(drop=True),
        fitted.probabilities(test_logits),
        classes,
        split="test",
        subtitle=told,
        how=how,
    )
    checked = check(fitted, test_logits, result.y_true, classes, how=how, subtitle=told)
    result = replace(
        result,
        predictions=fitted.add_columns(result.predictions, result.probabilities, classes),
        figures={**result.figures, **checked.figures},
    )
    return fitted, checked, result
