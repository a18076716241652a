"""Runs to compare, laid side by side: the same test images in one order, or a refusal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.metrics import class_slugs

COLUMNS = ("image_id", "true", "predicted")
"""What a table of predictions must tell."""
_MOST_NAMES = 5


class NotComparable(InputError):
    """Runs were not tested alike; the message says which and how they differ."""


@dataclass(frozen=True)
class TestedRun:
    """A finished run: where it belongs, and what it predicted on the test images."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    run_id: str
    name: str
    row: str  # label of the row it belongs to, e.g. "resnet18, oversample"
    seed: str
    test_digest: str
    predictions: pd.DataFrame = field(repr=False, compare=False)  # as `predictions_table`
    remarks: tuple[str, ...] = ()  # what must stand beside its score, e.g. "synthetic data"
    minutes: float = math.nan
    word: str = ""  # what names it on the command line; by default the start of its id

    @property
    def named(self) -> str:
        """A word for `cxr compare` that names this run."""
        return self.word or self.run_id[:8]


@dataclass(frozen=True)
class SideBySide:
    """What R runs predicted for N images, ordered by image id."""

    y_true: NDArray[np.int64]  # (N,), in [0, C)
    y_pred: NDArray[np.int64]  # (R, N), runs in the order given
    members: NDArray[np.int64]  # (N,), group of near-duplicates of each image, 0..G-1
    classes: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """G, what is resampled."""
        return int(self.members.max()) + 1


def lay_side_by_side(runs: Sequence[TestedRun], classes: Sequence[str] | None = None) -> SideBySide:
    """Check that runs were tested on the same images, and order their predictions alike.

    Near-duplicates are what any run's `group` column calls so: where two runs drew the groups
    differently, groups that share an image become one. Images of a run without the column are
    each their own group, which leaves the others' groups as they are.

    Parameters
    ----------
    runs : sequence of R TestedRun
        At least one.
    classes : sequence of C names, optional
        In index order; by default the names that occur, sorted.

    Raises
    ------
    NotComparable
        If a run is there twice, the digests, the images or their true classes differ, a table
        lacks a column or a value, a class is unknown or has no test image (macro F1 would not be
        measured), or all images are near-duplicates of each other.
    """
    ids = [run.run_id for run in runs]
    if twice := [run for run in runs if ids.count(run.run_id) > 1]:
        raise NotComparable(f"{_called(twice[0])} is there twice; name each run once")
    _check_digests(runs)
    tables = [_table_of(run) for run in runs]
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_same_images(runs[0], first, run, table)
    classes = _classes_of(runs, tables, classes)
    y_pred = [
        _codes(run, table["predicted"], classes) for run, table in zip(runs, tables, strict=True)
    ]
    members = join_groups([t["group"].to_numpy(object) for t in tables if "group" in t], len(first))
    if not members.any():
        raise NotComparable(
            f"the {len(first):,} test images are near-duplicates of each other, as the column "
            "group says: there is nothing to resample"
        )
    y_true = _codes(runs[0], first["true"], classes)
    return SideBySide(y_true, np.stack(y_pred), members, tuple(classes))


def join_groups(partitions: Sequence[NDArray[np.object_]], num_images: int) -> NDArray[np.int64]:
    """Join several groupings of the same images: whom one of them puts together stays together.

    Parameters
    ----------
    partitions : sequence of arrays of shape (N,)
        Names of groups; a name means something within its own grouping only. Without any, each
        image is its own group.
    num_images : int
        N.

    Returns
    -------
    int64 array of shape (N,)
        0..G-1, numbered in the order in which they first occur.
    """
    images, groups, num_nodes = [np.arange(0)], [np.arange(0)], num_images
    for names in partitions:
        codes, found = pd.factorize(names)
        known = np.flatnonzero(codes >= 0)
        images.append(known)
        groups.append(num_nodes + codes[known])
        num_nodes += len(found)
    edges = (np.concatenate(images), np.concatenate(groups))
    graph = coo_array((np.ones(len(edges[0])), edges), shape=(num_nodes, num_nodes))
    parts = connected_components(graph, directed=False)[1][:num_images]
    return pd.factorize(parts)[0].astype(np.int64)


def _check_digests(runs: Sequence[TestedRun]) -> None:
    digests: dict[str, list[TestedRun]] = {}
    for run in runs:
        digests.setdefault(run.test_digest, []).append(run)
    if len(digests) > 1:
        told = [
            f"\n  cxr compare {' '.join(run.named for run in same)}"
            f"\n    test_digest {digest[:12]}, {len(same[0].predictions):,} images: {_rows(same)}"
            for digest, same in digests.items()
        ]
        raise NotComparable(
            "the runs were tested on different images. Compare those that share a test set:"
            + "".join(told)
        )


