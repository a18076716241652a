"""From a finished run to the facts of its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from cxr_mlflow.config import NONE, SECTIONS
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.markdown import NOT_MEASURED
from cxr_mlflow.evaluation.metrics import PER_CLASS, class_slugs
from cxr_mlflow.evaluation.model_card_facts import (
    CALIBRATION_SCORES,
    PROMISE_SCORES,
    VARIANTS,
    CardFacts,
    Subgroup,
)
from cxr_mlflow.evaluation.note import HEADLINES, RunSummary
from cxr_mlflow.evaluation.report import worst_errors
from cxr_mlflow.evaluation.score import Score, finite
from cxr_mlflow.evaluation.subgroups import subgroups

MOST_ERRORS = 10
"""Errors listed as examples."""
OPTION_SECTIONS = ("data", "model", "train", "calibration")
"""Sections of the configuration that a reader needs to train the model again."""
OF_THE_MACHINE = ("data_dir", "cache_dir", "workers", "weights", "split_file", "checkpoint_minutes")
"""Options that hold paths or speed; `weights` and `split_file` are told in words."""
PREDICTED = ("image_id", "source", "true", "predicted", "confidence")


def facts_of(
    summary: RunSummary,
    result: Assessment,
    *,
    params: Mapping[str, str],
    split_counts: pd.DataFrame,
    source_counts: pd.DataFrame,
    left_out: Mapping[str, int],
    audit: Sequence[str],
    controls: Mapping[str, str],
    source_floor: Score | None,
    calibration: Mapping[str, str],
    calibration_metrics: Mapping[str, float],
    created: str,
    synthetic: bool,
    sees: str = "",
    details: Mapping[str, str] | None = None,
    training: Mapping[str, str] | None = None,
) -> CardFacts:
    """Gather the facts of a card from a tested model.

    What is known only when MLflow has taken run and model (`run_id`, `model_uri`, `registered`) is
    left open; `dataclasses.replace` fills it in.

    Parameters
    ----------
    summary : RunSummary
    result : Assessment
        Of the test images, with columns `group` and `prediction_set` where they are known.
    params : mapping of str to str
        Parameters of the run: all options, digests, `version/<package>`.
    split_counts : DataFrame
        Images by split (rows) and class (columns).
    source_counts : DataFrame
        Images by class (rows) and source (columns).
    left_out : mapping of str to int
        Kind of problem -> files that were left out for it.
    audit : sequence of str
        What the data audit found, in sentences.
    controls, calibration : mapping of str to str
        What was checked -> what was found, as `Controls.lines` and `CalibrationCheck.lines`.
    source_floor : Score, optional
        Macro F1 on the test images of who knows only the source of a file.
    calibration_metrics : mapping of str to float
        As `CalibrationCheck.metrics`.
    created : str
        Date of the card.
    synthetic : bool
        Whether the images are drawn, not taken.
    sees : str
        What the model sees, if it was trained as a control.
    details, training : mapping of str to str, optional
        Further rows about the model and about its training.
    """
    classes = tuple(summary.classes)
    predictions = result.predictions
    groups = predictions["group"].to_numpy() if "group" in predictions else None
    how = Bootstrap(groups=groups, samples=int(params["bootstrap_samples"]))
    duplicates = summary.num_duplicate_groups
    return CardFacts(
        run_name=summary.run_name,
        created=created,
        synthetic=synthetic,
        sees=sees,
        warnings=tuple(" ".join(warning.split()) for warning in summary.warnings),
        classes=classes,
        image_size=summary.image_size,
        mask_mode=summary.mask_mode,
        level=summary.level,
        details={"network": summary.model, **(details or {})},
        data={
            "data set": summary.data_name,
            "images used": f"{summary.num_train + summary.num_val + summary.num_test:,}",
            "near-duplicate groups": "not looked for" if duplicates is None else f"{duplicates:,}",
            "split": _split_method(params),
        },
        images=_counts(split_counts),
        sources=_counts(source_counts),
        left_out={str(kind): int(count) for kind, count in left_out.items()},
        audit=tuple(audit),
        training={
            "first weights": summary.weights,
            "remedy for imbalance": summary.strategy,
            "seed": str(summary.seed),
            "epochs": f"{summary.epochs_run} run; the weights of epoch {summary.best_epoch} are "
            "kept, which had the best validation macro F1",
            **(training or {}),
        },
        options=_options(params),
        versions={
            name.removeprefix("version/"): value
            for name, value in params.items()
            if name.startswith("version/")
        },
        scores={
            key: score_of(result.metrics, result.intervals, key)
            for key in (*HEADLINES, "roc_auc_macro")
        },
        class_scores={
            name: {
                metric: score_of(result.metrics, result.intervals, f"{metric}/{key}")
                for metric in ("support", *PER_CLASS)
            }
            for name, key in zip(classes, class_slugs(classes), strict=True)
        },
        confusion=tuple(tuple(map(int, row)) for row in summary.confusion),
        controls=dict(controls),
        source_floor=source_floor,
        calibration=dict(calibration),
        calibration_scores=_calibration(calibration_metrics, CALIBRATION_SCORES),
        class_calibration={
            name: _calibration(calibration_metrics, (*CALIBRATION_SCORES, *PROMISE_SCORES), key)
            for name, key in zip(classes, class_slugs(classes), strict=True)
        },
        subgroups=tuple(
            Subgroup(
                row["source"],
                row["class"],
                row["images"],
                row["groups"],
                row["right"],
                Score(*(finite(row[end]) for end in ("share", "low", "high"))),
                row["confidence"],
            )
            for row in subgroups(predictions, classes, how).to_dict("records")
        ),
        errors=_errors(predictions),
        num_errors=int((~predictions["correct"]).sum()),
        num_tested=len(predictions),
        digests={
            "data": summary.data_digest,
            "split": summary.split_digest,
            "test images": params.get("test_digest", NOT_MEASURED),
            "git commit": summary.git_commit,
        },
    )


def _split_method(params: Mapping[str, str]) -> str:
    if params.get("split_file", NONE) != NONE:
        return "read from a file of an earlier run"
    return (
        f"{float(params['val_fraction']):.0%} validation, {float(params['test_fraction']):.0%} "
        f"test; stratified by class, no near-duplicate group is cut; seed {params['split_seed']}"
    )


def _options(params: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Options that make the model what it is, by section of the configuration."""
    sections = {
        section: [
            option.name for option in fields(SECTIONS[section]) if option.name not in OF_THE_MACHINE
        ]
        for section in OPTION_SECTIONS
    }
    return {
        section: {name: params[name] for name in names if name in params}
        for section, names in sections.items()
    }


