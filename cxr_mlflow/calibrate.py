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
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.metrics import class_slugs
from cxr_mlflow.evaluation.selective import Threshold, choose_threshold, selective_scores
from cxr_mlflow.serving.scorer_config import (
    APPROXIMATE,
    SET_SEPARATOR,
    Abstaining,
    PredictionSets,
    Prior,
)

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """Fitted on validation images; goes into the served model as it is."""

    temperature: float
    threshold: Threshold
    set_thresholds: Array  # (C,)
    coverage: float
    prior: Prior | None = None  # what training did about the class frequencies, where it is known

    def probabilities(self, logits: Array) -> Array:
        """Calibrated probabilities (N, C) of logits (N, C)."""
        return softmax(logits / self.temperature)

    def uncorrected(self, logits: Array) -> Array | None:
        """Probabilities (N, C) without the prior correction; None where nothing was corrected."""
        if self.prior is None or not any(self.prior.shift):
            return None
        return softmax(logits - np.array(self.prior.shift))

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
        """Add to a table of predictions what the served model says beside the label.

        Parameters
        ----------
        predictions : DataFrame of N rows
        probabilities : float array of shape (N, C)
            Calibrated.
        classes : sequence of C names

        Returns
        -------
        DataFrame
            A copy, with columns `abstain` (bool) and `prediction_set` (names, joined).
        """
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
    logits: Array,
    labels: Labels,
    groups: Labels,
    config: CalibrationConfig,
    prior: Prior | None = None,
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
    prior : Prior, optional
        What training did about the class frequencies; it is in the logits already.
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
    return Calibration(temperature, threshold, limits, config.coverage, prior)


def check(
    fitted: Calibration,
    logits: Array,
    labels: Labels,
    classes: Sequence[str],
    *,
    how: Bootstrap,
    subtitle: str,
) -> CalibrationCheck:
    """Hold a calibration against test images: uncorrected, raw and calibrated, with intervals.

    Parameters
    ----------
    fitted : Calibration
    logits : float array of shape (N, C)
        Of the test images.
    labels : integer array of shape (N,)
    classes : sequence of C names
    how : Bootstrap
    subtitle : str
        What figures say they were computed on.

    Returns
    -------
    CalibrationCheck
        Metrics "ece", "brier", ... of the calibrated and "raw/ece", ... of the raw probabilities;
        where the class prior was corrected also "uncorrected/ece", ..., of those without it.
    """
    raw, calibrated = softmax(logits), fitted.probabilities(logits)
    uncorrected = fitted.uncorrected(logits)
    sets = prediction_sets(calibrated, fitted.set_thresholds)
    told = {"uncorrected/": uncorrected, "raw/": raw, "": calibrated}
    scores = {
        head: calibration_scores(labels, probabilities, classes, how)
        for head, probabilities in told.items()
        if probabilities is not None
    }
    chosen = selective_scores(labels, calibrated, classes, fitted.threshold.threshold, how)
    held = set_scores(labels, sets, classes, how)
    metrics = {"temperature": fitted.temperature, "threshold": fitted.threshold.threshold}
    for head, found in (*scores.items(), ("", chosen), ("", held)):
        metrics |= _flat(head, found)
    del metrics["loss"]  # `metrics.evaluate` has told it
    figures = {
        "reliability": plot_reliability(
            labels, raw, calibrated, classes, groups=how.groups, subtitle=subtitle
        ),
        "risk_coverage": plot_risk_coverage(
            labels, calibrated, threshold=fitted.threshold, scores=chosen, subtitle=subtitle
        ),
        "prediction_sets": plot_sets(
            labels, sets, held, classes, coverage=fitted.coverage, subtitle=subtitle
        ),
    }
    lines = {
        "calibration": _calibration_line(fitted, scores),
        "abstaining": _abstaining_line(fitted.threshold, chosen, classes),
        "prediction sets": _sets_line(fitted.coverage, held, classes),
    }
    return CalibrationCheck(metrics, figures, lines)


def _calibration_line(fitted: Calibration, scores: dict[str, dict[str, Interval]]) -> str:
    """Say for the note how far probabilities can be taken at their word."""
    kinds = {"": "", "raw/": "raw ", "uncorrected/": "without the prior correction "}
    told = [
        ", ".join(f"{kind}{_words(scores[head][key])}" for head, kind in kinds.items()
                  if head in scores)
        for key in ("ece", "brier")
    ]  # fmt: skip
    return f"temperature {fitted.temperature:.2f}; calibration error {told[0]}; Brier {told[1]}"


def _abstaining_line(told: Threshold, chosen: dict[str, Interval], classes: Sequence[str]) -> str:
    """Say for the note what the threshold keeps, and in which class it keeps least."""
    if not told.attainable:
        return f"always: no threshold keeps a risk of {told.risk:.0%} on these validation images"
    risks = {name: chosen[f"selective_risk/{key}"] for name, key in _keys(classes)}
    worst = max(risks, key=lambda name: np.nan_to_num(risks[name].value, nan=-1.0))
    line = (
        f"below confidence {told.threshold:.2f}, for a risk of {told.risk:.0%} over all classes "
        f"({APPROXIMATE}); near-duplicates counted once, it answers "
        f"{_words(chosen['selective_coverage'])} of the test films, with errors "
        f"{_words(chosen['selective_risk'])}"
    )
    if risks[worst].value > told.risk:
        line += f"; most errors in {worst}: {_words(risks[worst])} of its answers"
    return line


def _sets_line(coverage: float, held: dict[str, Interval], classes: Sequence[str]) -> str:
    """Say for the note what the sets hold, and of which class they hold least."""
    shares = {name: held[f"set_coverage/{key}"] for name, key in _keys(classes)}
    worst = min(shares, key=lambda name: np.nan_to_num(shares[name].value, nan=2.0))
    line = (
        f"stated coverage {coverage:.0%} of each class ({APPROXIMATE}); near-duplicates counted "
        f"once, on the test films {_words(held['set_coverage'])}, "
    )
    if shares[worst].value < coverage:
        line += f"furthest below it {worst} {_words(shares[worst])}, "
    return f"{line}{held['set_size'].value:.2f} classes in a set"


def _keys(classes: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(classes, class_slugs(classes), strict=True))


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
