"""That splits are fair, keep duplicates together, come back the same, and refuse other data."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_mlflow.data.catalog import Catalog, load_catalog
from cxr_mlflow.data.splits import load_split, make_split
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import SPLITS


def catalog_of(counts: dict[tuple[str, str], int]) -> Catalog:
    """Catalog with so many images per (class, source)."""
    rows = [
        (f"{name}/{source}-{k}", name, source, f"{name}{source}{k}".encode().hex())
        for (name, source), count in counts.items()
        for k in range(count)
    ]
    columns = ["image_id", "class_name", "source", "pixel_hash"]
    table = pd.DataFrame(rows, columns=columns).sort_values("image_id", ignore_index=True)
    classes = tuple(sorted(table["class_name"].unique()))
    empty = pd.DataFrame(columns=["path", "problem", "detail", "fatal"])
    thumbnails = np.zeros((len(table), 32, 32), np.uint8)
    return Catalog(Path(), classes, table, thumbnails, empty, "digest", False, "made")


KAGGLE = {
    ("COVID", "bimcv"): 247,
    ("COVID", "sirm"): 12,
    ("Normal", "rsna"): 885,
    ("Normal", "kermany"): 134,
    ("Viral", "kermany"): 134,
}


def split_of(catalog, groups=None, *, val=0.1, test=0.2, seed=0):
    groups = np.arange(len(catalog.table)) if groups is None else groups
    return make_split(catalog, groups, val_fraction=val, test_fraction=test, seed=seed)


def test_every_class_and_source_keeps_its_share():
    split = split_of(catalog_of(KAGGLE))
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    sizes = split.table["split"].value_counts()
    for name, share in shares.items():
        assert sizes[name] == pytest.approx(share * len(split.table), abs=2)
    strata = split.table.groupby(["class_name", "source"])["split"].value_counts().unstack()
    for key, count in KAGGLE.items():
        for name, share in shares.items():
            assert strata.loc[key, name] == pytest.approx(share * count, abs=1.5)


def test_rows_are_a_partition_in_catalog_order():
    split = split_of(catalog_of(KAGGLE))
    rows = [split.rows(name) for name in SPLITS]
    assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in rows)
    assert sorted(np.concatenate(rows)) == list(range(len(split.table)))
    assert (split.table["split"].iloc[split.rows("val")] == "val").all()
    with pytest.raises(ValueError, match="validation"):
        split.rows("validation")


@settings(max_examples=60, deadline=None)
@given(
    num_groups=st.integers(60, 400),
    fractions=st.sampled_from([(0.1, 0.2), (0.2, 0.2), (0.3, 0.5)]),
    seed=st.integers(0, 1000),
)
def test_groups_are_never_cut_and_shares_are_near(num_groups, fractions, seed):
    catalog = catalog_of({("A", "x"): 60, ("A", "y"): 40, ("B", "x"): 80})
    n = len(catalog.table)
    groups = np.random.default_rng(seed).integers(0, num_groups, n)  # of one class and of two
    val, test = fractions
    split = split_of(catalog, groups, val=val, test=test, seed=seed)
    assert (split.table.groupby("group")["split"].nunique() == 1).all()
    assert split.table["group"].tolist() == groups.tolist()
    largest = np.bincount(groups).max()
    for name, share in zip(SPLITS, (1 - val - test, val, test), strict=True):
        assert abs(len(split.rows(name)) - share * n) <= largest + 2


def dealt_one_by_one(table, groups, shares, seed):
    """The rule in words, image by image: split of each row, 0 to 2."""
    strata = [((), (c,), (c, s)) for c, s in zip(table["class_name"], table["source"], strict=True)]
    totals = Counter(stratum for row in strata for stratum in row)
    members = [np.flatnonzero(groups == group).tolist() for group in pd.unique(groups)]

    def place(rows):
        first = min(rows, key=lambda row: table["image_id"].iloc[row])
        name = f"{seed}\t{table['image_id'].iloc[first]}"
        rarity = totals[strata[first][-1]]
        return -len(rows), rarity, hashlib.sha256(name.encode()).hexdigest()

    dealt = {stratum: np.zeros(3) for stratum in totals}
    splits = np.zeros(len(table), int)
    for rows in sorted(members, key=place):
        needs = Counter(stratum for row in rows for stratum in strata[row])
        cost = sum(n * (n + 2 * dealt[s]) / (shares * totals[s]) for s, n in needs.items())
        splits[rows] = np.argmin(cost)
        for stratum, n in needs.items():
            dealt[stratum][splits[rows[0]]] += n
    return splits


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(20, 40), min_size=6, max_size=6),
    num_groups=st.integers(30, 400),
    fractions=st.sampled_from([(0.1, 0.2), (0.25, 0.25), (0.3, 0.5)]),
    seed=st.integers(0, 1000),
)
def test_groups_are_dealt_by_the_rule(sizes, num_groups, fractions, seed):
    keys = [(name, source) for name in "AB" for source in ("x", "ü", "z")]
    catalog = catalog_of(dict(zip(keys, sizes, strict=True)))
    groups = np.random.default_rng(seed).integers(-num_groups, num_groups, len(catalog.table))
    val, test = fractions
    found = split_of(catalog, groups, val=val, test=test, seed=seed).table["split"]
    wanted = dealt_one_by_one(catalog.table, groups, np.array([1 - val - test, val, test]), seed)
    assert found.tolist() == np.array(SPLITS)[wanted].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_leaves_the_shares_exact(seed):
    catalog = catalog_of({("A", "x"): 100, ("B", "x"): 100})
    groups = np.arange(200)
    for first in (0, 100):
        groups[first : first + 65] = first  # 65 images of one film: train alone has room
    counts = split_of(catalog, groups, seed=seed).counts()
    for name, wanted in (("train", 70), ("val", 10), ("test", 20)):
        assert (abs(counts[name] - wanted) <= 1).all()


def test_the_split_depends_on_names_and_seed_not_on_row_order_or_group_numbers():
    catalog = catalog_of(KAGGLE)
    n = len(catalog.table)
    groups = np.arange(n) // 2 * 2
    split = split_of(catalog, groups)
    order = np.random.default_rng(0).permutation(n)
    table = catalog.table.iloc[order].reset_index(drop=True)
    other = split_of(replace(catalog, table=table), 10_000 - groups[order])
    assert other.digest == split.digest == split_of(catalog, groups).digest
    assert split_of(catalog, groups, seed=1).digest != split.digest


def test_splits_of_two_seeds_share_no_more_test_images_than_chance():
    catalog = catalog_of(KAGGLE)
    one, other = (set(split_of(catalog, seed=seed).rows("test")) for seed in (0, 1))
    assert len(one & other) / len(one) == pytest.approx(0.2, abs=0.08)


def test_a_class_too_small_for_a_split_is_named_with_its_counts():
    catalog = catalog_of({("COVID", "x"): 3, ("Normal", "x"): 300})
    with pytest.raises(InputError, match=r"'COVID'.*0 in val.*--val-fraction"):
        split_of(catalog)


def test_a_class_that_is_one_group_is_refused():
    catalog = catalog_of({("COVID", "x"): 30, ("Normal", "x"): 300})
    groups = np.where(catalog.table["class_name"] == "COVID", 0, np.arange(1, 331))
    with pytest.raises(InputError, match="'COVID' is missing"):
        split_of(catalog, groups)


def test_test_digest_is_of_the_pixels_tested_on():
    catalog = catalog_of(KAGGLE)
    split = split_of(catalog)
    table = split.table.copy()
    swapped = table["split"].replace({"train": "val", "val": "train"})
    same_test = replace(split, table=table.assign(split=swapped))
    assert same_test.test_digest == split.test_digest
    assert same_test.digest != split.digest
    renamed = replace(split, table=table.assign(image_id=table["image_id"] + "x"))
    assert renamed.test_digest == split.test_digest
    hashes = table["pixel_hash"].copy()
    hashes[split.rows("test")[0]] = "ff"
    assert replace(split, table=table.assign(pixel_hash=hashes)).test_digest != split.test_digest


# --- saved and read back


@pytest.fixture
def saved(tmp_path):
    catalog = catalog_of({("COVID", "bimcv, es"): 40, ("Viral Pneumonia", "kermany"): 40})
    groups = np.arange(80) // 2
    split = split_of(catalog, groups)
    split.save(tmp_path / "out" / "split.csv")
    return catalog, split, tmp_path / "out" / "split.csv"


def rewrite(path, change):
    table = change(pd.read_csv(path, dtype=str))
    table.to_csv(path, index=False)


def test_a_saved_split_comes_back_the_same(saved):
    catalog, split, path = saved
    back = load_split(path, catalog, split.table["group"].to_numpy())
    pd.testing.assert_frame_equal(back.table, split.table)
    assert back.digest == split.digest
    rewrite(path, lambda table: table.sample(frac=1, random_state=0))
    assert load_split(path, catalog).digest == split.digest


def test_a_split_made_by_hand_needs_two_columns(saved):
    catalog, split, path = saved
    rewrite(path, lambda table: table[["image_id", "split"]])
    assert load_split(path, catalog).digest == split.digest


def first_row(column, value):
    return lambda table: table.assign(**{column: [value, *table[column][1:]]})


REFUSED = {
    "a row too few": (lambda t: t.iloc[1:], "no row for"),
    "a row of another set": (
        lambda t: pd.concat([t, t.iloc[:1].assign(image_id="COVID/new")]),
        "COVID/new",
    ),
    "a row twice": (lambda t: pd.concat([t, t.iloc[:1]]), "more than one row"),
    "other pixels": (first_row("pixel_hash", "00"), "other pixels"),
    "another class": (first_row("class_name", "Normal"), "another class"),
    "a split of another name": (first_row("split", "holdout"), "'holdout' is not one of train"),
    "no column split": (lambda t: t.drop(columns="split"), "no column 'split'"),
    "a class in train alone": (
        lambda t: t.assign(split=t["split"].where(t["class_name"] == "COVID", "train")),
        "'Viral Pneumonia' is missing",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_split_that_does_not_fit_the_data_is_refused(saved, change, message):
    catalog, _, path = saved
    rewrite(path, change)
    with pytest.raises(InputError) as caught:
        load_split(path, catalog)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_duplicates_on_both_sides_are_refused_unless_told(saved):
    catalog, split, path = saved
    cut = {"image_id": split.table["image_id"][0]}

    def cross(table):
        here = table["image_id"] == cut["image_id"]
        return table.assign(
            split=table["split"].mask(here, "val").where(~here | (table["split"] != "val"), "test")
        )

    rewrite(path, cross)
    with pytest.raises(InputError, match="duplicates lie in several splits"):
        load_split(path, catalog)
    assert load_split(path, catalog, allow_crossing=True).digest != split.digest


def test_duplicates_found_since_are_refused_too(saved):
    catalog, split, path = saved
    groups = split.table["group"].to_numpy().copy()
    groups[split.rows("test")[0]] = groups[split.rows("train")[0]]
    with pytest.raises(InputError, match="duplicates"):
        load_split(path, catalog, groups)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00bad", b'a,b\n"unclosed'])
def test_a_file_that_is_no_table_is_named(saved, content):
    catalog, _, path = saved
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"--split-file=.*split\.csv"):
        load_split(path, catalog)


def test_a_split_of_files_on_disk_goes_with_them(make_dataset, tmp_path):
    root = make_dataset(count=20)
    catalog = load_catalog(root, cache_dir=tmp_path / "cache")
    split = split_of(catalog)
    split.save(tmp_path / "split.csv")
    (root / "COVID/images/COVID-7.png").unlink()
    (root / "COVID/masks/COVID-7.png").unlink()
    fewer = load_catalog(root, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"not in the data \(1\): COVID/COVID-7"):
        load_split(tmp_path / "split.csv", fewer)