def _counts(table: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(row): {str(column): int(count) for column, count in counts.items() if count}
        for row, counts in table.to_dict("index").items()
    }


def _errors(predictions: pd.DataFrame) -> tuple[dict[str, Any], ...]:
    columns = [*PREDICTED, *(["prediction_set"] if "prediction_set" in predictions else [])]
    worst = worst_errors(predictions, MOST_ERRORS)[columns]
    return tuple(
        {str(k): v if isinstance(v, str) else float(v) for k, v in row.items()}
        for row in worst.to_dict("records")
    )


def _calibration(
    metrics: Mapping[str, float], names: Sequence[str], of_class: str = ""
) -> dict[str, Score]:
    """Scores with their ends, of all images or of a class; those there are of each variant."""
    tail = f"/{of_class}" if of_class else ""
    return {
        f"{head}{name}": flat_score(metrics, f"{head}{name}", tail)
        for head in VARIANTS
        for name in names
        if f"{head}{name}{tail}" in metrics
    }


def flat_score(metrics: Mapping[str, float], key: str, tail: str = "") -> Score:
    """A score and its ends from MLflow keys: `ece`, `ece_low`, `ece_high`, each before `tail`."""
    return Score(*(finite(metrics.get(f"{key}{end}{tail}")) for end in ("", "_low", "_high")))


def score_of(metrics: Mapping[str, float], intervals: Mapping[str, Interval], key: str) -> Score:
    """A score and its ends, as far as they were measured."""
    if key not in intervals:
        return Score(finite(metrics.get(key)))
    ends = intervals[key]
    return Score(finite(metrics.get(key)), finite(ends.low), finite(ends.high))
