"""Averages where classes have no image, held against scikit-learn and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from cxr_mlflow.evaluation.intervals import Bootstrap, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import evaluate
from cxr_mlflow.evaluation.note import write_scores
from cxr_mlflow.evaluation.present import over_present, present_classes, present_scores

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


@pytest.fixture
def part():
    """120 images of two of four classes; a third of the predictions is of an absent one."""
    rng = np.random.default_rng(0)
    y_true = rng.choice([1, 2], 120)
    scores = rng.gamma(1.0, size=(120, 4))
    scores[np.arange(120), y_true] += 0.8
    return y_true, scores / scores.sum(axis=1, keepdims=True)


def test_averages_are_those_of_scikit_learn_over_the_classes_that_are_there(part):
    y_true, probabilities = part
    y_pred = probabilities.argmax(axis=1)
    assert (np.isin(y_pred, [0, 3])).sum() > 20
    found = present_scores(y_true, probabilities, CLASSES, Bootstrap(samples=200))
    f1 = f1_score(y_true, y_pred, labels=[1, 2], average="macro")
    assert found["f1_macro_present"].value == pytest.approx(f1)
    recall = recall_score(y_true, y_pred, labels=[1, 2], average="macro")
    assert found["balanced_accuracy_present"].value == pytest.approx(recall)
    areas = [roc_auc_score(y_true == c, probabilities[:, c]) for c in (1, 2)]
    assert found["roc_auc_macro_present"].value == pytest.approx(np.mean(areas))
    assert set(found) == {"f1_macro_present", "balanced_accuracy_present", "roc_auc_macro_present"}
    for score in found.values():
        assert score.low < score.value < score.high


def test_the_interval_of_an_area_is_as_wide_as_its_standard_error_says(part):
    y_true, probabilities = part
    area = bootstrap_intervals(y_true, probabilities, CLASSES)["roc_auc/normal"]
    scores, positive = probabilities[:, 2], y_true == 2
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    value = u / (positive.sum() * (~positive).sum())
    assert area.value == pytest.approx(value)
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)  # Hanley and McNeil 1982
    m, n = positive.sum(), (~positive).sum()
    variance = value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)
    assert area.high - area.low == pytest.approx(2 * 1.96 * math.sqrt(variance / (m * n)), rel=0.2)


def test_where_all_classes_are_there_the_averages_are_the_usual_ones(part):
    y_true, probabilities = part
    y_true = y_true.copy()
    y_true[:10], y_true[10:20] = 0, 3
    usual = bootstrap_intervals(y_true, probabilities, CLASSES, Bootstrap(samples=200))
    found = present_scores(y_true, probabilities, CLASSES, Bootstrap(samples=200))
    for name in ("f1_macro", "balanced_accuracy", "roc_auc_macro"):
        for end in ("value", "low", "high"):
            told = getattr(found[f"{name}_present"], end)
            assert told == pytest.approx(getattr(usual[name], end)), name


def test_duplicates_widen_the_intervals(part):
    y_true, probabilities = (np.repeat(values, 4, axis=0) for values in part)
    alone = present_scores(y_true, probabilities, CLASSES, Bootstrap(samples=400))
    groups = np.repeat(np.arange(120), 4)
    together = present_scores(y_true, probabilities, CLASSES, Bootstrap(groups=groups, samples=400))
    for name in ("f1_macro_present", "roc_auc_macro_present"):
        width = [found[name].high - found[name].low for found in (alone, together)]
        assert width[1] > 1.5 * width[0]


def test_the_note_shows_averages_over_what_is_there_and_never_nan(part):
    y_true, probabilities = part
    metrics = evaluate(y_true, probabilities, CLASSES)
    assert math.isnan(metrics["f1_macro"])
    intervals = bootstrap_intervals(y_true, probabilities, CLASSES, Bootstrap(samples=200))
    intervals |= present_scores(y_true, probabilities, CLASSES, Bootstrap(samples=200))
    present = present_classes(y_true, CLASSES)
    assert present == ("Lung_Opacity", "Normal")
    shown = over_present(metrics, intervals, CLASSES, present)
    assert not any(map(math.isnan, shown[0].values()))
    value = intervals["f1_macro_present"].value
    assert shown[0]["f1_macro"] == shown[1]["f1_macro"].value == value
    precision = [metrics[f"precision/{key}"] for key in ("lung_opacity", "normal")]
    assert shown[0]["precision_macro"] == pytest.approx(np.mean(precision))
    note = write_scores(*shown, CLASSES, facts={"data": "theirs"}, controls={"ece": "0.1"})
    assert note.startswith(f"**Test macro F1 {value:.3f}**")
    assert "nan" not in note
    assert "| COVID | 0 | – |" in note
    assert "| data | theirs |" in note
    assert "| ece | 0.1 |" in note


def test_one_class_alone_has_a_recall_and_no_area():
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    found = present_scores(np.zeros(3, int), probabilities, ("A", "B"), Bootstrap(samples=100))
    assert found["balanced_accuracy_present"].value == pytest.approx(2 / 3)
    assert found["f1_macro_present"].value == pytest.approx(0.8)
    assert math.isnan(found["roc_auc_macro_present"].value)
