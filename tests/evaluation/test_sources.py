"""Source controls: a model that reads the source is caught, one that reads lungs is not."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.sources import (
    never_within,
    within_lines,
    within_metrics,
    within_sources,
)

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


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


def test_a_model_that_reads_the_source_is_caught_within_it(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(0)
    best = {"rsna": 2, "kermany": 3, "bimcv": 0}
    shortcut = np.eye(4)[[best[source] for source in sources]] + rng.uniform(0, 0.2, (410, 4))
    shortcut /= shortcut.sum(axis=1, keepdims=True)
    assert (shortcut.argmax(axis=1) == labels).mean() > 0.6, "it looks like a model"
    for found in within_sources(labels, shortcut, sources, CLASSES, Bootstrap(samples=500)):
        assert found.roc_auc.low < 0.5 < found.roc_auc.high


def test_a_model_that_reads_the_lungs_is_not_accused(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(1)
    honest = 0.6 * np.eye(4)[labels] + rng.uniform(0, 0.5, (410, 4))
    honest /= honest.sum(axis=1, keepdims=True)
    found = within_sources(labels, honest, sources, CLASSES, Bootstrap(samples=500))
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
    (rsna, _) = within_sources(labels, probabilities, sources, CLASSES, Bootstrap(samples=200))
    rows = np.array(sources) == "rsna"
    opacity, normal = probabilities[rows, 1], probabilities[rows, 2]
    truth = labels[rows] == 2
    assert rsna.num_images == rows.sum()
    assert rsna.roc_auc.value == pytest.approx(roc_auc_score(truth, normal / (normal + opacity)))
    expected = f1_score(truth, normal > opacity, average="macro")
    assert rsna.f1_macro.value == pytest.approx(expected)
    assert within_metrics([rsna])["within/rsna/f1_macro_low"] == rsna.f1_macro.low


def test_a_class_that_shares_no_source_is_named(rsna_and_children):
    labels, sources = rsna_and_children
    assert never_within(labels, sources, CLASSES) == ["COVID"]
    told = within_lines([], ["COVID"])
    assert told["never within a source"].startswith("COVID has no image in a source")
    assert never_within(labels, ["unknown"] * len(labels), CLASSES) == []


def test_a_handful_of_images_is_no_score():
    labels, sources = images({("Normal", "rsna"): 50, ("Lung_Opacity", "rsna"): 9})
    even = np.full((len(labels), 4), 0.25)
    assert within_sources(labels, even, sources, CLASSES) == []


def test_a_list_that_does_not_fit_is_said_beside_the_scores_that_rest_on_it(rsna_and_children):
    labels, sources = rsna_and_children
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(4), 410)
    found = within_sources(labels, probabilities, sources, CLASSES, Bootstrap(samples=100))
    doubt = "; but the listed sources of Normal do not fit its films"
    lines = within_lines(found, [], {"Normal": ("kermany", "elsewhere")})
    assert lines["within kermany"].endswith(doubt)
    assert doubt not in lines["within rsna"], "not one of the two sources in doubt"
    lines = within_lines(found, [], {"COVID": ("kermany", "rsna")})
    assert not any("do not fit" in line for line in lines.values()), "COVID is in neither"
