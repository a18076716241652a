"""That a list of sources which its films contradict is doubted, and a right one is not."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import roc_auc_score

from cxr_mlflow.cli.data_tables import print_audit
from cxr_mlflow.data import audit_shortcuts
from cxr_mlflow.data.audit import audit_data
from cxr_mlflow.data.audit_features import build_views, measure_files
from cxr_mlflow.data.audit_listing import BOTH_SIDES, Listing, measure_listings, roc_auc
from cxr_mlflow.data.audit_report import write_page
from cxr_mlflow.data.catalog import scan_catalog
from cxr_mlflow.data.duplicates import find_groups

CLASSES = ("Ill adult", "Ill child", "Normal")
EACH = 120


@pytest.fixture(autouse=True)
def small_forests(monkeypatch):
    monkeypatch.setattr(audit_shortcuts, "NUM_TREES", 25)


@pytest.fixture
def world():
    """Films of adults (source a) and children (source b); Normal has both."""

    def make(*, trace: float = 3.0, disease: float = 2.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        labels = np.repeat([0, 1, 2, 2], EACH)
        child = np.repeat([False, True, False, True], EACH)
        view = rng.standard_normal((4 * EACH, 64)).astype(np.float32)
        view[:, :6] += trace * child[:, None]
        view[:, 6:10] += disease * ((labels == 0) * 1.0 - (labels == 1))[:, None]
        return view, np.where(child, "b", "a").astype(object), labels, np.arange(4 * EACH)

    return make


def listing_of(view, sources, labels, groups) -> Listing:
    told = measure_listings(view, list(sources), labels, groups, CLASSES)
    (found,) = (each for each in told if each.class_name == "Normal")
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_right_list_is_not_doubted(world, seed):
    found = listing_of(*world(seed=seed))
    assert not found.doubted
    assert found.sources == ("a", "b")
    assert found.roc_auc.low > 0.9
    assert found.verdict.startswith("Normal: no doubt about the list.")


@pytest.mark.parametrize("wrong", ["shuffled", "exchanged", "all of one kind"])
def test_a_wrong_list_is_doubted(world, wrong):
    view, sources, labels, groups = world()
    normal = np.flatnonzero(labels == 2)
    if wrong == "shuffled":
        sources[normal] = np.random.default_rng(1).permutation(sources[normal])
    elif wrong == "exchanged":
        sources[normal] = sources[normal][::-1]
    else:  # as in the release: "b" are adults, and all children are among those listed as "a"
        sources[normal] = "a"
        sources[normal[:40]] = "b"
    found = listing_of(view, sources, labels, groups)
    assert found.doubted
    assert min(found.sides) >= BOTH_SIDES
    assert "Normal: the list does not fit the films" in found.verdict
    assert found.warning.startswith("The listed sources of Normal do not fit its films: ")
    assert len(found.warning) <= 300, "the note cuts longer ones"


@pytest.mark.parametrize("seed", range(5))
def test_sources_that_leave_no_trace_are_no_reason_to_doubt(world, seed):
    """What is learnt then is the disease; Normal has none, and takes no side."""
    found = listing_of(*world(trace=0.0, seed=seed))
    assert found.roc_auc.low < 0.5 < found.roc_auc.high
    assert not found.doubted
    assert "neither bear out the list nor contradict it" in found.verdict


def test_the_demo_data_are_not_doubted(demo_dir, cache_dir):
    catalog = scan_catalog(demo_dir, cache_dir=cache_dir)
    view = build_views(catalog, measure_files(catalog))["thumbnail"][0]
    normal = (catalog.table["class_name"] == "Normal").to_numpy()
    sources = catalog.table["source"].to_numpy(object)
    shared = "plains.example.org/challenge", "hills.example.org"
    sources[normal] = np.resize(np.array(shared, object), normal.sum())
    labels = catalog.table["label"].to_numpy(np.int64)
    told = measure_listings(view, list(sources), labels, np.arange(len(labels)), catalog.classes)
    (found,) = (each for each in told if each.class_name == "Normal")
    assert not found.unmeasured
    assert not found.doubted


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_too_few_films_are_not_measured(world, place):
    view, sources, labels, groups = world()
    some = np.flatnonzero((sources == "b") & ((labels == 2) == (place == "inside")))
    sources[some[9:]] = "unknown"
    found = listing_of(view, sources, labels, groups)
    assert not found.doubted
    assert found.unmeasured.startswith("of its 2 sources no two have 10 distinct films each")
    assert math.isnan(found.roc_auc.value)


def test_ten_copies_are_one_film(world):
    view, sources, labels, groups = world()
    some = np.flatnonzero((sources == "b") & (labels == 2))
    groups[some] = some[0]
    assert listing_of(view, sources, labels, groups).unmeasured


def test_a_class_of_one_source_has_no_list_to_doubt(world):
    view, sources, labels, groups = world()
    sources[labels == 2] = "a"
    assert measure_listings(view, list(sources), labels, groups, CLASSES) == []


def test_copies_in_other_classes_teach_nothing(world):
    """Films of Normal, copied into another class under the other source, would teach the list."""
    view, sources, labels, groups = world()
    normal = np.flatnonzero(labels == 2)
    before = listing_of(view, sources, labels, groups).roc_auc
    copies = np.concatenate([view, view[normal]])
    wrong = np.where(sources[normal] == "a", "b", "a")
    found = listing_of(
        copies,
        np.concatenate([sources, wrong]),
        np.concatenate([labels, np.zeros(len(normal), np.int64)]),
        np.concatenate([groups, groups[normal]]),
    )
    assert found.roc_auc == before


def test_each_pair_of_three_sources_is_judged(world):
    view, sources, labels, _ = world()
    extra = np.random.default_rng(3).standard_normal((2 * EACH, 64)).astype(np.float32)
    extra[:, 20:26] += 4
    sources = np.concatenate([sources, np.full(2 * EACH, "c", object)])
    labels = np.concatenate([labels, np.repeat([0, 2], EACH)])
    films = np.concatenate([view, extra])

    def judged() -> dict[tuple[str, ...], Listing]:
        told = measure_listings(films, list(sources), labels, np.arange(6 * EACH), CLASSES)
        return {each.sources: each for each in told if each.class_name == "Normal"}

    right = judged()
    assert list(right) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(each.roc_auc.low > 0.95 for each in right.values()), "each by its own votes"
    normal = np.flatnonzero(labels == 2)
    b_and_c = normal[sources[normal] != "a"]
    sources[b_and_c] = np.random.default_rng(4).permutation(sources[b_and_c])
    assert [each.doubted for each in judged().values()] == [False, False, True]


def test_the_area_is_that_of_scikit_learn_and_its_interval_that_of_a_bootstrap():
    rng = np.random.default_rng(5)
    positive = rng.random(300) < 0.3
    scores = np.round(rng.standard_normal(300) + positive, 1)  # with ties
    groups = rng.integers(0, 200, 300)
    found = roc_auc(scores, positive, groups)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    drawn = []
    for _ in range(600):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        drawn.append(roc_auc_score(positive[rows], scores[rows]))
    assert found.high - found.low == pytest.approx(2 * 2.5758 * np.std(drawn), rel=0.15)


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory) -> Path:
    """Dark films (source a) and bright ones (source b); the list of C has them shuffled."""
    root = tmp_path_factory.mktemp("doubtful") / "x"
    rng = np.random.default_rng(6)
    for name, kinds in (("A", "a" * 24), ("B", "b" * 24), ("C", "ab" * 24)):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        for number, source in enumerate(kinds):
            film = rng.integers(0, 120, (64, 64)) + 120 * (source == "b")
            Image.fromarray(film.astype(np.uint8)).save(root / name / f"images/{number}.png")
            mask = np.pad(np.full((32, 32), 255, np.uint8), 16)
            Image.fromarray(mask).save(root / name / f"masks/{number}.png")
        listed = list(kinds) if name != "C" else rng.permutation(list(kinds)).tolist()
        urls = [f"https://{source}.org" for source in listed]
        table = pd.DataFrame({"FILE NAME": map(str, range(len(kinds))), "URL": urls})
        table.to_excel(root / f"{name}.metadata.xlsx", index=False)
    return root


def test_the_audit_says_it_in_page_json_metrics_and_on_screen(doubtful, tmp_path):
    catalog = scan_catalog(doubtful, cache_dir=tmp_path)
    duplicates = find_groups(catalog.thumbnails, catalog.table["pixel_hash"].tolist())
    audit = audit_data(catalog, duplicates, cache_dir=tmp_path)
    assert audit.doubted == {"C": ("a.org", "b.org")}
    (warning,) = audit.warnings
    (verdict,) = (each.verdict for each in audit.listings)
    console = Console(width=400, file=io.StringIO())
    print_audit(console, catalog, audit, [])
    printed = console.file.getvalue()
    page = write_page(audit, catalog, duplicates)
    for told in (printed, page):
        assert f"! {warning}" in told
        assert verdict in told
    assert f"Listed sources of {verdict}" in audit.summary()
    (told,) = json.loads(audit.to_json())["listings"]
    assert told["doubted"]
    assert audit.metrics()["audit/listed_sources/roc_auc/c"] == told["roc_auc"]["value"] < 0.75
    again = audit_data(catalog, duplicates, cache_dir=tmp_path)
    assert again.cached
    assert again.listings == audit.listings


@pytest.mark.data
def test_real_adults_and_children(mini_dir, cache_dir):
    """Normal-63 to 1403 are children (docs/data.md); the release lists six others as such."""
    catalog = scan_catalog(mini_dir, cache_dir=cache_dir)
    table = catalog.table
    view = build_views(catalog, measure_files(catalog))["thumbnail"][0]
    groups = find_groups(catalog.thumbnails, table["pixel_hash"].tolist()).groups
    labels, sources = table["label"].to_numpy(np.int64), table["source"].to_numpy(object)
    normal = np.flatnonzero(table["class_name"] == "Normal")
    number = table["image_id"].iloc[normal].str.rpartition("-")[2].astype(int)
    adults, children = ("kaggle.com/c/rsna-pneumonia-detection-challenge",
                        "kaggle.com/paultimothymooney/chest-xray-pneumonia")  # fmt: skip
    sources[normal] = np.where(number.between(63, 1403), children, adults)

    def judged() -> Listing:
        told = measure_listings(view, list(sources), labels, groups, catalog.classes)
        return next(each for each in told if each.class_name == "Normal")

    assert judged().roc_auc.low > 0.9
    assert not judged().doubted
    sources[normal] = np.where(number.between(63, 1403), adults, children)
    assert judged().doubted
