"""Scores a finished model on a folder of images, as an MLflow run of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from cxr_mlflow.command_config import EvaluateConfig
from cxr_mlflow.config import AUTO, NONE, DataConfig, TrackingConfig
from cxr_mlflow.data.fingerprints import plot_copies
from cxr_mlflow.data.prepare import source_file
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.data.storage import with_bar
from cxr_mlflow.describe import CODE_DIR, where_lines
from cxr_mlflow.environment import git_commit, package_versions
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.assessment import Assessment, assess
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.model_card import External
from cxr_mlflow.evaluation.note import write_scores
from cxr_mlflow.evaluation.present import over_present, present_classes, present_scores
from cxr_mlflow.evaluation.report import metrics_json
from cxr_mlflow.external import Films, bad_files, gather
from cxr_mlflow.external_words import (
    checked_tag,
    external_test,
    facts_of,
    score_lines,
    what_readers_must_know,
)
from cxr_mlflow.names import slug
from cxr_mlflow.promises import check_promises
from cxr_mlflow.serving.predictor import Predictor, open_predictor
from cxr_mlflow.tracking.cards import add_external
from cxr_mlflow.tracking.origin import Origin, is_run_id, model_of_run, origin_of
from cxr_mlflow.tracking.parents import get_run
from cxr_mlflow.tracking.record import record_assessment, record_end, record_start
from cxr_mlflow.tracking.run import Tracker, open_run, use_tracking_uri

FILES_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What a finished evaluation leaves its caller with."""

    run_id: str
    result: Assessment
    lines: tuple[str, ...]


def evaluate_model(asked: EvaluateConfig, data: DataConfig, tracking: TrackingConfig) -> Evaluation:
    """Score a model on a folder of X-rays and log it as a run.

    Images that show films the model was trained on are taken out first; where that cannot be found
    out, the run says so wherever its scores are shown. Where the folder lacks classes of the model,
    averages are over those that are there, under names of their own (`f1_macro_present`).

    Parameters
    ----------
    asked : EvaluateConfig
        The model, and which images.
    data : DataConfig
        The folder; its mask mode and image size are the model's own and not looked at.
    tracking : TrackingConfig
        Experiment, run name and resamples.

    Raises
    ------
    InputError
        If model and data do not belong together: other classes, no masks where they are needed.
    """
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    tracking_uri = use_tracking_uri()
    model_uri = model_of_run(asked.model_uri) if is_run_id(asked.model_uri) else asked.model_uri
    predictor = open_predictor(model_uri)
    origin = origin_of(model_uri, predictor.trained_on.get("run_id"))
    films = gather(asked, data, predictor, origin)
    catalog, table = films.catalog, films.table
    present = present_classes(table["label"].to_numpy(np.int64), predictor.classes)
    warnings = what_readers_must_know(films, predictor, present, origin)
    name = tracking.run_name
    if name == AUTO:
        name = (
            f"evaluate-{predictor.trained_on.get('model', 'model')}-{asked.subset}-{catalog.name}"
        )
    console.print(f"[bold]{name}[/bold]: {len(table):,} images of {catalog.root}")
    for warning in warnings:
        console.print(f"! {warning}", style="bold yellow", markup=False)
    tags = {
        "kind": "evaluation",
        "model_uri": model_uri,
        "data": catalog.name,
        "synthetic": str(catalog.is_demo).lower(),
        "controls": origin.controls if origin else "not controlled",
        "checked_against_training": checked_tag(films),
        "classes_present": f"{len(present)} of {len(predictor.classes)}: {', '.join(present)}",
        **({"training_run": origin.run_id} if origin else {}),
    }
    with open_run(tracking.experiment, name, tags) as run:
        start_record(run, asked, data, tracking, films, predictor)
        predicted = score(predictor, table)
        how = Bootstrap(groups=films.groups, samples=tracking.bootstrap_samples)
        result = judge(films, predictor, predicted, name=name, how=how)
        checked = check_promises(
            predictor,
            result.probabilities,
            result.y_true,
            how=how,
            subtitle=caption(films, name, len(predictor.classes)),
        )
        run.log_metrics({f"test/{key}": value for key, value in checked.metrics.items()})
        result = replace(result, figures={**result.figures, **checked.figures})
        record_assessment(run, result)
        shown = (result.metrics, result.intervals)
        if len(present) < len(predictor.classes):
            shown = over_present(*shown, predictor.classes, present)
        note = write_scores(
            *shown,
            predictor.classes,
            warnings,
            controls=checked.lines,
            facts=facts_of(films, predictor, origin, model_uri),
        )
        record_end(
            run,
            note=note,
            metrics_json=metrics_json(result.metrics, result.intervals),
            tags={},
            metrics={},
        )
    on_card = tell_origin(
        origin,
        external_test(films, present, predictor.classes, *shown, run.run_id),
    )
    lines = (
        *score_lines(*shown, present, predictor.classes, len(table)),
        *(f"{what}: {told}" for what, told in checked.lines.items()),
        *(f"training images: {told}" for told in [films.checked] if told),
        *on_card,
        *(f"! {warning}" for warning in warnings),
        *where_lines(name, run, tracking_uri),
    )
    return Evaluation(run.run_id, result, lines)


