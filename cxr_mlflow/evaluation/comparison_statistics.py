"""The two chances in a score, test images and training, and what they leave of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.cells import Array, count_cells, score_cells
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, percentile_interval


@dataclass(frozen=True)
class Scored:
    """One score of R runs, on the test images and on S resamples of them."""

    values: Array  # float64 (R,)
    resampled: Array  # float64 (S, R); nan in a resample that lacks a class


@dataclass(frozen=True)
class Mean:
    """Mean of one score over the runs of a row, and how much chance is in it."""

    value: float
    resampled: Array  # float64 (S,): that mean on each resample
    training: float  # variance that training adds to the mean; 0 for one seed: not known
    freedom: int  # degrees of freedom of `training`: seeds less one


def measure_runs(
    y_true: NDArray[np.int64],
    y_pred: NDArray[np.int64],
    slugs: Sequence[str],
    how: Bootstrap,
) -> dict[str, Scored]:
    """Score all runs on the same resamples of the test images.

    Groups of near-duplicates are drawn whole (Field and Welsh 2007). All runs see the same draws,
    so that what makes a test set hard for all of them cancels in a difference.

    Parameters
    ----------
    y_true : int64 array of shape (N,)
        True class indices in [0, C).
    y_pred : int64 array of shape (R, N)
        Predicted ones, a row per run.
    slugs : sequence of C texts
        Classes as in keys.
    how : Bootstrap
        S resamples.

    Returns
    -------
    dict of str to Scored
        "f1_macro", "accuracy", "balanced_accuracy", and "f1/<slug>" of each class; fractions.

    Raises
    ------
    InputError
        If fewer than two resamples hold an image of every class: `samples` is too small.
    """
    keys = ("f1_macro", "accuracy", "balanced_accuracy", *(f"f1/{slug}" for slug in slugs))
    num_runs, width, members = len(y_pred), len(slugs) ** 2, how.members(len(y_true))
    cells = np.hstack([count_cells(y_true, pred, members, len(slugs)) for pred in y_pred])

    def measure(weights: Array) -> dict[str, Array]:  # float64 (B, G) -> key: float64 (B, R)
        scores = score_cells((weights @ cells).reshape(-1, width), slugs)
        return {key: scores[key].reshape(-1, num_runs) for key in keys}

    values = measure(np.ones((1, len(cells))))
    parts = [measure(weights) for weights in how.weights(len(cells))]
    scored = {
        key: Scored(values[key][0], np.concatenate([part[key] for part in parts])) for key in keys
    }
    if np.isfinite(scored["f1_macro"].resampled).all(axis=1).sum() < 2:
        raise InputError(
            f"samples={how.samples} is too small: fewer than two resamples of the {len(y_true)} "
            "test images hold an image of every class"
        )
    return scored


def average(scored: Scored, runs: Sequence[int], seeds: Sequence[str]) -> Mean:
    """Average one score over the runs of a row.

    What training adds is the variance between seeds, s^2 / n. The seed is the unit, not the run:
    a run repeated with the same seed is no second draw of initialisation, order and augmentation.

    Parameters
    ----------
    scored : Scored
        Of all runs.
    runs : sequence of K int
        Which of them belong to the row.
    seeds : sequence of K texts
        The seed of each.
    """
    values = scored.values[list(runs)]
    codes = pd.factorize(np.asarray(seeds, dtype=object))[0]
    counts = np.bincount(codes)
    freedom = len(counts) - 1
    by_seed = np.bincount(codes, values) / counts
    shares = counts / counts.sum()  # of each seed in the mean over runs
    training = float(np.var(by_seed, ddof=1) * (shares**2).sum()) if freedom else 0.0
    resampled = scored.resampled[:, list(runs)].mean(axis=1)
    return Mean(float(values.mean()), resampled, training, freedom)


def interval_of(mean: Mean, level: float) -> Interval:
    """Interval of the mean score of a row, within [0, 1].

    With one seed it is about these weights alone, as that in the note of the run, and by the same
    method: the percentile bootstrap. With several it holds the chance of training; see
    `t_interval`.
    """
    if not mean.freedom:
        return percentile_interval(mean.value, mean.resampled, level)
    return t_interval(mean.value, mean.resampled, [mean], level, (0.0, 1.0))[0]


def difference_of(a: Mean, b: Mean, level: float) -> tuple[Interval, float]:
    """Interval of the difference a - b on the same resamples, and its two-sided p-value."""
    value, resampled = a.value - b.value, a.resampled - b.resampled
    return t_interval(value, resampled, [a, b], level, (-1.0, 1.0))


def t_interval(
    value: float,
    resampled: Array,
    means: Sequence[Mean],
    level: float,
    bounds: tuple[float, float],
) -> tuple[Interval, float]:
    """Interval that holds the chance of the test images and that of training; p-value against 0.

    A row is a recipe, and a run of it one draw of initialisation, order and augmentation. Resampled
    test images alone would say how these weights do on other images, and call differences real that
    another seed reverses (Bouthillier et al. 2021). So the variance over resamples and the variance
    s^2 / n between seeds of each row are added. The sum has the degrees of freedom of Welch (1947)
    and Satterthwaite: few seeds make s^2 unsure, and the interval wider by the quantile of t; the
    bootstrap part counts as known (infinite degrees of freedom).

    What one seed gets right by luck on these very images is in both variances, so the interval is
    somewhat too wide rather than too narrow (Owen 2007, on crossed random effects). A row with one
    seed adds no training variance, because it is not known: its interval is of that run only.

    Parameters
    ----------
    value : float
        The estimate.
    resampled : float array of shape (S,)
        It on resampled test images; nan is left out.
    means : sequence of Mean
        The rows in it, one or two.
    level : float
        Coverage aimed at, in (0, 1).
    bounds : pair of float
        The ends are clipped to them.

    References
    ----------
    Bouthillier et al., Accounting for variance in machine learning benchmarks, MLSys 2021.
    Field and Welsh, Bootstrapping clustered data, JRSS B 69(3), 2007.
    Welch, The generalization of "Student's" problem when several different population variances are
    involved, Biometrika 34, 1947.
    Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007.
    """
    training = [(mean.training, mean.freedom) for mean in means if mean.freedom]
    variance = float(np.nanvar(resampled, ddof=1)) + sum(part for part, _ in training)
    if variance == 0:
        return Interval(value, value, value), 1.0 if value == 0 else 0.0
    unsure = sum(part**2 / freedom for part, freedom in training)
    freedom = variance**2 / unsure if unsure else math.inf
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    low, high = max(value - half, bounds[0]), min(value + half, bounds[1])
    return Interval(value, low, high), float(2 * stats.t.sf(abs(value) / error, freedom))


def clustered_mcnemar(
    hits_a: NDArray[np.bool_], hits_b: NDArray[np.bool_], members: NDArray[np.int64]
) -> tuple[float, float]:
    """Test whether two rows are right equally often: McNemar's test for grouped images.

    With d_g the hits of a less those of b in group g, each the mean over runs, the statistic is
    (sum d_g)^2 / sum d_g^2. Groups count as independent, images within one do not. For one run
    each and groups of one image it is McNemar's, without continuity correction. It is about these
    runs: the chance of training is not in it.

    Parameters
    ----------
    hits_a, hits_b : bool arrays of shape (K, N) and (L, N)
        Which images each run predicted right.
    members : int64 array of shape (N,)
        Group of each image, 0..G-1.

    Returns
    -------
    statistic, p_value : float
        Against chi-square with one degree of freedom; 0 and 1 where no group differs.

    References
    ----------
    Obuchowski, On the comparison of correlated proportions for clustered data, Statistics in
    Medicine 17(13), 1998; as Yang, Sun and Hardin, Biometrical Journal 52(5), 2010, simplify it,
    less the factor (G - 1) / G, without which it is McNemar's for single images. Durkalski,
    Palesch, Lipsitz and Rust, Statistics in Medicine 22(15), 2003: the same for groups of one size,
    else each d_g is divided by the size of its group.
    """
    each = len(hits_b) * hits_a.sum(axis=0) - len(hits_a) * hits_b.sum(axis=0)
    d = np.bincount(members, each)  # in whole numbers: a common factor falls out
    statistic = float(d.sum() ** 2 / (d**2).sum()) if d.any() else 0.0
    return statistic, float(stats.chi2.sf(statistic, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, as Holm (Scandinavian Journal of Statistics 6, 1979)."""
    if len(p_values) < 2:
        return [*p_values]
    from statsmodels.stats.multitest import (  # type: ignore[import-untyped]
        multipletests,  # here, for it takes long to import
    )

    return [float(p) for p in multipletests(p_values, method="holm")[1]]