def _table_of(run: TestedRun) -> pd.DataFrame:
    """Check a table of predictions by itself; indexed and sorted by image id."""
    table = run.predictions
    if missing := [name for name in COLUMNS if name not in table]:
        raise NotComparable(
            f"the predictions of {_called(run)} have no column {', '.join(missing)}"
        )
    if table.empty:
        raise NotComparable(f"the predictions of {_called(run)} list no image")
    if (empty := table[list(COLUMNS)].isna().any()).any():
        column = empty.index[empty][0]
        raise NotComparable(f"the predictions of {_called(run)} have gaps in column {column}")
    table = table.assign(**{name: table[name].astype(str) for name in COLUMNS})
    table = table.set_index("image_id").sort_index()
    if (twice := table.index.duplicated()).any():
        raise NotComparable(
            f"the predictions of {_called(run)} list image {table.index[twice][0]} twice"
        )
    return table


def _check_same_images(
    first: TestedRun, expected: pd.DataFrame, run: TestedRun, table: pd.DataFrame
) -> None:
    more, fewer = table.index.difference(expected.index), expected.index.difference(table.index)
    if len(more) or len(fewer):
        raise NotComparable(
            f"{_called(run)} and {_called(first)} list different test images, {len(more):,} and "
            f"{len(fewer):,} that the other lacks, such as {[*more, *fewer][0]}"
        )
    differs = (table["true"] != expected["true"]).to_numpy()
    if differs.any():
        image = table.index[differs][0]
        raise NotComparable(
            f"{_called(run)} and {_called(first)} differ in the true class of {differs.sum():,} "
            f"images: {image} is {table['true'][image]} and {expected['true'][image]}"
        )


def _classes_of(
    runs: Sequence[TestedRun], tables: Sequence[pd.DataFrame], classes: Sequence[str] | None
) -> list[str]:
    """Names of the classes; all of them have test images."""
    true = set(tables[0]["true"])
    if classes is None:
        classes = sorted(true.union(*(set(table["predicted"]) for table in tables)))
    if len(classes) < 2:
        raise NotComparable(f"the test images are all of one class, {', '.join(classes)}")
    slugs = class_slugs(classes)
    scored = {name[2:] for t in tables for name in map(str, t) if name.startswith("p_")}
    absent = [name for name in classes if name not in true] + sorted(scored - set(slugs))
    if absent:
        raise NotComparable(
            f"no test image of {_names(runs)} is of class {', '.join(absent)}, so that macro F1 "
            "is not measured; test on images of every class"
        )
    return list(classes)


def _codes(run: TestedRun, names: pd.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    codes = pd.Index(classes).get_indexer(pd.Index(names))
    if (codes < 0).any():
        raise NotComparable(
            f"{_called(run)} names a class {names[codes < 0].iloc[0]!r} that is none of "
            f"{', '.join(classes)}"
        )
    return codes.astype(np.int64)


def find_row(told: str, labels: Sequence[str]) -> str:
    """Find the row that a label, or whole words of it, name: `v1`, `@champion`, `oversample`.

    Raises
    ------
    InputError
        If it names no row, or several.
    """
    if told in labels:
        return told
    words = re.compile(rf"(?<!\w){re.escape(told.removeprefix('@'))}(?!\w)")
    found = [label for label in labels if words.search(label)]
    if len(found) != 1:
        said = f"may be {'; '.join(found)}" if found else "is no row"
        raise InputError(f"baseline={told!r} {said}; choose from {'; '.join(labels)}")
    return found[0]


def _rows(runs: Sequence[TestedRun]) -> str:
    """Rows of runs, and how many runs of each."""
    counts = Counter(run.row for run in runs)
    told = [row + (f" ({number} runs)" if number > 1 else "") for row, number in counts.items()]
    more = len(told) - _MOST_NAMES
    return "; ".join([*told[:_MOST_NAMES], *([f"{more} more rows"] if more > 0 else [])])


def _called(run: TestedRun) -> str:
    return f"run {run.name} ({run.run_id[:8]})"


def _names(runs: Sequence[TestedRun]) -> str:
    told = ", ".join(_called(run) for run in runs[:_MOST_NAMES])
    more = len(runs) - _MOST_NAMES
    return f"{told} and {more} more" if more > 0 else told
