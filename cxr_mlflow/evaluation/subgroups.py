"""Scores of one source of images after the other: who a mean over all images speaks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from cxr_mlflow.evaluation.intervals import Bootstrap, Interval
from cxr_mlflow.evaluation.ratios import Flags, ratio_intervals

ALL_CLASSES = ""
"""Stands for the images of all classes of a source, in the column `class`."""
MIN_GROUPS = 20
"""Fewest films (groups of near-duplicates) with which a share is told."""
COLUMNS = ("source", "class", "images", "groups", "right", "share", "low", "high", "confidence")


def subgroups(
    predictions: pd.DataFrame,
    classes: Sequence[str],
    how: Bootstrap = Bootstrap(),
) -> pd.DataFrame:
    """Tell how often a model is right among the images of each source, and of each class there.

    Parameters
    ----------
    predictions : DataFrame of N rows
        Columns `source`, `true`, `predicted` and `confidence`, as `report.predictions_table`.
    classes : sequence of C names
        In index order; rows of one source follow it.
    how : Bootstrap
        Groups are resampled whole, within their row.

    Returns
    -------
    DataFrame
        `COLUMNS`; sources with most images first, of each the row `ALL_CLASSES` where it has
        several classes, then one row per class that it has. `right` counts the images predicted
        right; `share` = right / images is accuracy in a row of all classes and recall in a row of
        one, with the ends of its interval. `confidence` is the mean probability of the predicted
        class: far above `share`, the model is too sure there. Share and interval are nan where
        there are fewer than `MIN_GROUPS` groups. Where all images are right, or none is, the
        bootstrap has no width, and the exact interval of Clopper and Pearson (Biometrika 26, 1934)
        on the number of groups stands in its place.

    Raises
    ------
    ValueError
        If the groups do not fit the predictions, or a true class is not among `classes`.
    """
    members = how.members(len(predictions))
    sources = predictions["source"].to_numpy(object)
    true = predictions["true"].to_numpy(object)
    if strange := set(true) - set(classes):
        raise ValueError(f"true classes {sorted(strange)} are not among {list(classes)}")
    right = true == predictions["predicted"].to_numpy(object)
    confidence = predictions["confidence"].to_numpy(float)
    rows = []
    for source in sorted(set(sources), key=lambda name: (-(sources == name).sum(), name)):
        here = sources == source
        present = [name for name in classes if (here & (true == name)).any()]
        for name in [*([ALL_CLASSES] if len(present) > 1 else []), *present]:
            chosen = here if name == ALL_CLASSES else here & (true == name)
            num_groups = len(np.unique(members[chosen]))
            score = Interval(np.nan, np.nan, np.nan)
            if num_groups >= MIN_GROUPS:
                score = _share(right[chosen], replace(how, groups=members[chosen]))
            rows.append(
                {
                    "source": source,
                    "class": name,
                    "images": int(chosen.sum()),
                    "groups": num_groups,
                    "right": int(right[chosen].sum()),
                    "share": score.value,
                    "low": score.low,
                    "high": score.high,
                    "confidence": float(confidence[chosen].mean()),
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _share(right: Flags, how: Bootstrap) -> Interval:
    """Share of the images that are right, with its interval."""
    score = ratio_intervals({"right": (right, np.ones(len(right)))}, how)["right"]
    if right.any() and not right.all():
        return score
    num_groups = int(how.members(len(right)).max()) + 1
    hits = num_groups if right.all() else 0
    exact = binomtest(hits, num_groups).proportion_ci(how.level, method="exact")
    return Interval(score.value, float(exact.low), float(exact.high))
