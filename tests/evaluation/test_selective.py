"""What is promised of abstaining and of prediction sets holds on images that chose nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from cxr_mlflow.evaluation.conformal import conformal_thresholds, prediction_sets, set_scores
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.selective import choose_threshold, risk_coverage, selective_scores

CLASSES = ["A", "B", "C"]
SLOPE, FLOOR = 0.15, 0.004


def trial(seed, num_images=600, copies=1):
    """Confidence u, uniform, of images that are wrong with chance 0.15 (1 - u)² + 0.004."""
    generator = np.random.default_rng(seed)
    confidence = generator.random(num_images)
    wrong = generator.random(num_images) < SLOPE * (1 - confidence) ** 2 + FLOOR
    return np.repeat(confidence, copies), ~np.repeat(wrong, copies)


def true_risk(threshold):
    """Mean chance of an error where the confidence is at least the threshold."""
    return SLOPE * (1 - threshold) ** 2 / 3 + FLOOR


def test_the_stated_risk_is_kept_in_all_but_delta_of_the_validation_sets():
    chosen = [choose_threshold(*trial(seed), risk=0.05, delta=0.1) for seed in range(150)]
    found = [threshold for threshold in chosen if threshold.attainable]
    assert len(found) > 100
    assert np.mean([threshold.coverage for threshold in found]) > 0.4  # it is not kept by silence
    broken = sum(true_risk(threshold.threshold) > 0.05 for threshold in found)
    assert broken <= stats.binom.ppf(0.999, 150, 0.1)
    assert all(t.observed_risk <= t.upper_bound <= 0.05 for t in found)


def test_near_duplicates_are_one_witness():
    alone = choose_threshold(*trial(1), risk=0.05)
    confidence, correct = trial(1, copies=4)
    grouped = choose_threshold(confidence, correct, risk=0.05, groups=np.repeat(np.arange(600), 4))
    assert (grouped.threshold, grouped.upper_bound) == (alone.threshold, alone.upper_bound)
    assert choose_threshold(confidence, correct, risk=0.05).coverage > alone.coverage


def test_the_bound_is_that_of_clopper_and_pearson():
    confidence, correct = np.ones(1000), np.r_[np.zeros(20, bool), np.ones(980, bool)]
    found = choose_threshold(confidence, correct, risk=0.05, delta=0.06)
    theirs = stats.binomtest(20, 1000).proportion_ci(0.96, "exact").high  # 0.02 above it
    assert found.upper_bound == pytest.approx(theirs)
    assert (found.threshold, found.coverage, found.observed_risk) == (1.0, 1.0, pytest.approx(0.02))


def test_a_risk_out_of_reach_is_told_and_never_promised():
    few = np.ones(50), np.ones(50, bool)
    assert not choose_threshold(*few, risk=0.05).attainable  # ln(60) / 0.05 = 82 are needed
    enough = choose_threshold(np.ones(85), np.ones(85, bool), risk=0.05)
    assert enough.attainable
    wrong = choose_threshold(np.linspace(0.5, 1, 500), np.zeros(500, bool), risk=0.05)
    assert math.isinf(wrong.threshold)
    assert (wrong.coverage, wrong.upper_bound) == (0, 1)


def test_one_error_among_the_surest_does_not_end_the_search():
    confidence = np.linspace(1, 0.5, 1000)
    correct = np.ones(1000, bool)
    correct[0] = False
    found = choose_threshold(confidence, correct, risk=0.03)
    assert found.coverage == 1


@pytest.mark.parametrize("options", [{"risk": 5}, {"risk": 0.05, "delta": 0}])
def test_percent_is_refused(options):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        choose_threshold(*trial(0), **options)


def test_risk_and_coverage_are_counted_and_ties_stand_together():
    confidence = np.array([0.6, 0.9, 0.9, 0.5])
    correct = np.array([True, True, False, False])
    coverage, risk, area = risk_coverage(confidence, correct)
    np.testing.assert_allclose(coverage, [0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [1 / 2, 1 / 3, 1 / 2])
    assert area == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_aurc_is_the_mean_of_the_risks_image_by_image():
    confidence, correct = trial(3, 200)
    order = np.argsort(-confidence)
    expected = np.mean(np.cumsum(~correct[order]) / np.arange(1, 201))
    assert risk_coverage(confidence, correct)[2] == pytest.approx(expected)
    assert risk_coverage(np.ones(200), correct)[2] == pytest.approx(1 - correct.mean())


def labelled(num_images, seed, *, weights=(0.2, 0.3, 0.5), sharp=1.5):
    generator = np.random.default_rng(seed)
    y_true = generator.choice(3, num_images, p=weights)
    logits = generator.normal(size=(num_images, 3)) + 2 * np.eye(3)[y_true] * [0.5, 1, 1.5]
    return y_true, softmax(sharp * logits, axis=1)


def test_checked_scores_are_counts_and_intervals_are_a_bootstrap_by_hand():
    y_true, probabilities = labelled(150, 0)
    groups = np.random.default_rng(1).integers(0, 100, 150)
    how = Bootstrap(groups=groups, samples=40, seed=5, level=0.8)
    scores = selective_scores(y_true, probabilities, CLASSES, 0.7, how)
    sure = probabilities.max(axis=1) >= 0.7
    wrong = probabilities.argmax(axis=1) != y_true
    names = np.unique(groups)

    def films(flags):  # near-duplicates are one film
        return np.array([flags[groups == name].any() for name in names])

    for tail, kept in (("", y_true >= 0), ("/a", y_true == 0), ("/b", y_true == 1)):
        answered, errors = films(kept & sure), films(kept & sure & wrong)
        coverage, risk = (scores[f"selective_{name}{tail}"].value for name in ("coverage", "risk"))
        assert coverage == pytest.approx(answered.sum() / films(kept).sum())
        assert risk == pytest.approx(errors.sum() / answered.sum())
    answered, errors = films(sure), films(sure & wrong)
    risks, areas = [], []
    for drawn in np.random.default_rng(5).integers(0, len(names), (40, len(names))):
        rows = np.concatenate([np.flatnonzero(groups == names[g]) for g in drawn])
        risks.append(errors[drawn].sum() / answered[drawn].sum())
        areas.append(risk_coverage(probabilities[rows].max(axis=1), ~wrong[rows])[2])
    for key, values in (("selective_risk", risks), ("aurc", areas)):
        ends = np.quantile(values, [0.1, 0.9])
        assert (scores[key].low, scores[key].high) == pytest.approx(ends), key


def test_a_model_that_never_answers_has_no_risk_to_tell():
    y_true, probabilities = labelled(60, 0)
    scores = selective_scores(y_true, probabilities, CLASSES, math.inf, Bootstrap(samples=10))
    assert scores["selective_coverage"].value == 0
    assert math.isnan(scores["selective_risk"].value)


@pytest.mark.parametrize("per_class", [False, True])
def test_sets_hold_the_truth_as_often_as_stated(per_class):
    held = []
    for seed in range(200):
        thresholds = conformal_thresholds(*labelled(200, seed), coverage=0.9, per_class=per_class)
        y_true, probabilities = labelled(300, 1000 + seed)
        scores = prediction_sets(probabilities, thresholds)[np.arange(300), y_true]
        held.append([scores.mean(), *(scores[y_true == c].mean() for c in range(3))])
    overall, *classes = np.mean(held, axis=0)
    assert 0.89 < overall < 0.93
    if per_class:
        assert min(classes) > 0.89
    else:
        assert min(classes) < 0.86  # the hard class pays for the others: why there is per_class


def test_the_threshold_is_the_order_statistic_with_the_finite_sample_correction():
    probability = np.arange(1, 20) / 20  # 19 images: coverage 0.9 has to hold ceil(20 * 0.9) = 18
    told = np.column_stack([probability, 1 - probability])
    y_true = np.zeros(19, int)
    thresholds = conformal_thresholds(y_true, told, coverage=0.9, per_class=True)
    assert thresholds[0] == pytest.approx(0.1)
    assert prediction_sets(told, thresholds)[:, 0].sum() == 18
    assert thresholds[1] == 0  # no image of it: nothing is known, it is always in the set
    assert conformal_thresholds(y_true, told, coverage=0.96, per_class=True)[0] == 0
    assert (
        conformal_thresholds(y_true, told, coverage=0.9, per_class=False) == thresholds[0]
    ).all()


def test_a_group_counts_by_its_least_sure_image():
    y_true, probabilities = labelled(100, 2)
    once = conformal_thresholds(y_true, probabilities, coverage=0.9, per_class=True)
    easier = np.eye(3)[y_true] * 0.5 + probabilities * 0.5
    both = np.r_[y_true, y_true], np.r_[probabilities, easier]
    groups = np.tile(np.arange(100), 2)
    grouped = conformal_thresholds(*both, coverage=0.9, per_class=True, groups=groups)
    np.testing.assert_allclose(grouped, once)
    assert (conformal_thresholds(*both, coverage=0.9, per_class=True) > once).any()


def test_promise_and_check_count_in_the_same_unit():
    """Copies of films change neither what is promised nor what is found."""
    groups = np.r_[np.arange(200), np.repeat(np.arange(40), 5)]  # some films are there six times
    y_true, probabilities = (np.concatenate([v, np.repeat(v[:40], 5, axis=0)])
                             for v in labelled(200, 4))  # fmt: skip
    right = probabilities.argmax(axis=1) == y_true
    told = choose_threshold(probabilities.max(axis=1), right, risk=0.3, groups=groups)
    found = selective_scores(
        y_true, probabilities, CLASSES, told.threshold, Bootstrap(groups=groups, samples=10)
    )
    assert found["selective_risk"].value == pytest.approx(told.observed_risk)
    assert found["selective_coverage"].value == pytest.approx(told.coverage)
    thresholds = conformal_thresholds(
        y_true, probabilities, coverage=0.9, per_class=True, groups=groups
    )
    sets = prediction_sets(probabilities, thresholds)
    held = set_scores(y_true, sets, CLASSES, Bootstrap(groups=groups, samples=10))
    for c, key in enumerate("abc"):
        films = (y_true[:200] == c).sum()
        assert held[f"set_coverage/{key}"].value == pytest.approx(
            np.ceil((films + 1) * 0.9) / films
        )


def test_a_film_is_held_only_if_the_sets_of_all_its_copies_hold_it():
    sets, y_true = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]], bool), np.zeros(3, int)
    scores = set_scores(y_true, sets, CLASSES, Bootstrap(groups=np.array([0, 0, 1]), samples=10))
    assert scores["set_coverage"].value == 0.5
    assert scores["set_single"].value == 1


def test_set_scores_count():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]], bool)
    y_true = np.array([0, 1, 1, 1])
    scores = set_scores(y_true, sets, CLASSES, Bootstrap(samples=20))
    values = {key: interval.value for key, interval in scores.items()}
    assert values["set_coverage"] == 0.75
    assert values["set_coverage/b"] == pytest.approx(2 / 3)
    assert (values["set_size"], values["set_size/a"]) == (1.25, 1)
    assert (values["set_empty"], values["set_single"]) == (0.25, 0.25)
    assert math.isnan(values["set_coverage/c"])
    assert scores["set_coverage"].low < 0.75 < scores["set_coverage"].high
    with pytest.raises(ValueError, match=r"sets must have shape \(4, 3\)"):
        set_scores(y_true, sets[:, :2], CLASSES)
    with pytest.raises(ValueError, match="coverage=90"):
        conformal_thresholds(y_true, np.eye(3)[y_true], coverage=90, per_class=True)
