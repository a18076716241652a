"""The numbers mean what docs/metrics.md says, and what was not measured is never 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from cxr_mlflow.evaluation.metrics import PER_CLASS, confusion, evaluate, metric_table

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]


def one_hot(labels, num_classes):
    return np.eye(num_classes)[np.asarray(labels)]


def random_case(seed=0, num_images=300, num_classes=4):
    generator = np.random.default_rng(seed)
    y_true = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes)) + one_hot(y_true, num_classes)
    exp = np.exp(logits)
    return y_true, exp / exp.sum(axis=1, keepdims=True)


def test_scores_of_a_case_worked_by_hand():
    # true a a a a b b b c c c; of a 3 are found, of b 2, of c 1; c is said twice wrongly
    y_true = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    y_pred = np.array([0, 0, 0, 2, 1, 1, 2, 2, 0, 0])
    scores = evaluate(y_true, one_hot(y_pred, 3), ["A", "B", "C"])
    assert scores["accuracy"] == pytest.approx(6 / 10)
    assert scores["recall/a"] == pytest.approx(3 / 4)
    assert scores["precision/a"] == pytest.approx(3 / 5)
    assert scores["specificity/a"] == pytest.approx(4 / 6)
    assert scores["specificity/b"] == 1
    assert scores["specificity/c"] == pytest.approx(5 / 7)
    assert scores["f1/b"] == pytest.approx(4 / 5)
    assert scores["support/c"] == 3
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 4 / 5 + 1 / 3) / 3)
    assert scores["f1_weighted"] == pytest.approx(0.4 * 2 / 3 + 0.3 * 4 / 5 + 0.3 / 3)
    assert scores["balanced_accuracy"] == pytest.approx((3 / 4 + 2 / 3 + 1 / 3) / 3)
    assert confusion(y_true, y_pred, 3).tolist() == [[3, 0, 1], [0, 2, 1], [2, 0, 1]]


def test_scores_agree_with_scikit_learn_where_it_has_them():
    y_true, probabilities = random_case()
    y_pred = probabilities.argmax(axis=1)
    scores = evaluate(y_true, probabilities, CLASSES)
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(y_true, y_pred),
        "mcc": sk.matthews_corrcoef(y_true, y_pred),
        "loss": sk.log_loss(y_true, probabilities),
        "precision_macro": sk.precision_score(y_true, y_pred, average="macro"),
        "recall_weighted": sk.recall_score(y_true, y_pred, average="weighted"),
        "f1_macro": sk.f1_score(y_true, y_pred, average="macro"),
        "roc_auc_macro": sk.roc_auc_score(y_true, probabilities, multi_class="ovr"),
        "average_precision_macro": sk.average_precision_score(one_hot(y_true, 4), probabilities),
        "specificity/normal": sk.recall_score(y_true != 2, y_pred != 2),
    }
    assert {key: scores[key] for key in expected} == pytest.approx(expected)


def test_a_class_without_images_is_not_measured_rather_than_zero():
    y_true = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3]])
    scores = evaluate(y_true, probabilities, ["A", "B", "C"])
    for metric in ("precision", "recall", "f1", "average_precision", "roc_auc"):
        assert math.isnan(scores[f"{metric}/c"])
        assert math.isnan(scores[f"{metric}_macro"])
        assert not math.isnan(scores[f"{metric}_weighted"])
    assert math.isnan(scores["balanced_accuracy"])
    assert scores["specificity/c"] == pytest.approx(3 / 4)
    assert scores["support/c"] == 0
    assert scores["recall_weighted"] == scores["accuracy"] == 0.75


def test_a_class_that_is_never_predicted_has_precision_and_f1_zero():
    scores = evaluate(np.array([0, 0, 1]), one_hot([0, 0, 0], 2), ["A", "B"])
    assert (scores["precision/b"], scores["f1/b"], scores["recall/b"]) == (0, 0, 0)
    assert scores["mcc"] == 0  # a constant answer correlates with nothing


def test_images_of_one_class_leave_what_needs_a_negative_unmeasured():
    scores = evaluate(np.zeros(3, dtype=int), one_hot([0, 1, 0], 2), ["A", "B"])
    for key in ("specificity/a", "roc_auc/a", "average_precision/a", "mcc", "f1_macro"):
        assert math.isnan(scores[key]), key
    assert scores["recall/a"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_single_and_half_precision_probabilities_are_taken(dtype):
    y_true, probabilities = random_case()
    scores = evaluate(y_true, probabilities.astype(dtype), CLASSES)
    assert scores["loss"] == pytest.approx(sk.log_loss(y_true, probabilities), abs=1e-3)


GOOD = np.array([[0.9, 0.1], [0.4, 0.6]])


@pytest.mark.parametrize(
    ("y_true", "probabilities", "classes", "message"),
    [
        ([], np.empty((0, 2)), ["A", "B"], "non-empty"),
        ([0, 2], GOOD, ["A", "B"], r"\[0, 2\)"),
        ([0, -1], GOOD, ["A", "B"], r"-1\.\.0"),
        ([0.0, 1.0], GOOD, ["A", "B"], "integer"),
        ([0, 1, 1], GOOD, ["A", "B"], r"shape \(3, 2\), got \(2, 2\)"),
        ([0, 1], GOOD, ["A", "B", "C"], "shape"),
        ([0, 1], GOOD * 2, ["A", "B"], "logits"),
        ([0, 1], GOOD * 0.5, ["A", "B"], "row 0 sums to 0.5"),
        ([0, 1], np.array([[-0.5, 1.0], [0.5, 0.5]]), ["A", "B"], "logits"),
        ([0, 1], np.array([[0.5, 0.5], [np.nan, 1]]), ["A", "B"], "not finite in 1 rows, first 1"),
        ([0, 1], GOOD, ["Lung Opacity", "lung_opacity"], "not different as metric keys"),
        ([0, 0], np.ones((2, 1)), ["A"], "two classes"),
    ],
)
def test_bad_input_is_refused_with_what_is_wrong(y_true, probabilities, classes, message):
    with pytest.raises(ValueError, match=message):
        evaluate(np.array(y_true), probabilities, classes)


def test_confusion_refuses_labels_of_different_length():
    with pytest.raises(ValueError, match="differ in length"):
        confusion(np.array([0, 1]), np.array([0]), 2)


def test_table_shows_each_class_and_both_averages():
    y_true, probabilities = random_case()
    scores = evaluate(y_true, probabilities, CLASSES)
    logged = {key: value for key, value in scores.items() if key != "roc_auc/normal"}  # was nan
    table = metric_table(logged, CLASSES).set_index("class")
    assert list(table.index) == [*CLASSES, "macro average", "weighted average"]
    assert list(table.columns) == [*PER_CLASS, "support"]
    assert table.loc["Viral Pneumonia", "recall"] == scores["recall/viral_pneumonia"]
    assert table.loc["macro average", "f1"] == scores["f1_macro"]
    assert table.loc["weighted average", "support"] == len(y_true)
    assert math.isnan(table.loc["Normal", "roc_auc"])
