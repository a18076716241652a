"""A comparison tells rows apart as often as it says, and no more; what is unlike is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import NotComparable, TestedRun, compare
from cxr_mlflow.evaluation.comparison_inputs import find_row, join_groups
from cxr_mlflow.evaluation.comparison_statistics import (
    Mean,
    Scored,
    average,
    clustered_mcnemar,
    difference_of,
    holm,
    measure_runs,
    t_interval,
)
from cxr_mlflow.evaluation.comparison_verdicts import ByImage, listed, verdict
from cxr_mlflow.evaluation.intervals import (
    Bootstrap,
    Interval,
    bootstrap_intervals,
    paired_difference,
)
from cxr_mlflow.evaluation.metrics import evaluate
from cxr_mlflow.evaluation.report import predictions_table

CLASSES = ("COVID", "Lung_Opacity", "Normal")
KEYS = ["f1_macro", "accuracy", "balanced_accuracy", "f1/covid", "f1/lung_opacity", "f1/normal"]


def make_run(row, seed, y_true, y_pred, *, groups=None, **told):
    image_ids = [f"image-{i:04d}" for i in range(len(y_true))]
    table = predictions_table(image_ids, y_true, np.eye(3)[y_pred], CLASSES)
    if groups is not None:
        table["group"] = groups
    about = {"run_id": f"id-{row}-{seed}", "name": f"{row} {seed}", "test_digest": "d" * 64} | told
    return TestedRun(row=row, seed=str(seed), predictions=table, **about)


def errs(generator, y_true, share):
    """Labels of which about `share` are wrong."""
    return np.where(generator.random(len(y_true)) < share, (y_true + 1) % 3, y_true)


def make_rows(shares, *, seeds=3, num_images=240, seed=0, **told):
    """Runs of one row per share of errors; each run errs anew."""
    generator = np.random.default_rng(seed)
    y_true = np.arange(num_images) % 3
    return [
        make_run(row, s, y_true, errs(generator, y_true, share), **told)
        for row, share in shares.items()
        for s in range(seeds)
    ]


def simulate_null(generator, *, num_runs, num_images=150):
    """Labels, and predictions of two rows that are one recipe: what differs is luck.

    Images differ in difficulty, and runs in how well training went, as a whole and image by image.
    """
    y_true = np.arange(num_images) % 3
    ease = generator.normal(1.0, 1.0, num_images)
    luck = generator.normal(0, 0.35, (2 * num_runs, 1))
    luck = luck + generator.normal(0, 0.2, (2 * num_runs, num_images))
    return y_true, np.where(ease + luck > 0, y_true, (y_true + 1) % 3)


def coverage(num_runs, trials=200):
    """Share of intervals of the difference that hold 0, which is the truth."""
    generator = np.random.default_rng(7)
    seeds, covered = [str(seed) for seed in range(num_runs)], 0
    for trial in range(trials):
        y_true, y_pred = simulate_null(generator, num_runs=num_runs)
        how = Bootstrap(samples=200, seed=trial)
        scored = measure_runs(y_true, y_pred, ["a", "b", "c"], how)["f1_macro"]
        a, b = (average(scored, np.arange(num_runs) + num_runs * row, seeds) for row in range(2))
        interval, p = difference_of(a, b, 0.95)
        covered += (holds := interval.low <= 0 <= interval.high)
        assert holds == (p >= 0.05)  # the interval and the p-value say the same
    return covered / trials


def test_the_interval_of_a_difference_covers_the_truth_about_as_often_as_it_says():
    assert 0.91 <= coverage(num_runs=4) <= 0.99


def test_a_row_of_one_seed_has_the_interval_of_the_runs_own_note():
    generator = np.random.default_rng(2)
    y_true = np.arange(240) % 3
    y_pred, groups = errs(generator, y_true, 0.3), np.arange(240) // 2 * 2
    row = compare([make_run("a", 0, y_true, y_pred, groups=groups)], samples=300).rows[0]
    how = Bootstrap(groups=groups, samples=300)
    own = bootstrap_intervals(y_true, np.eye(3)[y_pred], CLASSES, how)
    for key in ("f1_macro", "accuracy", "f1/normal"):
        score, expected = row.scores[key], own[key]
        assert (score.low, score.value, score.high) == pytest.approx(
            (expected.low, expected.value, expected.high)
        ), key


def test_one_seed_cannot_tell_recipes_apart_and_the_verdict_says_so():
    assert coverage(num_runs=1) < 0.6  # luck of training taken for a difference
    pair = compare(make_rows({"good": 0.1, "bad": 0.4}, seeds=1), samples=200).pairs[0]
    assert pair.distinguishable
    assert pair.verdict.startswith("good is better than bad in these runs: +0.")
    assert pair.verdict.endswith(
        "; both have one seed: the chance of training is not in this interval."
    )


def test_without_chance_in_the_images_the_test_is_that_of_welch():
    generator = np.random.default_rng(1)
    a, b = generator.normal(0.9, 0.02, 5), generator.normal(0.88, 0.01, 3)
    means = [
        average(Scored(x, np.tile(x, (9, 1))), range(len(x)), [str(i) for i in range(len(x))])
        for x in (a, b)
    ]
    gap = means[0].value - means[1].value
    interval, p = t_interval(gap, np.full(9, gap), means, 0.9, (-1, 1))
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert p == pytest.approx(theirs.pvalue)
    ends = theirs.confidence_interval(0.9)
    assert (interval.low, interval.high) == pytest.approx((ends.low, ends.high))


def test_without_chance_in_training_the_interval_is_normal_around_the_bootstrap():
    resampled = np.random.default_rng(0).normal(0.1, 0.03, 500)
    once = Mean(0.1, resampled, training=0.0, freedom=0)
    interval, p = t_interval(0.1, resampled, [once], 0.95, (-1, 1))
    error = resampled.std(ddof=1)
    assert (interval.low, interval.high) == pytest.approx(stats.norm.interval(0.95, 0.1, error))
    assert p == pytest.approx(2 * stats.norm.sf(0.1 / error))


def test_both_chances_add_up():
    resampled = np.random.default_rng(0).normal(0.5, 0.03, 500)
    two = Mean(0.5, resampled, training=0.02**2, freedom=4)
    interval, _ = t_interval(0.5, resampled, [two], 0.95, (0, 1))
    variance = resampled.var(ddof=1) + 0.02**2
    freedom = variance**2 / (0.02**4 / 4)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    assert interval.high - 0.5 == pytest.approx(half)
    assert 0.5 - interval.low == pytest.approx(half)


def test_no_chance_at_all_is_certain():
    none = [Mean(0.2, np.full(5, 0.2), 0.0, 0)]
    assert t_interval(0.2, np.full(5, 0.2), none, 0.95, (-1, 1)) == (Interval(0.2, 0.2, 0.2), 0)
    assert t_interval(0.0, np.zeros(5), none, 0.95, (-1, 1)) == (Interval(0, 0, 0), 1)


def test_ends_stay_where_scores_can_be():
    low = compare(make_rows({"hopeless": 0.98, "perfect": 0.01}, seeds=2, num_images=30))
    for row in low.rows:
        for key, score in row.scores.items():
            assert 0 <= score.low <= score.value <= score.high <= 1, key
    assert {row.scores["accuracy"].high for row in low.rows} >= {1.0}
    assert low.pairs[0].difference.high <= 1


def test_one_run_each_agrees_with_the_percentile_bootstrap_of_the_difference():
    runs = make_rows({"a": 0.2, "b": 0.3}, seeds=1, num_images=600)
    pair = compare(runs, samples=4000).pairs[0]
    columns = [pd.factorize(run.predictions["predicted"], sort=True)[0] for run in runs]
    theirs = paired_difference(np.arange(600) % 3, *columns, 3, Bootstrap(samples=4000))
    assert pair.difference.value == pytest.approx(theirs.value)
    ours = (pair.difference.low, pair.difference.high)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_a_row_is_the_mean_over_its_runs_and_keeps_each_of_them():
    runs = make_rows({"a": 0.2, "b": 0.3})
    found = compare(runs, samples=50)
    assert found.classes == CLASSES
    assert (found.num_images, found.num_groups, found.samples) == (240, 240, 50)
    for row in found.rows:
        assert [run.seed for run in row.runs] == ["0", "1", "2"]
        assert [*row.scores] == [*row.spread] == [*row.per_run] == KEYS
        for place, run in enumerate(row.runs):
            probabilities = run.predictions[["p_covid", "p_lung_opacity", "p_normal"]].to_numpy()
            expected = evaluate(np.arange(240) % 3, probabilities, CLASSES)
            for key in KEYS:
                assert row.per_run[key][place] == pytest.approx(expected[key]), key
        for key in KEYS:
            assert row.scores[key].value == pytest.approx(np.mean(row.per_run[key]))
            assert row.spread[key] == pytest.approx(np.std(row.per_run[key], ddof=1))
            assert row.scores[key].low < row.scores[key].value < row.scores[key].high


def test_neither_the_order_of_runs_nor_of_images_changes_anything():
    runs = make_rows({"a": 0.2, "b": 0.25, "c": 0.3}, groups=np.arange(240) // 2, minutes=2.0)
    runs.append(make_run("c", 10, np.arange(240) % 3, np.arange(240) % 3))
    generator = np.random.default_rng(0)
    shuffled = [
        dataclasses.replace(run, predictions=run.predictions.sample(frac=1, random_state=i))
        for i, run in enumerate(generator.permutation(np.array(runs, dtype=object)))
    ]
    first, again = compare(runs, samples=100), compare(shuffled, samples=100)
    for table in ("table", "runs_table", "pairs_table"):
        pd.testing.assert_frame_equal(getattr(first, table)(), getattr(again, table)())
    assert first.pairs == again.pairs
    assert [run.seed for row in first.rows if row.row == "c" for run in row.runs] == [
        *("0", "1", "2", "10")
    ]
    other = compare(runs, samples=100, seed=1)
    assert other.rows[0].scores["f1_macro"] != first.rows[0].scores["f1_macro"]


def test_a_seed_run_twice_is_no_second_draw_of_training():
    y_true = np.arange(240) % 3
    y_pred = errs(np.random.default_rng(0), y_true, 0.2)
    repeats = [make_run("a", 0, y_true, y_pred, run_id=name) for name in ("first", "second")]
    (row,) = compare(repeats, samples=100).rows
    assert (len(row.runs), row.num_seeds) == (2, 1)
    other = make_rows({"b": 0.3})
    pair = compare([*repeats, *other], samples=100).pairs[0]
    assert "1 and 3 seeds" in pair.verdict
    assert "a has one seed: the chance of training is not in this interval" in pair.verdict

    scored = Scored(np.array([0.8, 0.8, 0.9]), np.zeros((4, 3)))
    mean = average(scored, [0, 1, 2], ["0", "0", "1"])
    assert mean.value == pytest.approx(2.5 / 3)  # the mean over runs
    assert mean.freedom == 1
    assert mean.training == pytest.approx(0.005 * (4 + 1) / 9)  # s^2 of seeds, shares 2/3 and 1/3


def test_duplicates_do_not_make_the_comparison_surer():
    runs = make_rows({"a": 0.2, "b": 0.25}, seeds=2, num_images=120)
    copies = [
        dataclasses.replace(run, predictions=pd.concat([run.predictions] * 4, ignore_index=True))
        for run in runs
    ]
    for run in copies:
        run.predictions["group"] = run.predictions["image_id"]
        run.predictions["image_id"] += [f"-{i // 120}" for i in range(480)]
    alone, grouped = compare(runs, samples=300), compare(copies, samples=300)
    assert (grouped.num_images, grouped.num_groups) == (480, 120)
    one, four = alone.pairs[0], grouped.pairs[0]
    assert four.difference.low == pytest.approx(one.difference.low)
    assert four.mcnemar == pytest.approx(one.mcnemar)
    assert four.p_value == pytest.approx(one.p_value)


def test_images_that_any_run_calls_duplicates_are_drawn_together():
    names = [np.array(list(text), dtype=object) for text in ("aabcd", "xyyzw")]
    assert join_groups(names, 5).tolist() == [0, 0, 0, 1, 2]
    names = [np.array(list(text), dtype=object) for text in ("abcde", "xxyzw")]
    assert join_groups(names, 5).tolist() == [0, 0, 1, 2, 3]
    assert join_groups([], 3).tolist() == [0, 1, 2]
    assert join_groups([np.array(["b", None, "b", None], dtype=object)], 4).tolist() == [0, 1, 0, 2]
    y_true = np.arange(12) % 3
    runs = [make_run("old", 0, y_true, y_true), make_run("new", 0, y_true, y_true)]
    runs[1].predictions["group"] = np.arange(12) // 2
    assert compare(runs, samples=50).num_groups == 6


def test_mcnemar_is_that_of_statsmodels_for_single_images_and_single_runs():
    generator = np.random.default_rng(2)
    a, b = generator.random(300) < 0.9, generator.random(300) < 0.8
    counts = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    theirs = mcnemar(counts, exact=False, correction=False)
    ours = clustered_mcnemar(a[None], b[None], np.arange(300))
    assert ours == pytest.approx((theirs.statistic, theirs.pvalue))
    members = np.repeat(np.arange(300), 4)
    copies = clustered_mcnemar(a[None].repeat(4, axis=1), b[None].repeat(4, axis=1), members)
    assert copies == pytest.approx(ours)  # copies are no witnesses
    repeated = clustered_mcnemar(a[None].repeat(3, axis=0), b[None], np.arange(300))
    assert repeated == pytest.approx(ours)
    assert clustered_mcnemar(a[None], a[None], np.arange(300)) == (0, 1)


def test_mcnemar_weighs_groups_by_what_differs_in_them():
    a = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 1]], dtype=bool)
    b = np.array([[0, 1, 0, 1, 1]], dtype=bool)
    # means of a: 1, 1, 0.5, 0, 1; less b: 1, 0, 0.5, -1, 0; groups: 1, -0.5, 0
    statistic, p = clustered_mcnemar(a, b, np.array([0, 0, 1, 1, 2]))
    assert statistic == pytest.approx(0.5**2 / (1 + 0.25))
    assert p == pytest.approx(stats.chi2.sf(0.2, 1))
    fifths = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=bool)
    others = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)
    # 0.2 + 0.4 - 0.6 is nothing, whatever floating point makes of it
    assert clustered_mcnemar(fifths, others, np.array([0, 0, 0])) == (0, 1)


def test_holm_by_hand():
    # in order 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which may not be below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_every_pair_is_adjusted_for_all_that_are_shown():
    runs = make_rows({"a": 0.1, "b": 0.2, "c": 0.21})
    found = compare(runs, samples=200)
    assert [(pair.a, pair.b) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [p.p_adjusted for p in found.pairs] == holm([p.p_value for p in found.pairs])
    assert [p.mcnemar_p_adjusted for p in found.pairs] == holm([p.mcnemar_p for p in found.pairs])
    for pair in found.pairs:
        a, b = (next(row for row in found.rows if row.row == label) for label in (pair.a, pair.b))
        difference = a.scores["accuracy"].value - b.scores["accuracy"].value
        assert pair.accuracy_difference == pytest.approx(difference)
        assert pair.distinguishable == (pair.p_adjusted < 0.05)


def test_what_one_pair_alone_would_tell_is_not_told_among_many():
    rows = {"a": 0.14, "b": 0.2, "c": 0.2, "d": 0.2}
    pair = next(p for p in compare(make_rows(rows, seed=1), samples=200).pairs if p.b == "c")
    assert pair.difference.low > 0
    assert pair.p_value < 0.05 < pair.p_adjusted
    assert not pair.distinguishable
    assert "not distinguishable from c once 6 comparisons are counted" in pair.verdict


A, B = "resnet18, none", "cnn, none"
ALIKE = ByImage(A, 0.86)


@pytest.mark.parametrize(
    ("gap", "p_values", "seeds", "by_image", "pairs", "sentence"),
    [
        (
            *(Interval(0.004, -0.011, 0.019), (0.61, 1.0), (5, 5), ALIKE, 6),
            "resnet18, none is not distinguishable from cnn, none: +0.004 [-0.011, 0.019] macro "
            "F1, 5 and 5 seeds (p 0.61; Holm over 6 pairs 1.00); image by image (McNemar, Holm) p "
            "0.86.",
        ),
        (
            *(Interval(0.010, -0.004, 0.023), (0.14, 0.42), (3, 3), ByImage(A, 0.0172), 6),
            "resnet18, none is not distinguishable from cnn, none: +0.010 [-0.004, 0.023] macro "
            "F1, 3 and 3 seeds (p 0.14; Holm over 6 pairs 0.42); image by image (McNemar, Holm) p "
            "0.017: resnet18, none is right more often.",
        ),
        (
            *(Interval(0.046, 0.024, 0.068), (0.0002, 0.0012), (5, 4), ByImage(B, 0.0002), 6),
            "resnet18, none is better than cnn, none: +0.046 [0.024, 0.068] macro F1, 5 and 4 "
            "seeds (p < 0.001; Holm over 6 pairs 0.001); image by image (McNemar, Holm) p < 0.001: "
            "cnn, none is right more often.",
        ),
        (
            *(Interval(-0.046, -0.068, -0.024), (0.004, 0.004), (5, 5), ALIKE, 1),
            "resnet18, none is worse than cnn, none: -0.046 [-0.068, -0.024] macro F1, 5 and 5 "
            "seeds (p 0.004); image by image (McNemar) p 0.86.",
        ),
        (
            *(Interval(0.02, 0.002, 0.038), (0.031, 0.186), (5, 5), ALIKE, 6),
            "resnet18, none is not distinguishable from cnn, none once 6 comparisons are counted: "
            "+0.020 [0.002, 0.038] macro F1, 5 and 5 seeds (p 0.031; Holm over 6 pairs 0.19); "
            "image by image (McNemar, Holm) p 0.86.",
        ),
        (
            *(Interval(0.02, -0.002, 0.042), (0.07, 0.07), (3, 1), ALIKE, 1),
            "resnet18, none is not distinguishable from cnn, none: +0.020 [-0.002, 0.042] macro "
            "F1, 3 and 1 seed (p 0.070); image by image (McNemar) p 0.86; cnn, none has one seed: "
            "the chance of training is not in this interval.",
        ),
    ],
)
def test_verdicts_say_what_was_found_in_plain_words(
    gap, p_values, seeds, by_image, pairs, sentence
):
    assert verdict((A, B), seeds, gap, p_values, by_image, pairs, 0.95) == sentence


def test_names_are_listed_so_that_each_can_be_told_from_the_next():
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([A, "resnet18, weighted", B]) == (
        "resnet18, none; resnet18, weighted; and cnn, none"
    )


def test_the_headline_says_where_the_images_say_otherwise():
    """Rows that are level in macro F1, while one is right on more images: on those of class 2."""
    y_true = np.repeat([0, 1, 2], [30, 30, 600])
    small = np.arange(60) % 30
    none, weighted = y_true.copy(), y_true.copy()
    none[:60][small < 10] = 2
    weighted[60:150] = np.arange(90) % 2
    runs = [
        make_run(row, seed, y_true, y_pred)
        for row, y_pred in (("none", none), ("weighted", weighted))
        for seed in range(3)
    ]
    found = compare(runs, samples=200)
    (pair,) = found.pairs
    assert pair.by_image.right_more_often == "none"
    assert pair.mcnemar_p_adjusted < 0.001
    told = "none is right more often"
    assert f"image by image (McNemar) p < 0.001: {told}" in pair.verdict
    also = f"Image by image (McNemar) {told} than weighted (p < 0.001)."
    quiet = dataclasses.replace(found, pairs=(dataclasses.replace(pair, distinguishable=False),))
    assert quiet.headline().endswith(f". {also}")
    agreed = dataclasses.replace(found, pairs=(dataclasses.replace(pair, distinguishable=True),))
    assert "McNemar" not in agreed.headline()


@pytest.mark.parametrize(
    ("part", "row"),
    [
        ("v1", "v1 champion: cnn, none"),
        ("@champion", "v1 champion: cnn, none"),
        ("oversample", "v10: cnn, oversample"),
        ("cnn", "cnn"),
    ],
)
def test_a_baseline_is_named_by_words_that_only_its_label_has(part, row):
    assert find_row(part, ["v1 champion: cnn, none", "v10: cnn, oversample", "cnn"]) == row


def test_a_baseline_that_may_be_several_rows_is_refused_with_their_names():
    with pytest.raises(InputError, match="baseline='none' may be cnn, none; resnet18, none;"):
        find_row("none", ["cnn, none", "resnet18, none", "cnn, weighted"])


def test_the_headline_names_the_leader_and_who_is_not_told_from_it():
    good, same, bad = ({name: share} for name, share in (("a", 0.1), ("b", 0.1), ("c", 0.4)))
    runs = make_rows(good | same | bad)
    found = compare(runs, samples=200)
    lead, second = found.rows[0], found.rows[1]
    score = lead.scores["f1_macro"]
    assert found.headline() == (
        f"{lead.row} leads with macro F1 {score.value:.3f} ({score.low:.3f}–{score.high:.3f}) over "
        f"3 seeds, but is not distinguishable from {second.row}."
    )
    clear = compare(make_rows(good | bad), samples=200).headline()
    assert clear.startswith("a leads with ")
    assert clear.endswith(" over 3 seeds, and is better than c.")
    alone = compare(make_rows(good, seeds=1), samples=200)
    assert alone.pairs == ()
    assert alone.headline().startswith("a has macro F1 0.")
    assert alone.headline().endswith(
        "over 1 seed (it has one seed: the chance of training is not in this interval)."
    )
    assert math.isnan(alone.rows[0].spread["f1_macro"])
    equals = compare(make_rows(dict.fromkeys("abcde", 0.2)), samples=200).headline()
    assert equals.endswith("but is not distinguishable from any of the other 4 rows.")


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"lungs": 0.4, "lungs-out": 0.1}, True),
        ({"lungs": 0.1, "lungs-out": 0.1}, True),
        ({"lungs": 0.1, "lungs-out": 0.4}, False),
    ],
)
def test_a_control_that_is_as_good_as_the_best_row_takes_the_trust_from_all(shares, said):
    (own, own_share), (control, its_share) = shares.items()
    runs = make_rows({own: own_share})
    runs += make_rows({control: its_share}, seed=1, remarks=("a control: all but the lungs",))
    told = "lungs-out is a control, made to see too little: no score here shows a lung was read."
    assert compare(runs, samples=200).headline().endswith(told) is said


def test_rows_are_compared_with_the_baseline_alone():
    runs = make_rows({"good": 0.05, "base": 0.2, "same": 0.2, "bad": 0.5})
    found = compare(runs, baseline="base", samples=200)
    assert {(pair.a, pair.b) for pair in found.pairs} == {
        *(("good", "base"), ("same", "base"), ("bad", "base"))
    }
    worst = found.pairs[-1]
    assert worst.difference.value < 0
    assert worst.verdict.startswith("bad is worse than base: -0.")
    assert "Holm over 3 pairs" in worst.verdict
    assert found.headline().startswith("Against the baseline base, macro F1 0.7")
    assert found.headline().endswith("better: good — worse: bad — not distinguishable: same.")


def test_what_all_rows_share_is_told_once_and_what_one_has_stays_with_it():
    runs = [
        *make_rows({"a": 0.1}, remarks=("synthetic data", "not controlled"), minutes=4.0),
        *make_rows({"b": 0.2}, seeds=1, remarks=("not controlled",)),
    ]
    found = compare(runs, samples=50)
    assert found.remarks == ("not controlled",)
    assert found.rows[0].remarks == ("synthetic data", "not controlled")
    table = found.table()
    assert table["remarks"].tolist() == ["synthetic data; not controlled", "not controlled"]
    assert table["minutes"].tolist() == pytest.approx([4.0, math.nan], nan_ok=True)


def test_tables_hold_every_number():
    found = compare(make_rows({"a": 0.1, "b": 0.3}), samples=50)
    table, runs, pairs = found.table(), found.runs_table(), found.pairs_table()
    assert table["row"].tolist() == ["a", "b"]
    assert (table["runs"].tolist(), table["seeds"].tolist()) == ([3, 3], [3, 3])
    score = found.rows[1].scores["f1/covid"]
    told = table.loc[1, [f"f1/covid_{part}" for part in ("mean", "low", "high", "sd")]].tolist()
    assert told == [score.value, score.low, score.high, found.rows[1].spread["f1/covid"]]
    assert runs[["row", "seed"]].to_numpy().tolist() == [[r, s] for r in "ab" for s in "012"]
    assert runs["accuracy"].tolist()[3:] == list(found.rows[1].per_run["accuracy"])
    pair = found.pairs[0]
    line = pairs.iloc[0]
    assert (line["a"], line["difference"], line["low"], line["high"], line["verdict"]) == (
        *("a", pair.difference.value, pair.difference.low, pair.difference.high, pair.verdict),
    )
    empty = compare(make_rows({"a": 0.1}), samples=50).pairs_table()
    assert len(empty) == 0
    assert [*empty.columns] == [*pairs.columns]


def test_runs_of_different_test_sets_are_refused_by_name_and_size():
    runs = [
        *make_rows({"a": 0.1}, seeds=2),
        *make_rows({"b": 0.1}, seeds=1, num_images=60, test_digest="e" * 64),
    ]
    with pytest.raises(NotComparable, match="different images") as caught:
        compare(runs)
    message = str(caught.value)
    assert "cxr compare id-a-0 id-a-1\n    test_digest dddddddddddd, 240 images: a (2 " in message
    assert "cxr compare id-b-0\n    test_digest eeeeeeeeeeee, 60 images: b" in message
    assert isinstance(caught.value, InputError)


def change(change_table):
    """Two runs, the second with a changed table."""
    a, b = make_rows({"a": 0.1, "b": 0.1}, seeds=1)
    return [a, dataclasses.replace(b, predictions=change_table(b.predictions))]


@pytest.mark.parametrize(
    ("change_table", "message"),
    [
        (lambda t: t.drop(columns="predicted"), r"run b 0 \(id-b-0\) have no column predicted"),
        (lambda t: t.iloc[:0], r"run b 0 \(id-b-0\) list no image"),
        (lambda t: t.assign(true=t["true"].where(t.index > 0)), "run b 0 .* gaps in column true"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "run b 0 .* list image image-0000 twice"),
        (lambda t: t.iloc[1:], "run b 0 .* and run a 0 .* 0 and 1 that .* lacks.* image-0000"),
        (
            lambda t: t.assign(true=t["true"].where(t.index > 0, "Normal")),
            "differ in the true class of 1 images: image-0000 is Normal and COVID",
        ),
        (lambda t: t.assign(predicted="Flu"), "no test image of .* is of class Flu"),
        (lambda t: t.assign(p_flu=0.0), "no test image of .* is of class flu"),
        (lambda t: t.assign(group=1), "240 test images are near-duplicates of each other"),
    ],
)
def test_runs_that_were_not_tested_alike_are_refused_with_what_differs(change_table, message):
    with pytest.raises(NotComparable, match=message):
        compare(change(change_table))


def test_classes_that_are_given_must_fit():
    runs = make_rows({"a": 0.1, "b": 0.1}, seeds=1)
    assert compare(runs, classes=CLASSES[::-1], samples=50).classes == CLASSES[::-1]
    bare = [dataclasses.replace(r, predictions=r.predictions.iloc[:, :5]) for r in runs]
    with pytest.raises(NotComparable, match=r"run a 0 .* names a class 'COVID' that is none of"):
        compare(bare, classes=CLASSES[1:])
    with pytest.raises(NotComparable, match="is of class Viral Pneumonia"):
        compare(runs, classes=[*CLASSES, "Viral Pneumonia"])


def test_a_run_given_twice_is_refused():
    runs = make_rows({"a": 0.1}, seeds=2)
    with pytest.raises(NotComparable, match=r"run a 1 \(id-a-1\) is there twice"):
        compare([*runs, dataclasses.replace(runs[1], row="another")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "c"}, "baseline='c' is no row; choose from a; b"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 1}, "samples=1 is too small"),
        ({"level": 95}, "level=95"),
    ],
)
def test_bad_options_are_refused_with_what_is_wrong(options, message):
    with pytest.raises(InputError, match=message):
        compare(make_rows({"a": 0.1, "b": 0.1}, seeds=1), **options)


def test_nothing_to_compare_is_refused():
    with pytest.raises(InputError, match="no run"):
        compare([])
