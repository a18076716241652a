"""Calibration finds what was put in, claims no more than it measured, and draws what it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from matplotlib.text import Text
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from cxr_mlflow.evaluation.calibration import (
    calibration_scores,
    expected_calibration_error,
    fit_temperature,
)
from cxr_mlflow.evaluation.calibration_plots import plot_reliability, plot_risk_coverage, plot_sets
from cxr_mlflow.evaluation.conformal import conformal_thresholds, prediction_sets, set_scores
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.selective import choose_threshold, selective_scores

CLASSES = ["A", "B", "C"]


def world(num_images, seed=0, *, spread=2.0):
    """Logits that are calibrated by construction, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_images, 3)) * spread + [0, 0.5, 1]
    ladder = softmax(logits, axis=1).cumsum(axis=1)[:, :-1]
    return logits, (generator.random(num_images)[:, None] >= ladder).sum(axis=1)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(true):
    logits, labels = world(20_000)
    found = fit_temperature(logits * true + 100, labels)  # a shift of all logits means nothing
    assert found == pytest.approx(true, rel=0.04)


def test_it_is_the_minimum_of_the_loss():
    logits, labels = world(3_000, seed=1)
    logits *= 1.7
    found = fit_temperature(logits, labels)

    def loss(temperature):
        return log_loss(labels, softmax(logits / temperature, axis=1))

    assert loss(found) < min(loss(found * 1.03), loss(found / 1.03))


def test_images_that_are_all_labelled_right_do_not_make_a_model_certain():
    labels = np.arange(300) % 3
    for scale in (1.0, 10.0):
        temperature = fit_temperature(np.eye(3)[labels] * scale, labels)
        sure = softmax(np.eye(3) * scale / temperature, axis=1)[0, 0]
        assert sure == pytest.approx(1 - 2 / 303, abs=1e-4)  # Laplace: one of each class was added


def test_logits_that_tell_nothing_or_the_opposite_stay_finite():
    labels = np.arange(30) % 3
    assert fit_temperature(np.ones((30, 3)), labels) == 1.0
    assert fit_temperature(-np.eye(3)[labels], labels) == 100.0
    assert fit_temperature(np.eye(3)[labels] * 1e-4, labels) == 0.01
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(np.full((30, 3), np.nan), labels)
    with pytest.raises(ValueError, match="30 rows of logits for 29 labels"):
        fit_temperature(np.ones((30, 3)), labels[1:])


def test_scores_equal_those_of_scikit_learn():
    logits, y_true = world(400, seed=2)
    probabilities = softmax(1.5 * logits, axis=1)
    scores = calibration_scores(y_true, probabilities, CLASSES, Bootstrap(samples=5))
    assert scores["brier"].value == pytest.approx(
        brier_score_loss(y_true, probabilities, scale_by_half=False)
    )
    assert scores["loss"].value == pytest.approx(log_loss(y_true, probabilities))
    parts = [scores[f"brier/{key}"].value for key in "abc"]
    assert parts[1] == pytest.approx(brier_score_loss(y_true == 1, probabilities[:, 1]))
    assert sum(parts) == pytest.approx(scores["brier"].value)


def test_calibration_error_is_that_of_bins_of_equal_mass():
    logits, y_true = world(450, seed=3)  # 15 bins of 30
    probability, happened = softmax(logits, axis=1)[:, 0], y_true == 0
    seen, said = calibration_curve(happened, probability, n_bins=15, strategy="quantile")
    ours = expected_calibration_error(happened, probability)
    assert ours == pytest.approx(np.abs(seen - said).mean(), abs=1e-9)
    scores = calibration_scores(y_true, softmax(logits, axis=1), CLASSES, Bootstrap(samples=5))
    assert scores["ece/a"].value == pytest.approx(ours)


def test_equal_probabilities_share_a_bin_whatever_their_order():
    happened = np.r_[np.ones(90, bool), np.zeros(10, bool)]
    assert expected_calibration_error(happened, np.full(100, 0.9)) == pytest.approx(0)
    assert expected_calibration_error(happened[::-1], np.full(100, 0.7)) == pytest.approx(0.2)


def test_a_calibrated_model_is_within_its_floor_and_an_overconfident_one_is_not():
    inside, reached_zero, caught = 0, 0, 0
    for seed in range(40):
        logits, y_true = world(600, seed)
        good = calibration_scores(
            y_true, softmax(logits, axis=1), CLASSES, Bootstrap(samples=150, seed=seed)
        )
        bad = calibration_scores(
            y_true, softmax(2 * logits, axis=1), CLASSES, Bootstrap(samples=150, seed=seed)
        )
        inside += good["ece_floor"].low <= good["ece"].value <= good["ece_floor"].high
        reached_zero += good["ece"].low == 0
        caught += bad["ece"].low > 0
        assert bad["ece"].low <= bad["ece"].value <= bad["ece"].high
    assert inside >= 34
    assert reached_zero >= 35
    assert caught == 40


