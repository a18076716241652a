"""Who is trained and who is tested on: stratified, duplicates kept together, saved with digests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import SPLITS

COLUMNS = ("image_id", "class_name", "source", "group", "split", "pixel_hash")
Stratum = tuple[str, ...]


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
    kinds, strata = _strata(table)
    counts = np.bincount(kinds, minlength=len(strata)).tolist()
    totals = Counter[Stratum]()
    for triple, count in zip(strata, counts, strict=True):
        totals.update(dict.fromkeys(triple, count))
    group = pd.factorize(groups)[0]
    rarity = np.array([totals[triple[-1]] for triple in strata], np.int64)
    order = _deal_order(table["image_id"], group, rarity[kinds], seed)
    targets = {stratum: (shares * total).tolist() for stratum, total in totals.items()}
    choices = np.zeros(len(order), np.int64)
    choices[order] = _deal(_members(kinds, group, order), strata, targets)
    split = _split_table(catalog, groups, pd.array(SPLITS, dtype="str").take(choices[group]))
    _require_all_classes(catalog, split, "raise --val-fraction or --test-fraction, or add images")
    return split


def _deal(
    groups: Iterable[tuple[int, ...]],
    strata: list[tuple[Stratum, ...]],
    targets: dict[Stratum, list[float]],
) -> list[int]:
    """Deal groups, given the kinds of their members, to the split that each fits best.

    In plain floats: arrays of three numbers would take ten times as long.
    """
    dealt = {stratum: [0.0] * len(SPLITS) for stratum in targets}
    known: dict[tuple[int, ...], list[tuple[int, list[float], list[float]]]] = {}
    cost, choices = [0.0] * len(SPLITS), [0]
    before: tuple[int, ...] = ()
    for members in groups:
        if members not in known:
            needs = Counter(stratum for kind in members for stratum in strata[kind])
            known[members] = [(n, dealt[s], targets[s]) for s, n in needs.items()]
        # After a group of the same kinds the costs stand, but for the split it went to.
        for part in choices[-1:] if members == before else range(len(SPLITS)):
            cost[part] = 0.0
            for n, have, wanted in known[members]:
                cost[part] += n * (n + 2 * have[part]) / wanted[part]
        choice = cost.index(min(cost))
        for n, have, _ in known[members]:
            have[choice] += n
        choices.append(choice)
        before = members
    return choices[1:]


def _strata(table: pd.DataFrame) -> tuple[NDArray[np.int64], list[tuple[Stratum, ...]]]:
    """Kind of each image, and of each kind: everything, its class, its class and source.

    Shares are kept for each of the three.
    """
    kinds = np.asarray(table.groupby(["class_name", "source"], sort=False).ngroup(), np.int64)
    firsts = table.iloc[np.unique(kinds, return_index=True)[1]]
    pairs = zip(firsts["class_name"], firsts["source"], strict=True)
    return kinds, [((), (name,), (name, source)) for name, source in pairs]


def _members(
    kinds: NDArray[np.int64], group: NDArray[np.int64], order: NDArray[np.int64]
) -> Iterator[tuple[int, ...]]:
    """Kinds of the images of each group, the groups in `order`."""
    sorted_kinds = kinds[np.argsort(group, kind="stable")].tolist()
    ends = np.cumsum(np.bincount(group)).tolist()
    for number in order.tolist():
        yield tuple(sorted_kinds[ends[number - 1] if number else 0 : ends[number]])


def _deal_order(
    image_ids: pd.Series, group: NDArray[np.int64], rarity: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Sort groups: large groups first, then rare sources, else by seeded hash."""
    by_name = image_ids.argsort(kind="stable").to_numpy()[::-1]
    firsts = np.zeros(group.max(initial=-1) + 1, np.int64)
    firsts[group[by_name]] = by_name  # of several rows the last one stays: the first by name
    drawn = b"".join(
        hashlib.sha256(f"{seed}\t{name}".encode()).digest()
        for name in image_ids.iloc[firsts].tolist()
    )
    words = np.frombuffer(drawn, ">u8").reshape(-1, 4)
    return np.lexsort((*words.T[::-1], rarity[firsts], -np.bincount(group)))


def _split_table(catalog: Catalog, groups: NDArray[np.int64], splits: ExtensionArray) -> Split:
    table = catalog.table[["image_id", "class_name", "source", "pixel_hash"]].copy()
    table["group"] = groups
    table["split"] = splits
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
    split = _split_table(catalog, np.asarray(groups, np.int64), saved["split"].array)
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
