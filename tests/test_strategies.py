"""What each remedy for imbalance asks of training."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from cxr_mlflow.config import StrategyName
from cxr_mlflow.data.dataset import EpochSampler
from cxr_mlflow.errors import InputError
from cxr_mlflow.strategies import STRATEGIES, Balancing, balance

CLASSES = ("a", "b", "c")
LABELS = np.repeat([0, 1, 2], [70, 20, 10])


def test_registry_and_config_agree():
    assert set(STRATEGIES) == set(get_args(StrategyName))


def test_none_leaves_all_as_it_is():
    assert balance("none", LABELS, CLASSES) == Balancing()


def test_weighted_is_scikit_learns_balanced():
    weights = balance("weighted", LABELS, CLASSES).class_weights
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(weights, expected)
    assert np.isclose(weights[LABELS].mean(), 1.0)


def test_oversample_draws_classes_evenly():
    draw_weights = balance("oversample", LABELS, CLASSES).draw_weights
    sampler = EpochSampler(9000, seed=3, draw_weights=draw_weights)
    counts = np.bincount(LABELS[np.array(sampler.order()) % len(LABELS)], minlength=3)
    assert (np.abs(counts - 3000) < 200).all()


@pytest.mark.parametrize("strategy", ["weighted", "oversample"])
def test_prior_shift_gives_the_true_frequencies_back(strategy):
    counts = np.bincount(LABELS).astype(float)
    shift = balance(strategy, LABELS, CLASSES).prior_shift(counts)
    undecided = np.exp(shift) / np.exp(shift).sum()  # equal logits: only the prior speaks
    np.testing.assert_allclose(undecided, [0.7, 0.2, 0.1])
    np.testing.assert_allclose(balance("none", LABELS, CLASSES).prior_shift(counts), 0, atol=1e-12)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_never_both_remedies(strategy):
    remedy = balance(strategy, LABELS, CLASSES)
    assert remedy.class_weights is None or remedy.draw_weights is None


def test_both_remedies_at_once_are_refused():
    with pytest.raises(ValueError, match="correct twice"):
        Balancing(class_weights=np.ones(3), draw_weights=np.ones(9))


def test_class_without_training_image_is_named():
    with pytest.raises(InputError, match="no training image of c"):
        balance("oversample", LABELS[LABELS < 2], CLASSES)


def test_unknown_strategy_names_the_choices():
    with pytest.raises(InputError, match="none, weighted, oversample"):
        balance("smote", LABELS, CLASSES)
