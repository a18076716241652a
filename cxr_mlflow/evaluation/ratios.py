"""Bootstrap intervals of means over images, all of them from the same resamples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.evaluation.cells import Array
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval

Flags = NDArray[np.bool_]
Ratios = dict[str, tuple[NDArray[np.generic], NDArray[np.generic]]]
"""Key -> what is summed (N,), and what its sum is divided by (N,): ones for a mean over all images,
1 and 0 for a mean over some."""


def ratio_intervals(ratios: Ratios, how: Bootstrap) -> dict[str, Interval]:
    """Percentile bootstrap intervals of ratios of sums; groups are drawn whole.

    Parameters
    ----------
    ratios : mapping of str to (numerator, denominator)
        Two float arrays of shape (N,) each.
    how : Bootstrap

    Returns
    -------
    dict of str to Interval
        nan where the denominator sums to 0; resamples where it does are left out.
    """
    parts = np.array([(over, under) for over, under in ratios.values()], float)  # (K, 2, N)
    members = how.members(parts.shape[2])
    cells = np.zeros((int(members.max()) + 1, *parts.shape[:2]))
    np.add.at(cells, members, parts.transpose(2, 0, 1))

    def measure(weights: Array) -> dict[str, Array]:  # (B, G) -> (B,) each
        sums = np.tensordot(weights, cells, axes=1)
        over, under = sums[..., 0], sums[..., 1]
        shares = np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)
        return dict(zip(ratios, shares.T, strict=True))

    return how.intervals(measure, len(cells))


def of_films(flags: Flags, members: NDArray[np.int64]) -> Flags:
    """Which groups of near-duplicates have an image with a flag: bool (G,), from (N,) and (N,)."""
    return np.bincount(members[flags], minlength=int(members.max()) + 1) > 0


def by_class(y_true: NDArray[np.int64], slugs: Sequence[str]) -> list[tuple[str, Flags]]:
    """End of a key, and which images it is about: all, and those of each true class."""
    each = [(f"/{key}", y_true == c) for c, key in enumerate(slugs)]
    return [("", np.ones(len(y_true), bool)), *each]
