"""Copies of one film: how many there are, and what a split lets through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.data.audit_sources import SourceFloor, source_floor
from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.duplicates import Duplicates
from cxr_mlflow.data.splits import Split
from cxr_mlflow.names import SPLITS

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Copies:
    """Images that show one film.

    Attributes
    ----------
    exact_pairs, near_pairs : int
        Links: an exact copy is linked to the first of its kind only.
    groups, images, largest : int
        Groups of two or more, images in them, size of the largest.
    across_classes, across_sources : int
        Groups with members of several.
    in_two_classes : int
        Files left out because the same pixels lie under two classes.
    per_class : dict of str to int
        Images in groups.
    examples : list of list of str
        Members of up to `MAX_EXAMPLES` groups that lie across classes.
    """

    exact_pairs: int
    near_pairs: int
    groups: int
    images: int
    largest: int
    across_classes: int
    across_sources: int
    in_two_classes: int
    per_class: dict[str, int]
    examples: list[list[str]]


@dataclass(frozen=True)
class SplitAudit:
    """What a split into train, val and test lets through.

    Attributes
    ----------
    digest : str
        Of the split.
    groups_cut : int
        Groups of copies with members in several splits.
    tested_and_trained : int
        Test images with a copy in train.
    expected_ungrouped : float
        As many were to be expected, had the same shares been dealt without regard to copies.
    examples : list of list of str
        Members of up to `MAX_EXAMPLES` groups that were cut.
    floor : SourceFloor
        The source rule made on train, scored on test.
    """

    digest: str
    groups_cut: int
    tested_and_trained: int
    expected_ungrouped: float
    examples: list[list[str]]
    floor: SourceFloor


def describe_copies(catalog: Catalog, duplicates: Duplicates) -> Copies:
    """Count the groups of a catalog, and find those with members of several classes or sources."""
    table, groups = catalog.table, duplicates.groups
    sizes = np.bincount(groups, minlength=1)
    in_group = sizes[groups] > 1
    members = table[in_group].groupby(groups[in_group])
    crossing = members["class_name"].nunique() > 1
    exact = int(duplicates.pairs["exact"].sum())
    return Copies(
        exact_pairs=exact,
        near_pairs=len(duplicates.pairs) - exact,
        groups=int((sizes > 1).sum()),
        images=int(in_group.sum()),
        largest=int(sizes.max()),
        across_classes=int(crossing.sum()),
        across_sources=int((members["source"].nunique() > 1).sum()),
        in_two_classes=int((catalog.problems["problem"] == "image_in_two_classes").sum()),
        per_class={
            name: int(((table["class_name"] == name) & in_group).sum()) for name in catalog.classes
        },
        examples=_name_groups(table, groups, crossing.index[crossing].tolist()),
    )


def _name_groups(
    table: pd.DataFrame, groups: NDArray[np.int64], wanted: list[int]
) -> list[list[str]]:
    return [table["image_id"][groups == group].tolist() for group in wanted[:MAX_EXAMPLES]]


def audit_split(catalog: Catalog, duplicates: Duplicates, split: Split) -> SplitAudit:
    """Look for copies across splits, and score the source alone on the test images.

    Parameters
    ----------
    catalog : Catalog
    duplicates : Duplicates
        Found on the catalog; the groups of the split file itself do not count here.
    split : Split
    """
    table, groups = catalog.table, duplicates.groups
    parts = split.table["split"].to_numpy(str)
    held = {name: np.bincount(groups[parts == name], minlength=len(table)) for name in SPLITS}
    cut = np.flatnonzero(sum((count > 0).astype(int) for count in held.values()) > 1)
    sizes = sum(held.values())
    train, test = split.rows("train"), split.rows("test")
    alone = (1 - len(train) / len(table)) ** np.maximum(sizes - 1, 0)
    labels, sources = table["label"].to_numpy(np.int64), table["source"].to_numpy(str)
    return SplitAudit(
        digest=split.digest,
        groups_cut=len(cut),
        tested_and_trained=int(held["test"][held["train"] > 0].sum()),
        expected_ungrouped=float(len(test) / len(table) * (sizes * (1 - alone)).sum()),
        examples=_name_groups(table, groups, cut.tolist()),
        floor=source_floor(
            sources[train].tolist(),
            labels[train],
            catalog.classes,
            tested=(sources[test].tolist(), labels[test]),
        ),
    )