def tell_origin(origin: Origin | None, found: External) -> list[str]:
    """Write an external evaluation into the card of the model; say where that was done."""
    if origin is None:
        return []
    try:
        tracker = Tracker(origin.run_id, get_run(origin.run_id).info.experiment_id)
        told = add_external(tracker, found)
    except InputError as error:  # a card that another version wrote; the evaluation is done
        return [f"! not told in the model card of run {origin.run_id}: {error}"]
    return [f"model card: told under External testing of run {origin.run_id}"] if told else []


def start_record(
    run: Tracker,
    asked: EvaluateConfig,
    data: DataConfig,
    tracking: TrackingConfig,
    films: Films,
    predictor: Predictor,
) -> None:
    """Log what is about to be scored, and what was taken out before."""
    catalog = films.catalog
    tables = {"data/problems.csv": bad_files(catalog, films.class_map)}
    figures = {}
    if films.copies is not None:
        tables["data/copies_of_training.csv"] = films.copies.table
        run.log_metrics({"data/copies_of_training": float(len(films.copies.rows))})
        if films.seen is not None and len(films.copies.pairs):
            figures["data/copies_of_training.png"] = plot_copies(catalog, films.copies, films.seen)
    record_start(
        run,
        params={
            "model_uri": asked.model_uri,
            "subset": asked.subset,
            "data_dir": data.data_dir,
            "class_map": asked.class_map,
            "source_file": data.source_file,
            "data_digest": catalog.digest,
            "bootstrap_samples": str(tracking.bootstrap_samples),
            "git_commit": git_commit(CODE_DIR),
            **package_versions(),
        },
        config={"trained_on": dict(predictor.trained_on), "class_map": films.class_map},
        tables=tables,
        figures=figures,
        datasets={
            "testing": (
                films.table[["image_id", "class_name", "source", "pixel_hash"]],
                catalog.name,
                catalog.digest,
            )
        },
    )
    if asked.class_map != NONE:
        run.log_file(Path(asked.class_map).expanduser(), "data")
    if told := source_file(data):
        run.log_file(told, "data")


def caption(films: Films, name: str, num_classes: int) -> str:
    """Subtitle of the figures."""
    there = films.table["label"].nunique()
    some = f", {there} of {num_classes} classes" if there < num_classes else ""
    synthetic = " (synthetic)" if films.catalog.is_demo else ""
    return f"{name}: n = {len(films.table):,}{some}{synthetic}"


def judge(
    films: Films, predictor: Predictor, predicted: pd.DataFrame, *, name: str, how: Bootstrap
) -> Assessment:
    """Score what the model answered, with the averages over the classes that are there.

    Parameters
    ----------
    films : Films
    predictor : Predictor
    predicted : DataFrame of N rows
        What `score` answered for `films.table`.
    name : str
        Of the evaluation, for the figures.
    how : Bootstrap
        With the groups of `films`.
    """
    classes = predictor.classes
    columns = [f"p_{slug(each)}" for each in classes]
    result = assess(
        films.table,
        predicted[columns].to_numpy(np.float64),
        classes,
        split="test",
        subtitle=caption(films, name, len(predictor.classes)),
        how=how,
    )
    averages: dict[str, Interval] = {}
    if not np.bincount(result.y_true, minlength=len(classes)).all():
        averages = present_scores(result.y_true, result.probabilities, classes, how)
    said = [column for column in ("abstain", "prediction_set") if column in predicted]
    return replace(
        result,
        metrics=result.metrics | {key: score.value for key, score in averages.items()},
        intervals=result.intervals | averages,
        predictions=result.predictions.assign(**{name: predicted[name] for name in said}),
    )


def score(predictor: Predictor, table: pd.DataFrame) -> pd.DataFrame:
    """What the model answers for the images in a catalog's table, from their files."""
    parts = [
        predictor.predict(frame)
        for frame in with_bar(
            frames(table, masked=needs_mask(predictor.mask_mode)),
            "scoring",
            -(-len(table) // FILES_AT_ONCE),
            show=True,
        )
    ]
    return pd.concat(parts, ignore_index=True)


def frames(table: pd.DataFrame, *, masked: bool) -> Iterator[pd.DataFrame]:
    """Read the files of a table, some at a time, as the model's input."""
    for start in range(0, len(table), FILES_AT_ONCE):
        part = table.iloc[start : start + FILES_AT_ONCE]
        content = {"image": [Path(path).read_bytes() for path in part["path"]]}
        if masked:
            content["mask"] = [Path(path).read_bytes() for path in part["mask_path"]]
        yield pd.DataFrame(content)