def test_the_interval_of_the_calibration_error_holds_the_true_one():
    logits, y_true = world(200_000, seed=99)
    told, true = softmax(1.5 * logits, axis=1), softmax(logits, axis=1)
    top = told.argmax(axis=1)
    gap = told.max(axis=1) - true[np.arange(len(top)), top]
    fine = (told.max(axis=1) * 100).astype(int)
    truth = np.abs(np.bincount(fine, gap)).sum() / len(gap)
    held = 0
    for seed in range(60):
        logits, y_true = world(800, seed)
        ece = calibration_scores(
            y_true, softmax(1.5 * logits, axis=1), CLASSES, Bootstrap(samples=150, seed=seed)
        )["ece"]
        held += ece.low <= truth <= ece.high
    assert held >= 48  # 0.85 to 0.98 in larger simulations; docs/metrics.md says so


def test_near_duplicates_do_not_narrow_the_intervals():
    logits, y_true = world(200, seed=4)
    probabilities = softmax(1.4 * logits, axis=1)
    once = calibration_scores(y_true, probabilities, CLASSES, Bootstrap(samples=300))
    copies = np.repeat(y_true, 4), np.repeat(probabilities, 4, axis=0), CLASSES
    grouped = calibration_scores(
        *copies, Bootstrap(groups=np.repeat(np.arange(200), 4), samples=300)
    )
    blind = calibration_scores(*copies, Bootstrap(samples=300))
    for key in ("brier", "loss", "brier/a"):
        assert (grouped[key].low, grouped[key].high) == pytest.approx(
            (once[key].low, once[key].high)
        )
        assert blind[key].high - blind[key].low < 0.7 * (once[key].high - once[key].low)
    assert blind["ece_floor"].value < 0.7 * grouped["ece_floor"].value


def test_a_class_without_images_was_not_measured():
    logits, y_true = world(100)
    y_true[y_true == 2] = 0
    scores = calibration_scores(y_true, softmax(logits, axis=1), CLASSES, Bootstrap(samples=20))
    assert all(math.isnan(scores[f"{name}/c"].value) for name in ("ece", "ece_floor", "brier"))
    assert math.isfinite(scores["ece"].value)
    assert math.isfinite(scores["brier"].high)


NAMES = ["COVID", "Supercalifragilisticexpialidocious", "Viral Pneumonia"]
SUBTITLE = "test, n = 400, data demo (synthetic), not controlled, 3 damaged files skipped"


@pytest.fixture(scope="module")
def figures():
    logits, y_true = world(400, seed=5)
    raw, calibrated = softmax(3 * logits, axis=1), softmax(logits, axis=1)
    sets = prediction_sets(
        calibrated, conformal_thresholds(y_true, calibrated, coverage=0.9, per_class=True)
    )
    confidence, correct = calibrated.max(axis=1), calibrated.argmax(axis=1) == y_true
    threshold = choose_threshold(confidence, correct, risk=0.15)
    how = Bootstrap(samples=50)
    checked = selective_scores(y_true, calibrated, NAMES, threshold.threshold, how)
    size = {"subtitle": SUBTITLE}
    return {
        "reliability": plot_reliability(y_true, raw, calibrated, NAMES, **size),
        "risk": plot_risk_coverage(y_true, calibrated, threshold=threshold, scores=checked, **size),
        "out_of_reach": plot_risk_coverage(
            y_true,
            calibrated,
            threshold=choose_threshold(confidence, correct, risk=0.001),
            scores=checked,
            **size,
        ),
        "sets": plot_sets(
            y_true, sets, set_scores(y_true, sets, NAMES, how), NAMES, coverage=0.9, **size
        ),
    }


def texts(figure):
    """Texts that are drawn; matplotlib also keeps labels of ticks outside the axes."""
    hidden = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    return [text for text in found if text not in hidden and text.get_text().strip()]


def test_no_text_of_the_figures_is_cut_or_printed_over_another(figures):
    for name, figure in figures.items():
        figure.canvas.draw()
        page = figure.bbox.padded(1)
        boxes = {text: text.get_window_extent() for text in texts(figure)}
        for text, box in boxes.items():
            assert page.x0 <= box.x0 <= box.x1 <= page.x1, (name, text)
            assert page.y0 <= box.y0 <= box.y1 <= page.y1, (name, text)
        level = [(t, b.padded(-1)) for t, b in boxes.items() if t is not figure._suptitle]
        for (one, box), (other, other_box) in itertools.combinations(level, 2):
            assert not box.overlaps(other_box), (name, one, other)


def test_figures_tell_their_numbers_and_what_they_are_of(figures):
    told = {name: " ".join(t.get_text() for t in texts(f)) for name, f in figures.items()}
    for name, text in told.items():
        assert SUBTITLE in text.replace("\n", " "), name
    logits, y_true = world(400, seed=5)
    raw, calibrated = (
        expected_calibration_error(y_true == 0, softmax(scale * logits, axis=1)[:, 0])
        for scale in (3, 1)
    )
    assert abs(raw - calibrated) > 0.001
    assert f"ECE raw {raw:.3f}, calibrated {calibrated:.3f}" in told["reliability"]
    for panel in figures["reliability"].axes:  # nothing is written where a curve may go
        for text in panel.texts:
            assert text.get_window_extent().y0 >= panel.get_window_extent().y1, text
    assert "stated risk 0.15" in told["risk"]
    assert "answered" in told["risk"]
    assert "out of reach, it always abstains" in told["out_of_reach"]
    assert "stated 0.9" in told["sets"]
