"""What validation images teach about the probabilities of a trained network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cxr_mlflow.config import CalibrationConfig
from cxr_mlflow.evaluation.assessment import softmax
from cxr_mlflow.evaluation.calibration import calibration_scores, fit_temperature
from cxr_mlflow.evaluation.calibration_plots import (
    plot_reliability,
    plot_risk_coverage,
    plot_sets,
)
from cxr_mlflow.evaluation.conformal import conformal_thresholds, prediction_sets, set_scores
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.selective import Threshold, choose_threshold, selective_scores
from cxr_mlflow.serving.scorer_config import SET_SEPARATOR, Abstaining, PredictionSets

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation images; goes into the served model as it is."""

    temperature: float
    threshold: Threshold
    set_thresholds: Array  # (C,)
    coverage: float

    def probabilities(self, logits: Array) -> Array:
        """Calibrated probabilities (N, C) of logits (N, C)."""
        return softmax(logits / self.temperature)

    @property
    def abstaining(self) -> Abstaining:
        """For the served model: when it does not answer."""
        told = self.threshold
        return Abstaining(threshold=told.threshold, risk=told.risk, delta=told.delta)

    @property
    def sets(self) -> PredictionSets:
        """For the served model: which classes a film may show."""
        thresholds = tuple(map(float, self.set_thresholds))
        return PredictionSets(thresholds=thresholds, coverage=self.coverage, per_class=True)

    def add_columns(
        self, predictions: pd.DataFrame, probabilities: Array, classes: Sequence[str]
    ) -> pd.DataFrame:
        """Add to a table of predictions what the served model says beside the label."""
        names = np.array(classes, dtype=object)
        sets = prediction_sets(probabilities, self.set_thresholds)
        return predictions.assign(
            abstain=probabilities.max(axis=1) < self.threshold.threshold,
            prediction_set=[SET_SEPARATOR.join(names[row]) for row in sets],
        )


@dataclass(frozen=True)
class CalibrationCheck:
    """What the test images say about a calibration."""

    metrics: dict[str, float]
    figures: dict[str, Figure] = field(repr=False)
    lines: dict[str, str]


def calibrate(
    logits: Array, labels: Labels, groups: Labels, config: CalibrationConfig
) -> Calibration:
    """Fit temperature, threshold and prediction sets.

    All three see the validation images, which also chose the epoch; `check` tells what that costs.

    Parameters
    ----------
    logits : float array of shape (N, C)
        Of the validation images.
    labels, groups : integer arrays of shape (N,)
    config : CalibrationConfig
        The stated risk and coverage.
    """
    temperature = fit_temperature(logits, labels) if config.temperature_scaling else 1.0
    probabilities = softmax(logits / temperature)
    threshold = choose_threshold(
        probabilities.max(axis=1),
        probabilities.argmax(axis=1) == labels,
        risk=config.risk,
        groups=groups,
    )
    limits = conformal_thresholds(
        labels, probabilities, coverage=config.coverage, per_class=True, groups=groups
    )
    return Calibration(temperature, threshold, limits, config.coverage)


def check(
    fitted: Calibration,
    logits: Array,
    labels: Labels,
    classes: Sequence[str],
    *,
    groups: Labels,
    samples: int,
    subtitle: str,
) -> CalibrationCheck:
    """Hold a calibration against test images: raw and calibrated, with intervals.

    Parameters
    ----------
    fitted : Calibration
    logits : float array of shape (N, C)
        Of the test images.
    labels, groups : integer arrays of shape (N,)
    classes : sequence of C names
    samples : int
        Bootstrap resamples.
    subtitle : str
        What figures say they were computed on.

    Returns
    -------
    CalibrationCheck
        Metrics "ece", "brier", ... of the calibrated and "raw/ece", ... of the raw probabilities.
    """
    raw, calibrated = softmax(logits), fitted.probabilities(logits)
    sets = prediction_sets(calibrated, fitted.set_thresholds)
    how = {"groups": groups, "samples": samples}
    before = calibration_scores(labels, raw, classes, **how)  # type: ignore[arg-type]
    after = calibration_scores(labels, calibrated, classes, **how)  # type: ignore[arg-type]
    chosen = selective_scores(
        labels, calibrated, classes, fitted.threshold.threshold, groups=groups, samples=samples
    )
    held = set_scores(labels, sets, classes, groups=groups, samples=samples)
    metrics = {"temperature": fitted.temperature, "threshold": fitted.threshold.threshold}
    for head, scores in (("raw/", before), ("", after), ("", chosen), ("", held)):
        metrics |= _flat(head, scores)
    del metrics["loss"]  # `metrics.evaluate` has told it
    figures = {
        "reliability": plot_reliability(
            labels, raw, calibrated, classes, groups=groups, subtitle=subtitle
        ),
        "risk_coverage": plot_risk_coverage(
            labels, calibrated, threshold=fitted.threshold, scores=chosen, subtitle=subtitle
        ),
        "prediction_sets": plot_sets(
            labels, sets, held, classes, coverage=fitted.coverage, subtitle=subtitle
        ),
    }
    return CalibrationCheck(metrics, figures, _lines(fitted, before, after, chosen, held))


def _lines(
    fitted: Calibration,
    before: dict[str, Interval],
    after: dict[str, Interval],
    chosen: dict[str, Interval],
    held: dict[str, Interval],
) -> dict[str, str]:
    """Say what was found, for the note: what -> words."""
    told = fitted.threshold
    lines = {
        "calibration": f"temperature {fitted.temperature:.2f}; calibration error "
        f"{_words(after['ece'])}, raw {_words(before['ece'])}; Brier {_words(after['brier'])}, raw "
        f"{_words(before['brier'])}"
    }
    if told.attainable:
        lines["abstaining"] = (
            f"below confidence {told.threshold:.2f}, for a risk of {told.risk:.0%}: answers "
            f"{_words(chosen['selective_coverage'])} of the test images, with errors "
            f"{_words(chosen['selective_risk'])}"
        )
    else:
        lines["abstaining"] = (
            f"always: no threshold keeps a risk of {told.risk:.0%} on these validation images"
        )
    lines["prediction sets"] = (
        f"stated coverage {fitted.coverage:.0%} of each class; on the test images "
        f"{_words(held['set_coverage'])}, {held['set_size'].value:.2f} classes in a set"
    )
    return lines


def _flat(head: str, scores: dict[str, Interval]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, score in scores.items():
        first, _, rest = name.partition("/")
        tail = f"/{rest}" if rest else ""
        flat |= {f"{head}{name}": score.value}
        flat |= {f"{head}{first}_low{tail}": score.low, f"{head}{first}_high{tail}": score.high}
    return flat


def _words(score: Interval) -> str:
    if math.isnan(score.value):
        return "not measured"
    return f"{score.value:.3f} ({score.low:.3f}–{score.high:.3f})"
