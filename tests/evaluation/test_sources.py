"""Source controls: a model that reads the source is caught, one that reads lungs is not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from cxr_mlflow.evaluation.sources import (
    control_lines,
    control_metrics,
    never_within,
    source_floor,
    within_sources,
)

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
RELEASE = {  # images per class and source of the COVID-19 Radiography Database
    ("COVID", "bimcv"): 2474,
    ("COVID", "cxnet"): 400,
    ("COVID", "eurorad"): 258,
    ("COVID", "hannover"): 183,
    ("COVID", "ieee8023"): 182,
    ("COVID", "sirm"): 119,
    ("Normal", "rsna"): 8851,
    ("Normal", "kermany"): 1341,
    ("Lung_Opacity", "rsna"): 6012,
    ("Viral Pneumonia", "kermany"): 1345,
}


def images(counts: dict[tuple[str, str], int]) -> tuple[np.ndarray, list[str]]:
    labels = [CLASSES.index(name) for (name, _), n in counts.items() for _ in range(n)]
    return np.array(labels), [source for (_, source), n in counts.items() for _ in range(n)]


@pytest.fixture
def rsna_and_children():
    return images(
        {
            ("Normal", "rsna"): 120,
            ("Lung_Opacity", "rsna"): 80,
            ("Normal", "kermany"): 60,
            ("Viral Pneumonia", "kermany"): 60,
            ("COVID", "bimcv"): 90,
        }
    )


def test_the_floor_of_the_whole_release_is_what_is_published_with_the_data():
    labels, sources = images(RELEASE)
    floor = source_floor(sources, labels, sources, labels, CLASSES)
    assert floor.f1_macro == pytest.approx(0.59, abs=0.005)
    assert floor.f1["covid"] == 1.0
    assert floor.f1["lung_opacity"] == 0.0
    rule = [CLASSES.index(floor.rule[source]) for source in sources]
    assert floor.f1_macro == pytest.approx(f1_score(labels, rule, average="macro"))


def test_the_rule_is_learnt_on_training_images_alone():
    train, test = ["a", "a", "b"], ["a", "b", "new", "b", "a"]
    truth = [1, 2, 0, 3, 0]
    floor = source_floor(train, [0, 0, 2], test, truth, CLASSES)
    assert floor.rule == {"a": "COVID", "b": "Normal"}
    predicted = [0, 2, 0, 2, 0]  # a source that training did not have gets the most frequent class
    assert floor.f1_macro == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_where_no_source_is_told_there_is_no_floor_and_that_is_said():
    assert source_floor(["unknown"] * 3, [0, 1, 2], ["unknown"], [0], CLASSES) is None
    assert "not measured" in control_lines(None, [], [])["source floor"]
    assert control_metrics(None, []) == {}


def test_a_model_that_reads_the_source_is_caught_within_it(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(0)
    best = {"rsna": 2, "kermany": 3, "bimcv": 0}
    shortcut = np.eye(4)[[best[source] for source in sources]] + rng.uniform(0, 0.2, (410, 4))
    shortcut /= shortcut.sum(axis=1, keepdims=True)
    assert (shortcut.argmax(axis=1) == labels).mean() > 0.6, "it looks like a model"
    for found in within_sources(labels, shortcut, sources, CLASSES, samples=500):
        assert found.roc_auc.low < 0.5 < found.roc_auc.high


def test_a_model_that_reads_the_lungs_is_not_accused(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(1)
    honest = 0.6 * np.eye(4)[labels] + rng.uniform(0, 0.5, (410, 4))
    honest /= honest.sum(axis=1, keepdims=True)
    found = within_sources(labels, honest, sources, CLASSES, samples=500)
    assert [each.source for each in found] == ["rsna", "kermany"]
    assert [each.classes for each in found] == [
        ("Lung_Opacity", "Normal"),
        ("Normal", "Viral Pneumonia"),
    ]
    assert all(each.roc_auc.low > 0.9 for each in found)


def test_scores_within_a_source_are_among_its_own_classes(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(4), len(labels))
    (rsna, _) = within_sources(labels, probabilities, sources, CLASSES, samples=200)
    rows = np.array(sources) == "rsna"
    opacity, normal = probabilities[rows, 1], probabilities[rows, 2]
    truth = labels[rows] == 2
    assert rsna.num_images == rows.sum()
    assert rsna.roc_auc.value == pytest.approx(roc_auc_score(truth, normal / (normal + opacity)))
    expected = f1_score(truth, normal > opacity, average="macro")
    assert rsna.f1_macro.value == pytest.approx(expected)


def test_a_class_that_shares_no_source_is_named(rsna_and_children):
    labels, sources = rsna_and_children
    assert never_within(labels, sources, CLASSES) == ["COVID"]
    told = control_lines(source_floor(sources, labels, sources, labels, CLASSES), [], ["COVID"])
    assert told["never within a source"].startswith("COVID has no image in a source")
    assert never_within(labels, ["unknown"] * len(labels), CLASSES) == []


def test_a_handful_of_images_is_no_score():
    labels, sources = images({("Normal", "rsna"): 50, ("Lung_Opacity", "rsna"): 9})
    even = np.full((len(labels), 4), 0.25)
    assert within_sources(labels, even, sources, CLASSES) == []
