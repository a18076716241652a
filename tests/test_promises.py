"""What a model carries of its calibration is checked on new images, and never told as nan."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from cxr_mlflow.evaluation.calibration import calibration_scores
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.promises import NOTHING_PROMISED, calibration_of, check_promises
from cxr_mlflow.serving.predictor import Predictor, open_predictor
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, Prior, ScorerConfig

CLASSES = ("A", "B", "C")
ABSTAINING = Abstaining(threshold=0.99, risk=0.05, delta=0.1)
SETS = PredictionSets(thresholds=(0.1, 0.2, 0.3), coverage=0.8, per_class=True)


def predictor(**promises) -> Predictor:
    told = ScorerConfig(
        classes=CLASSES, image_size=32, mask_mode="none", model_sha256="", **promises
    )
    return Predictor(CLASSES, 32, "none", {}, pd.DataFrame, json.loads(told.dumps()))


@pytest.fixture
def unsure():
    """60 images of the first two classes, none with a confidence of 0.9."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([3.0, 3.0, 3.0], 60)
    return probabilities, rng.integers(0, 2, 60), np.arange(60)


def test_a_model_is_checked_by_what_it_carries(unsure):
    probabilities, labels, groups = unsure
    model = predictor(temperature=1.7, abstaining=ABSTAINING, prediction_sets=SETS)
    fitted = calibration_of(model)
    assert (fitted.temperature, fitted.coverage) == (1.7, 0.8)
    assert fitted.set_thresholds.tolist() == [0.1, 0.2, 0.3]
    assert (fitted.threshold.threshold, fitted.threshold.risk) == (0.99, 0.05)
    how = Bootstrap(groups=groups, samples=100)
    checked = check_promises(model, probabilities, labels, subtitle="", how=how)
    raw = probabilities**1.7 / (probabilities**1.7).sum(axis=1, keepdims=True)
    for head, given in (("", probabilities), ("raw/", raw)):
        expected = calibration_scores(labels, given, CLASSES, how)
        for name in ("ece", "brier", "brier/a"):
            assert checked.metrics[f"{head}{name}"] == pytest.approx(expected[name].value)
    held = probabilities[np.arange(60), labels] >= np.array([0.1, 0.2, 0.3])[labels]
    assert checked.metrics["set_coverage"] == pytest.approx(held.mean())


def test_where_nothing_is_answered_its_risk_is_not_measured(unsure):
    probabilities, labels, groups = unsure
    model = predictor(abstaining=ABSTAINING, prediction_sets=SETS)
    checked = check_promises(
        model, probabilities, labels, subtitle="", how=Bootstrap(groups=groups, samples=100)
    )
    assert checked.metrics["selective_coverage"] == 0
    assert math.isnan(checked.metrics["selective_risk"])
    assert "with errors not measured" in checked.lines["abstaining"]
    assert "nan" not in " ".join(checked.lines.values())


def test_a_threshold_out_of_reach_comes_back_from_json():
    never = Abstaining(threshold=math.inf, risk=0.05, delta=0.1)
    fitted = calibration_of(predictor(abstaining=never, prediction_sets=SETS))
    assert not fitted.threshold.attainable


def test_a_model_without_promises_says_so(unsure, brightness_model):
    probabilities, labels, groups = unsure
    how = Bootstrap(groups=groups, samples=100)
    checked = check_promises(
        predictor(temperature=2.0), probabilities, labels, subtitle="", how=how
    )
    assert checked.lines == {"calibration": NOTHING_PROMISED}
    assert not checked.metrics
    folder = brightness_model(temperature=3.0)
    assert open_predictor(str(folder)).promises["calibration"] == {"temperature": 3.0}


def test_the_class_that_a_promise_fails_most_is_named():
    labels = np.repeat([0, 1, 2], 40)
    probabilities = 0.9 * np.eye(3)[labels] + 0.1 / 3
    probabilities[80:95] = [0.96, 0.02, 0.02]  # of C, called A, sure of it
    model = predictor(
        abstaining=Abstaining(threshold=0.5, risk=0.05, delta=0.1), prediction_sets=SETS
    )
    options = {"how": Bootstrap(groups=np.arange(120), samples=100), "subtitle": ""}
    lines = check_promises(model, probabilities, labels, **options).lines
    assert "with errors 0.125" in lines["abstaining"]
    assert "for a risk of 5% over all classes (approximate: " in lines["abstaining"]
    assert "; most errors in C: 0.375 (" in lines["abstaining"]
    assert "on the test films 0.875" in lines["prediction sets"]
    assert "furthest below it C 0.625 (" in lines["prediction sets"]
    kept = check_promises(model, 0.9 * np.eye(3)[labels] + 0.1 / 3, labels, **options).lines
    assert "most errors" not in kept["abstaining"]
    assert "furthest below" not in kept["prediction sets"]


@pytest.mark.parametrize("shift", [(0.7, -0.4, 0.0), (0.0, 0.0, 0.0), None])
def test_a_prior_correction_is_shown_with_and_without(unsure, shift):
    probabilities, labels, groups = unsure
    prior = shift and Prior(shares=(0.5, 0.2, 0.3), shift=shift)
    model = predictor(temperature=1.7, abstaining=ABSTAINING, prediction_sets=SETS, prior=prior)
    how = Bootstrap(groups=groups, samples=50)
    checked = check_promises(model, probabilities, labels, subtitle="", how=how)
    if not shift or not any(shift):
        assert not [key for key in checked.metrics if key.startswith("uncorrected")]
        assert "prior" not in checked.lines["calibration"]
        return
    plain = probabilities**1.7 / np.exp(shift)
    plain /= plain.sum(axis=1, keepdims=True)
    expected = calibration_scores(labels, plain, CLASSES, how)
    for name in ("ece", "brier", "loss", "brier/a"):
        assert checked.metrics[f"uncorrected/{name}"] == pytest.approx(expected[name].value)
    told = f"without the prior correction {expected['ece'].value:.3f} ("
    assert told in checked.lines["calibration"]
