"""Who is trained and who is tested on: stratified, duplicates kept together, saved with digests."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import SPLITS

COLUMNS = ("image_id", "class_name", "source", "group", "split", "pixel_hash")


@dataclass(frozen=True)
class Split:
    """An assignment of every image of a catalog to train, val or test.

    Attributes
    ----------
    table : DataFrame
        One row per image in catalog order: `image_id`, `class_name`, `source`, `group`, `split`,
        `pixel_hash`.
    """

    table: pd.DataFrame

    @property
    def digest(self) -> str:
        """SHA-256 in hex over (image_id, pixel_hash, split) of all images, in any order."""
        columns = (self.table[name] for name in ("image_id", "pixel_hash", "split"))
        return _digest("\t".join(row) for row in zip(*columns, strict=True))

    @property
    def test_digest(self) -> str:
        """SHA-256 in hex over the pixels tested on; equal for two runs that compare fairly."""
        test = self.table[self.table["split"] == "test"]
        pairs = zip(test["class_name"], test["pixel_hash"], strict=True)
        return _digest("\t".join(pair) for pair in pairs)

    def rows(self, name: str) -> NDArray[np.int64]:
        """Rows of a split in the catalog's table, ascending.

        Raises
        ------
        ValueError
            If `name` is not train, val or test.
        """
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}; there are {', '.join(SPLITS)}")
        return np.flatnonzero(self.table["split"] == name).astype(np.int64)

    def counts(self) -> pd.DataFrame:
        """Images per class (rows) and split (columns train, val, test)."""
        table = pd.crosstab(self.table["class_name"], self.table["split"])
        return table.reindex(columns=list(SPLITS), fill_value=0)

    def save(self, path: Path, advice: str = "write it elsewhere") -> None:
        """Write the table as CSV, for `--split-file`; `advice` is as of `write_whole`."""
        with write_whole(path, advice) as temporary:
            self.table.to_csv(temporary, index=False, lineterminator="\n")


def make_split(
    catalog: Catalog,
    groups: NDArray[np.int64],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Split:
    """Divide a catalog so that each split is like the whole, and no group is cut.

    Groups are dealt one by one, large ones first, else in an order drawn by `seed`; each goes where
    it keeps the shares of its sources, of its classes and of all images nearest to the wanted ones
    (least chi-square; for single images this is Webster's method of dealing out seats). The result
    depends on image names, groups, fractions and seed, not on the order of rows or the folder.

    Parameters
    ----------
    catalog : Catalog
    groups : int64 array of shape (N,)
        Group of each row; a group is never divided.
    val_fraction, test_fraction : float
        Shares of the images, in (0, 1); train gets the rest.
    seed : int
        Draws the order in which groups are dealt.

    Raises
    ------
    InputError
        If a class is missing from a split.
    """
    table = catalog.table
    if len(groups) != len(table):
        raise ValueError(f"{len(groups)} groups for {len(table)} images")
    shares = np.array([1 - val_fraction - test_fraction, val_fraction, test_fraction])
    strata = _strata(table)
    totals = Counter(stratum for row in strata for stratum in row)
    targets = {stratum: shares * total for stratum, total in totals.items()}
    dealt = {stratum: np.zeros(len(SPLITS)) for stratum in totals}
    assigned = np.zeros(len(table), np.int64)
    for members in _deal_order(table["image_id"].tolist(), groups, strata, totals, seed):
        needs = Counter(stratum for row in members for stratum in strata[row])
        cost = sum(n * (n + 2 * dealt[s]) / targets[s] for s, n in needs.items())
        choice = int(np.argmin(cost))
        assigned[members] = choice
        for stratum, number in needs.items():
            dealt[stratum][choice] += number
    split = _split_table(catalog, groups, np.array(SPLITS)[assigned])
    _require_all_classes(catalog, split, "raise --val-fraction or --test-fraction, or add images")
    return split


def _strata(table: pd.DataFrame) -> list[tuple[tuple[str, ...], ...]]:
    """Of each image: everything, its class, its class and source; shares are kept for each."""
    return [
        ((), (name,), (name, source))
        for name, source in zip(table["class_name"], table["source"], strict=True)
    ]


def _deal_order(
    image_ids: list[str],
    groups: NDArray[np.int64],
    strata: list[tuple[tuple[str, ...], ...]],
    totals: Counter[tuple[str, ...]],
    seed: int,
) -> list[list[int]]:
    """Members of each group: large groups first, then rare sources, else by seeded hash."""
    members: dict[int, list[int]] = defaultdict(list)
    for row, group in enumerate(groups.tolist()):
        members[group].append(row)

    def place(rows: list[int]) -> tuple[int, int, str]:
        first = min(rows, key=lambda row: image_ids[row])
        drawn = hashlib.sha256(f"{seed}\t{image_ids[first]}".encode()).hexdigest()
        return -len(rows), totals[strata[first][-1]], drawn

    return sorted(members.values(), key=place)


def _split_table(
    catalog: Catalog, groups: NDArray[np.int64], splits: NDArray[np.str_] | pd.Series
) -> Split:
    table = catalog.table[["image_id", "class_name", "source", "pixel_hash"]].copy()
    table["group"] = groups
    table["split"] = np.asarray(splits, dtype=str)
    return Split(table[list(COLUMNS)].astype({"split": "str"}))


def _require_all_classes(catalog: Catalog, split: Split, advice: str) -> None:
    counts = split.counts().reindex(list(catalog.classes), fill_value=0)
    for name, row in counts.iterrows():
        if (row == 0).any():
            numbers = ", ".join(f"{row[part]} in {part}" for part in SPLITS)
            raise InputError(f"class {name!r} is missing from a split ({numbers}); {advice}")


def load_split(
    path: Path,
    catalog: Catalog,
    groups: NDArray[np.int64] | None = None,
    *,
    allow_crossing: bool = False,
) -> Split:
    """Read a split that was saved, and make sure that it fits the data.

    Parameters
    ----------
    path : Path
        CSV with at least `image_id` and `split`; `class_name`, `group` and `pixel_hash` are checked
        where they are there.
    catalog : Catalog
    groups : int64 array of shape (N,), optional
        Duplicates found in the data now, checked beside those of the file.
    allow_crossing : bool
        Let a group of duplicates lie in several splits.

    Raises
    ------
    InputError
        If the file is not such a table, names an image that is not there or misses one that is, if
        an image's pixels or class have changed, a group lies in several splits, or a class is
        missing from a split.
    """
    saved = _read_table(path)
    here = catalog.table.set_index("image_id")
    _refuse(path, saved.index.difference(here.index), "images that are not in the data")
    _refuse(path, here.index.difference(saved.index), "no row for images of the data")
    saved = saved.loc[catalog.table["image_id"]]
    for column, what in (("class_name", "another class"), ("pixel_hash", "other pixels")):
        if column in saved:
            changed = saved.index[saved[column].to_numpy() != here[column].to_numpy()]
            _refuse(path, changed, f"{what} than the data have now, for")
    told = saved["group"].to_numpy() if "group" in saved else None
    if groups is None:
        groups = np.arange(len(saved)) if told is None else pd.factorize(told)[0]
    split = _split_table(catalog, np.asarray(groups, np.int64), saved["split"])
    if not allow_crossing:
        for labels in (told, groups):
            if labels is not None:
                _refuse_crossing(path, split.table, labels)
    _require_all_classes(catalog, split, f"{path} does not suit these data")
    return split


def _read_table(path: Path) -> pd.DataFrame:
    """Read and check the file by itself; indexed by image_id."""
    try:
        table: pd.DataFrame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # the parser's errors are ValueErrors
        raise InputError(f"--split-file={path}: cannot be read ({error})") from error
    if missing := {"image_id", "split"} - set(table.columns):
        raise InputError(f"--split-file={path}: no column {sorted(missing)[0]!r}")
    if unknown := sorted(set(table["split"]) - set(SPLITS)):
        names = ", ".join(SPLITS)
        raise InputError(f"--split-file={path}: split {unknown[0]!r} is not one of {names}")
    table = table.set_index("image_id")
    _refuse(path, table.index[table.index.duplicated()], "more than one row for")
    return table


def _refuse(path: Path, images: pd.Index, what: str) -> None:
    if len(images):
        names = ", ".join(map(str, images[:5])) + (", ..." if len(images) > 5 else "")
        raise InputError(
            f"--split-file={path}: {what} ({len(images)}): {names}; use the data it was made for, "
            "or make a new split"
        )


def _refuse_crossing(path: Path, table: pd.DataFrame, groups: NDArray[np.generic]) -> None:
    parts = table.groupby(np.asarray(groups))["split"].transform("nunique")
    _refuse(path, pd.Index(table["image_id"][parts > 1]), "duplicates lie in several splits")


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
