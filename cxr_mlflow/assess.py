"""Scores a finished model on a folder of images, as an MLflow run of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from cxr_mlflow.command_config import EvaluateConfig
from cxr_mlflow.config import AUTO, NONE, DataConfig, MaskMode, TrackingConfig
from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.prepare import find_duplicates, open_catalog
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.data.splits import load_split
from cxr_mlflow.data.storage import with_bar
from cxr_mlflow.describe import CODE_DIR, SYNTHETIC, left_out, where_lines
from cxr_mlflow.environment import git_commit, package_versions
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.assessment import Assessment, assess
from cxr_mlflow.evaluation.note import write_scores
from cxr_mlflow.evaluation.report import NOT_CONTROLLED, metrics_json
from cxr_mlflow.names import slug
from cxr_mlflow.serving.predictor import Predictor, open_predictor
from cxr_mlflow.tracking.record import record_assessment, record_end, record_start
from cxr_mlflow.tracking.run import open_run, use_tracking_uri

FILES_AT_ONCE = 64


@dataclass(frozen=True)
class Evaluation:
    """What a finished evaluation leaves its caller with."""

    run_id: str
    result: Assessment
    lines: tuple[str, ...]


def evaluate_model(asked: EvaluateConfig, data: DataConfig, tracking: TrackingConfig) -> Evaluation:
    """Score a model on a folder of X-rays and log it as a run.

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
    predictor = open_predictor(asked.model_uri)
    catalog = open_catalog(replace(data, mask_mode=cast(MaskMode, predictor.mask_mode)))
    rows = rows_to_score(asked, data, catalog)
    table = relabel(catalog.table.iloc[rows].reset_index(drop=True), predictor.classes)
    warnings = what_readers_must_know(asked, catalog, predictor)
    model = predictor.trained_on.get("model", "model")
    name = tracking.run_name
    if name == AUTO:
        name = f"evaluate-{model}-{asked.subset}-{catalog.name}"
    console.print(f"[bold]{name}[/bold]: {len(table):,} images of {catalog.root}")
    for warning in warnings:
        console.print(f"! {warning}", style="bold yellow", markup=False)
    tags = {
        "kind": "evaluation",
        "model_uri": asked.model_uri,
        "data": catalog.name,
        "synthetic": str(catalog.is_demo).lower(),
        "controls": "not controlled",
    }
    with open_run(tracking.experiment, name, tags) as run:
        record_start(
            run,
            params={
                "model_uri": asked.model_uri,
                "subset": asked.subset,
                "data_dir": data.data_dir,
                "data_digest": catalog.digest,
                "bootstrap_samples": str(tracking.bootstrap_samples),
                "git_commit": git_commit(CODE_DIR),
                **package_versions(),
            },
            config={"trained_on": dict(predictor.trained_on)},
            tables={"data/problems.csv": catalog.problems},
            figures={},
            datasets={
                "testing": (
                    table[["image_id", "class_name", "source", "pixel_hash"]],
                    catalog.name,
                    catalog.digest,
                )
            },
        )
        groups = find_duplicates(catalog, data).groups
        result = assess(
            table,
            score(predictor, table),
            predictor.classes,
            split="test",
            subtitle=f"{name}: n = {len(table):,}" + (" (synthetic)" if catalog.is_demo else ""),
            samples=tracking.bootstrap_samples,
            groups=groups[rows],
        )
        record_assessment(run, result)
        note = write_scores(result.metrics, result.intervals, predictor.classes, warnings)
        record_end(
            run,
            note=note,
            metrics_json=metrics_json(result.metrics, result.intervals),
            tags={},
            metrics={},
        )
    interval = result.intervals["f1_macro"]
    lines = (
        f"{len(table):,} images: macro F1 {interval.value:.3f} "
        f"({interval.low:.3f}-{interval.high:.3f}), accuracy {result.metrics['accuracy']:.3f}",
        *(f"! {warning}" for warning in warnings),
        *where_lines(name, run, tracking_uri),
    )
    return Evaluation(run.run_id, result, lines)


def rows_to_score(asked: EvaluateConfig, data: DataConfig, catalog: Catalog) -> NDArray[np.int64]:
    """Rows of the catalog that are scored: all, or the test images of a split file."""
    if asked.subset == "all":
        if data.split_file != NONE:
            raise InputError("--split-file is for --subset test; with --subset all leave it out")
        return np.arange(len(catalog.table))
    if data.split_file == NONE:
        raise InputError("--subset test needs --split-file: the data/split.csv of the training run")
    return load_split(Path(data.split_file).expanduser(), catalog).rows("test")


def relabel(table: pd.DataFrame, classes: tuple[str, ...]) -> pd.DataFrame:
    """Number the classes as the model does; names are compared as slugs."""
    place = {slug(name): label for label, name in enumerate(classes)}
    known = table["class_name"].map(slug)
    if strange := sorted(set(table["class_name"][~known.isin(place)])):
        raise InputError(
            f"the model knows {', '.join(classes)}; the data has {', '.join(strange)} as well"
        )
    return table.assign(label=known.map(place).astype(np.int64))


def what_readers_must_know(
    asked: EvaluateConfig, catalog: Catalog, predictor: Predictor
) -> tuple[str, ...]:
    """List what is said wherever these scores are shown."""
    warnings = [SYNTHETIC] if catalog.is_demo else []
    if asked.subset == "all" and predictor.trained_on.get("data_digest") == catalog.digest:
        warnings.append(
            "The model was trained on images of this very folder: these scores are too good. "
            "Use --subset test with the split file of the training run."
        )
    return (*warnings, *left_out(catalog.problems), NOT_CONTROLLED)


def score(predictor: Predictor, table: pd.DataFrame) -> NDArray[np.float64]:
    """Probabilities (N, C) of the images in a catalog's table, from their files."""
    columns = [f"p_{slug(name)}" for name in predictor.classes]
    parts = [
        predictor.predict(frame)[columns].to_numpy(np.float64)
        for frame in with_bar(
            frames(table, masked=needs_mask(predictor.mask_mode)),
            "scoring",
            -(-len(table) // FILES_AT_ONCE),
            show=True,
        )
    ]
    return np.concatenate(parts)


def frames(table: pd.DataFrame, *, masked: bool) -> Iterator[pd.DataFrame]:
    """Read the files of a table, some at a time, as the model's input."""
    for start in range(0, len(table), FILES_AT_ONCE):
        part = table.iloc[start : start + FILES_AT_ONCE]
        content = {"image": [Path(path).read_bytes() for path in part["path"]]}
        if masked:
            content["mask"] = [Path(path).read_bytes() for path in part["mask_path"]]
        yield pd.DataFrame(content)
