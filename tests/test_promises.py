"""What a model carries of its calibration is checked on new images, and never told as nan."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from cxr_mlflow.evaluation.calibration import calibration_scores
from cxr_mlflow.promises import NOTHING_PROMISED, calibration_of, check_promises
from cxr_mlflow.serving.predictor import Predictor, open_predictor
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, ScorerConfig

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
    checked = check_promises(model, probabilities, labels, groups=groups, samples=100, subtitle="")
    raw = probabilities**1.7 / (probabilities**1.7).sum(axis=1, keepdims=True)
    for head, given in (("", probabilities), ("raw/", raw)):
        expected = calibration_scores(labels, given, CLASSES, groups=groups, samples=100)
        for name in ("ece", "brier", "brier/a"):
            assert checked.metrics[f"{head}{name}"] == pytest.approx(expected[name].value)
    held = probabilities[np.arange(60), labels] >= np.array([0.1, 0.2, 0.3])[labels]
    assert checked.metrics["set_coverage"] == pytest.approx(held.mean())


def test_where_nothing_is_answered_its_risk_is_not_measured(unsure):
    probabilities, labels, groups = unsure
    model = predictor(abstaining=ABSTAINING, prediction_sets=SETS)
    checked = check_promises(model, probabilities, labels, groups=groups, samples=100, subtitle="")
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
    checked = check_promises(
        predictor(temperature=2.0), probabilities, labels, groups=groups, samples=100, subtitle=""
    )
    assert checked.lines == {"calibration": NOTHING_PROMISED}
    assert not checked.metrics
    folder = brightness_model(temperature=3.0)
    assert open_predictor(str(folder)).promises["calibration"] == {"temperature": 3.0}
