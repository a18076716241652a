"""Remedies for class imbalance: from training labels to loss weights or drawing weights.

To add one: a function and a line in `STRATEGIES` here, a name in `config.StrategyName`.
`tests/test_strategies.py` fails while the two lists differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.errors import InputError

Labels = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Balancing:
    """What a strategy asks of training; None means "leave as it is". Never both."""

    class_weights: Weights | None = None  # (C,), averages 1 over the training images
    draw_weights: Weights | None = None  # (N,), chance of each image to be drawn, unnormalised

    def prior_shift(self, counts: Weights) -> Weights:
        """What to add to logits (C,) so that they mean the classes as frequent as they are.

        A remedy trains as if class c had a share proportional to its count times its weight;
        by Bayes' rule the posterior for the true shares has log(true / trained-with) added to it
        (Saerens, Latinne, Decaestecker, Neural Computation 14(1), 2002; Menon et al., ICLR 2021).

        Parameters
        ----------
        counts : float64 array of shape (C,)
            Training images of each class.
        """
        seen = counts.copy()
        if self.class_weights is not None or self.draw_weights is not None:
            seen = np.ones_like(counts)  # both remedies make every class weigh the same
        return np.log(counts / counts.sum()) - np.log(seen / seen.sum())

    def __post_init__(self) -> None:
        if self.class_weights is not None and self.draw_weights is not None:
            raise ValueError("loss weights and oversampling at once would correct twice")


def no_balancing(labels: Labels, counts: Weights) -> Balancing:
    """Train on the classes as they come."""
    return Balancing()


def weighted_loss(labels: Labels, counts: Weights) -> Balancing:
    """Weigh class c by n / (C * n_c), the "balanced" heuristic of scikit-learn."""
    return Balancing(class_weights=len(labels) / (len(counts) * counts))


def oversample(labels: Labels, counts: Weights) -> Balancing:
    """Draw an epoch of the usual length in which every class is equally likely."""
    return Balancing(draw_weights=(1.0 / counts)[labels])


STRATEGIES: dict[str, Callable[[Labels, Weights], Balancing]] = {
    "none": no_balancing,
    "weighted": weighted_loss,
    "oversample": oversample,
}


def balance(strategy: str, labels: Labels, classes: tuple[str, ...]) -> Balancing:
    """Apply a strategy to the training labels.

    Parameters
    ----------
    strategy : str
        A key of `STRATEGIES`.
    labels : int64 array of shape (N,)
        Class indices of the training images, in [0, C).
    classes : tuple of str
        The C class names, for messages.

    Raises
    ------
    InputError
        If the strategy is unknown or a class has no training image.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"--strategy={strategy!r} is not one of {', '.join(STRATEGIES)}")
    counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    if empty := [classes[i] for i in np.flatnonzero(counts == 0)]:
        raise InputError(f"no training image of {', '.join(empty)}; check the split")
    return STRATEGIES[strategy](labels, counts)
