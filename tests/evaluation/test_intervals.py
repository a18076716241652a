"""Intervals are the bootstrap they claim to be, and duplicates do not make them too narrow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from cxr_mlflow.evaluation.intervals import Bootstrap, bootstrap_intervals, paired_difference
from cxr_mlflow.evaluation.metrics import evaluate

CLASSES = ["A", "B", "C"]


def simulate(generator, num_images, *, signal=1.5, num_classes=3):
    """Labels and probabilities; a few exact ties, so that ROC areas are tried on them."""
    y_true = generator.integers(0, num_classes, num_images)
    logits = generator.normal(size=(num_images, num_classes))
    logits += signal * np.eye(num_classes)[y_true]
    exp = np.exp(logits.round(1))
    return y_true, exp / exp.sum(axis=1, keepdims=True)


@given(
    labels=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_value_is_the_score_whatever_classes_are_missing(labels, seed):
    y_true, y_pred = np.array(labels).T
    noise = np.random.default_rng(seed).random((len(labels), 3)).round(1)
    probabilities = np.eye(3)[y_pred] * 4 + noise
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = evaluate(y_true, probabilities, CLASSES)
    found = bootstrap_intervals(y_true, probabilities, CLASSES, Bootstrap(samples=3))
    for key, interval in found.items():
        assert interval.value == pytest.approx(scores[key], nan_ok=True), key


def test_every_interval_equals_a_bootstrap_done_image_by_image():
    generator = np.random.default_rng(3)
    y_true, probabilities = simulate(generator, 40)
    y_true[y_true == 2] = 0
    y_true[:2] = 2  # so rare that some resamples lack it
    groups = generator.integers(100, 125, 40)
    intervals = bootstrap_intervals(
        y_true, probabilities, CLASSES, Bootstrap(groups=groups, samples=60, seed=5, level=0.8)
    )
    names = np.unique(groups)
    resampled = []
    for drawn in np.random.default_rng(5).integers(0, len(names), (60, len(names))):
        rows = np.concatenate([np.flatnonzero(groups == names[g]) for g in drawn])
        resampled.append(evaluate(y_true[rows], probabilities[rows], CLASSES))
    assert any(math.isnan(scores["f1_macro"]) for scores in resampled)
    for key, interval in intervals.items():
        low, high = np.nanquantile([scores[key] for scores in resampled], [0.1, 0.9])
        assert (interval.low, interval.high) == pytest.approx((low, high)), key


def test_intervals_agree_with_scipy_bootstrap():
    y_true, probabilities = simulate(np.random.default_rng(0), 250)
    y_pred = probabilities.argmax(axis=1)
    intervals = bootstrap_intervals(y_true, probabilities, CLASSES, Bootstrap(samples=4000))

    def f1_macro(truth, predicted):
        return f1_score(truth, predicted, average="macro")

    for key, data, statistic, resamples in (
        ("accuracy", (y_true == y_pred,), np.mean, 4000),
        ("f1_macro", (y_true, y_pred), f1_macro, 500),
    ):
        theirs = stats.bootstrap(
            data, statistic, paired=True, vectorized=key == "accuracy", n_resamples=resamples,
            method="percentile", rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        ours = intervals[key]
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012), key


def test_equal_seeds_give_equal_intervals_and_others_differ():
    y_true, probabilities = simulate(np.random.default_rng(0), 100)
    first, again, other = (
        bootstrap_intervals(y_true, probabilities, CLASSES, Bootstrap(samples=200, seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["f1_macro"].low != other["f1_macro"].low


def coverage(copies, *, with_groups, runs=200, num_patients=80, accuracy=0.8):
    """Share of intervals that hold the true accuracy, each image being there `copies` times."""
    hits = 0
    for run in range(runs):
        generator = np.random.default_rng(run)
        y_true = np.repeat(generator.integers(0, 2, num_patients), copies)
        right = np.repeat(generator.random(num_patients) < accuracy, copies)
        probabilities = np.eye(2)[np.where(right, y_true, 1 - y_true)]
        groups = np.repeat(np.arange(num_patients), copies) if with_groups else None
        interval = bootstrap_intervals(
            y_true, probabilities, ["A", "B"], Bootstrap(groups=groups, samples=300, seed=run)
        )["accuracy"]
        hits += interval.low <= accuracy <= interval.high
    return hits / runs


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    assert 0.89 <= coverage(1, with_groups=False) <= 0.99


def test_groups_keep_duplicates_from_narrowing_the_intervals():
    assert coverage(4, with_groups=False) < 0.8  # duplicates taken for independent images
    assert coverage(4, with_groups=True) >= 0.89


def test_a_class_without_images_has_no_interval():
    intervals = bootstrap_intervals(
        np.array([0, 1, 0, 1]), np.eye(3)[[0, 1, 1, 1]], CLASSES, Bootstrap(samples=100)
    )
    for key in ("f1/c", "f1_macro", "balanced_accuracy"):
        assert all(math.isnan(end) for end in (intervals[key].low, intervals[key].high)), key
    assert intervals["accuracy"].low < 0.75 < intervals["accuracy"].high


def test_a_better_model_is_told_from_an_equal_one():
    generator = np.random.default_rng(4)
    y_true, probabilities = simulate(generator, 400, signal=2.5)
    good = probabilities.argmax(axis=1)
    worse = np.where(generator.random(400) < 0.2, generator.integers(0, 3, 400), good)
    gain = paired_difference(y_true, good, worse, 3)
    assert gain.value == pytest.approx(
        f1_score(y_true, good, average="macro") - f1_score(y_true, worse, average="macro")
    )
    assert 0 < gain.low < gain.value < gain.high
    loss = paired_difference(y_true, worse, good, 3)
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    same = paired_difference(y_true, good, good, 3)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_pairing_and_groups_reach_the_difference():
    generator = np.random.default_rng(4)
    y_true, probabilities = simulate(generator, 300, signal=2.5)
    good = probabilities.argmax(axis=1)
    worse = np.where(generator.random(300) < 0.1, (good + 1) % 3, good)
    gain = paired_difference(y_true, good, worse, 3, Bootstrap(seed=1))
    alone = bootstrap_intervals(y_true, np.eye(3)[worse], CLASSES, Bootstrap(seed=1))["f1_macro"]
    assert gain.high - gain.low < alone.high - alone.low  # what is hard for both cancels
    copies = [np.repeat(labels, 4) for labels in (y_true, good, worse)]
    grouped = paired_difference(*copies, 3, Bootstrap(groups=np.repeat(np.arange(300), 4), seed=1))
    assert (grouped.low, grouped.high) == pytest.approx((gain.low, gain.high))


def test_a_difference_that_was_not_measured_is_no_victory():
    gain = paired_difference(np.array([0, 1]), np.array([0, 1]), np.array([1, 0]), 3)
    assert math.isnan(gain.value)
    assert not gain.low > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0"),
        ({"level": 95}, "level=95"),
        ({"groups": np.array([1, 2])}, r"shape \(3,\)"),
        ({"groups": np.array([0.5, 1, 2])}, "integers"),
    ],
)
def test_bad_options_are_refused_with_what_is_wrong(options, message):
    y_true = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(y_true, np.eye(2)[y_true], ["A", "B"], Bootstrap(**options))
    with pytest.raises(ValueError, match=message):
        paired_difference(y_true, y_true, y_true, 2, Bootstrap(**options))


def test_predictions_of_another_length_are_refused():
    with pytest.raises(ValueError, match="pred_b differ in length: 2, 3"):
        paired_difference(np.array([0, 1]), np.array([0, 1]), np.array([0, 1, 1]), 2)
