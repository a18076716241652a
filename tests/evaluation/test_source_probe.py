"""The source probe: a planted trace is found, copies do not leak, noise tells nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxr_mlflow.evaluation.source_probe import (
    MIN_FILMS,
    PENALTY,
    find_probed,
    probe_line,
    probe_metrics,
    probe_source,
)

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
NUM, WIDTH = 240, 64


def noise(seed: int, num: int = NUM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, WIDTH))


def sources(shares=(0.75, 0.25), num: int = NUM) -> np.ndarray:
    names = np.array(["rsna", "kermany", "third"])[: len(shares)]
    return np.random.default_rng(9).choice(names, num, p=shares)


def probe(features, told, groups=None, **options):
    groups = np.arange(len(told)) if groups is None else groups
    options = {"samples": 500, "class_name": "Normal"} | options
    return probe_source({"features": features}, told.tolist(), groups=groups, **options)


def test_a_planted_trace_is_found():
    told = sources()
    features = noise(0)
    features[:, 5] += 2.5 * (told == "rsna")
    found = probe(features, told)
    score = found.views["features"]
    assert found.sources == ("kermany", "rsna")
    assert found.chance == 0.5
    assert score.balanced_accuracy.low > 0.7
    assert score.roc_auc.low > 0.8


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.6, 0.2, 0.2)])
def test_noise_scores_chance(shares):
    scores = [
        probe(noise(seed), sources(shares), samples=100).views["features"].balanced_accuracy
        for seed in range(8)
    ]
    chance = 1 / len(shares)
    assert np.mean([score.value for score in scores]) == pytest.approx(chance, abs=0.03)
    assert sum(score.low < chance < score.high for score in scores) >= 6


def test_copies_of_a_film_do_not_give_its_source_away():
    films = 60
    told = np.repeat(sources((0.5, 0.5), films), 4)
    features = np.repeat(noise(4, films), 4, axis=0)
    groups = np.repeat(np.arange(films), 4)
    score = probe(features, told, groups).views["features"].balanced_accuracy
    assert score.low < 0.5 < score.high
    leaking = probe(features, told).views["features"].balanced_accuracy
    assert leaking.low > 0.8, "the same images, if copies are taken for films"


def test_it_scores_what_scikit_learn_scores():
    told = sources((0.6, 0.2, 0.2))
    features = noise(5)
    features[:, 0] += 1.5 * (told == "third")
    features[:, 7] = 1.0  # a feature that is always the same tells nothing and breaks nothing
    groups = np.arange(NUM) // 2
    score = probe(features, told, groups, seed=3).views["features"]
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=PENALTY, class_weight="balanced", max_iter=1000)
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    chances = cross_val_predict(
        model, features, told, groups=groups, cv=folds, method="predict_proba"
    )
    names = np.unique(told)
    predicted = names[chances.argmax(axis=1)]
    assert score.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(told, predicted))
    expected = roc_auc_score(told, chances, multi_class="ovr", average="macro")
    assert score.roc_auc.value == pytest.approx(expected)


def images(counts: dict[tuple[str, str], int]) -> tuple[np.ndarray, np.ndarray]:
    labels = [CLASSES.index(name) for (name, _), n in counts.items() for _ in range(n)]
    told = [source for (_, source), n in counts.items() for _ in range(n)]
    return np.array(labels), np.array(told, dtype=object)


def test_classes_with_two_known_sources_are_probed_the_largest_first():
    counts = {
        ("COVID", "bimcv"): 30,
        ("COVID", "sirm"): 25,
        ("COVID", "eurorad"): MIN_FILMS - 1,
        ("Lung_Opacity", "rsna"): 90,
        ("Normal", "rsna"): 60,
        ("Normal", "kermany"): 20,
        ("Viral Pneumonia", "kermany"): 50,
        ("Viral Pneumonia", "unknown"): 50,
    }
    labels, told = images(counts)
    found = find_probed(labels, told.tolist(), np.arange(len(labels)), CLASSES)
    assert list(found) == ["Normal", "COVID"]
    assert set(told[found["COVID"]]) == {"bimcv", "sirm"}, "a source of 19 films is left out"
    assert set(labels[found["Normal"]]) == {2}
    assert len(found["Normal"]) == 80


def test_copies_are_one_film():
    labels, told = images({("Normal", "rsna"): 60, ("Normal", "kermany"): 40})
    groups = np.arange(100)
    groups[60:] = 60 + np.arange(40) // 4  # ten films of kermany, four copies each
    assert find_probed(labels, told.tolist(), groups, CLASSES) == {}


def test_keys_and_words_tell_what_was_found():
    told = sources()
    planted = noise(0)
    planted[:, 5] += 2.0 * (told == "rsna")
    views = {"features": planted, "8x8 thumbnail": noise(1)}
    found = probe_source(
        views, told.tolist(), class_name="Viral Pneumonia", groups=np.arange(NUM), samples=100
    )
    metrics = probe_metrics([found], "features")
    score = found.views["features"].balanced_accuracy
    assert score.low < score.value < score.high
    assert metrics["balanced_accuracy/viral_pneumonia"] == score.value
    assert metrics["balanced_accuracy_low/viral_pneumonia"] == score.low
    assert metrics["roc_auc_high/viral_pneumonia"] == found.views["features"].roc_auc.high
    assert metrics["chance/viral_pneumonia"] == 0.5
    assert metrics["support/viral_pneumonia"] == NUM
    line = probe_line([found], CLASSES, view="features", reference="8x8 thumbnail")
    plain = found.views["8x8 thumbnail"].balanced_accuracy.value
    assert line.startswith(
        "inside Viral Pneumonia, the features tell 2 sources apart with balanced accuracy "
        f"{score.value:.2f} ({score.low:.2f}–{score.high:.2f}); chance 0.50, "
        f"an 8x8 thumbnail {plain:.2f}"
    )
    assert "not measured inside COVID, Lung_Opacity, Normal: fewer than two" in line
    assert "do not fit" not in line
    views = {"view": "features", "reference": "8x8 thumbnail"}
    line = probe_line([found], CLASSES, **views, doubted=["Viral Pneumonia", "Normal"])
    assert f"{plain:.2f}; but the listed sources of Viral Pneumonia do not fit its films" in line


def test_without_two_sources_nothing_is_claimed():
    line = probe_line([], CLASSES, view="features", reference="8x8 thumbnail")
    assert line.startswith("not measured: ")
    with pytest.raises(ValueError, match="Normal: one source"):
        probe(noise(0), np.full(NUM, "rsna"))
    with pytest.raises(ValueError, match="'features' has 10 rows"):
        probe(noise(0, 10), sources())
