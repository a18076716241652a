"""That planted shortcuts are caught, clean data are not accused, and the numbers are right."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score, f1_score

from cxr_mlflow.cli.data_tables import print_audit
from cxr_mlflow.data import audit_shortcuts, audit_sources
from cxr_mlflow.data.audit import audit_data
from cxr_mlflow.data.audit_copies import audit_split, describe_copies
from cxr_mlflow.data.audit_features import build_views, measure_files
from cxr_mlflow.data.audit_report import write_page
from cxr_mlflow.data.audit_shortcuts import LEVEL, TITLES, judge, measure_shortcuts, score
from cxr_mlflow.data.audit_sources import source_floor
from cxr_mlflow.data.catalog import COLUMNS, Catalog, scan_catalog
from cxr_mlflow.data.duplicates import Duplicates, find_groups
from cxr_mlflow.data.phantom import draw_film
from cxr_mlflow.data.splits import Split
from cxr_mlflow.errors import InputError

PER_CLASS = 30
SIDE = 128


@pytest.fixture(autouse=True)
def small_forests(monkeypatch):
    monkeypatch.setattr(audit_shortcuts, "NUM_TREES", 25)


@pytest.fixture(scope="module")
def films():
    """Films and masks of chests without findings: nothing in them knows a class."""
    drawn = []
    for seed in range(2 * PER_CLASS):
        film, mask = draw_film("Normal", (7, seed))
        drawn.append((np.asarray(Image.fromarray(film).resize((SIDE, SIDE))), mask))
    return drawn


def write_classes(root: Path, films, change=None, *, urls=("https://a.example.org",) * 2) -> Path:
    """Deal the films to classes A and B; `change(film, mask)` spoils those of B."""
    for label, name in enumerate("AB"):
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True)
        rows = []
        for number, (film, mask) in enumerate(films[label::2]):
            suffix, options, image = ".png", {}, film
            if change and name == "B":
                image, mask, suffix, options = change(film.copy(), mask.copy())
            Image.fromarray(image).save(
                root / name / "images" / f"{name}-{number}{suffix}", **options
            )
            Image.fromarray(mask).save(root / name / "masks" / f"{name}-{number}.png")
            rows.append((f"{name}-{number}", "PNG", "128*128", urls[label]))
        table = pd.DataFrame(rows, columns=["FILE NAME", "FORMAT", "SIZE", "URL"])
        table.to_excel(root / f"{name}.metadata.xlsx", index=False)
    return root


def plant_marker(film, mask):
    film[2:9, 2:9] = 255
    return film, mask, ".png", {}


def plant_exposure(film, mask):
    return (film * 0.8 + 25).astype(np.uint8), mask, ".png", {}


def plant_patch(film, mask):
    film[48:80, 48:80] = film[48:80, 48:80] // 2 + 100
    return film, mask, ".png", {}


def plant_outline(film, mask):
    return film, np.roll(mask, 24, axis=0), ".png", {}


def plant_jpeg(film, mask):
    return film, mask, ".jpg", {"quality": 95}


def audited(root: Path, cache_dir: Path, **options):
    catalog = scan_catalog(root, cache_dir=cache_dir)
    duplicates = find_groups(catalog.thumbnails, catalog.table["pixel_hash"].tolist())
    return catalog, duplicates, audit_data(catalog, duplicates, cache_dir=cache_dir, **options)


def accused(audit) -> set[str]:
    return {s.name for s in audit.shortcuts if s.accused}


def test_a_clean_set_is_not_accused(films, tmp_path):
    root = write_classes(tmp_path / "clean", films, urls=("https://a.org", "https://a.org"))
    _, _, audit = audited(root, tmp_path)
    assert accused(audit) == set()
    assert [s.name for s in audit.shortcuts] == list(TITLES)
    assert {s.name for s in audit.shortcuts if s.unmeasured} == {"source"}, "there is only one"
    assert audit.headline().startswith("None of 5 shortcuts tells the classes beyond chance")


@pytest.mark.parametrize(
    ("change", "caught", "innocent"),
    [
        (plant_marker, {"border", "thumbnail"}, {"mask", "file"}),
        (plant_exposure, {"histogram"}, {"mask", "file"}),
        (plant_patch, {"thumbnail"}, {"mask", "file", "border"}),
        (plant_outline, {"mask"}, {"file", "border", "histogram", "thumbnail"}),
        (plant_jpeg, {"file"}, {"mask", "border", "histogram", "thumbnail"}),
    ],
)
def test_a_planted_shortcut_is_caught(films, tmp_path, change, caught, innocent):
    _, _, audit = audited(write_classes(tmp_path / "planted", films, change), tmp_path)
    assert caught <= accused(audit)
    assert not accused(audit) & innocent
    for shortcut in audit.shortcuts:
        if shortcut.name in caught:
            assert shortcut.strength in ("partly", "strongly")
            assert shortcut.balanced_accuracy.low > shortcut.chance
            assert f"Tells the classes {shortcut.strength}" in shortcut.verdict


def test_a_source_that_is_a_class_is_caught(films, tmp_path):
    urls = ("https://a.example.org", "https://b.example.org")
    _, _, audit = audited(write_classes(tmp_path / "planted", films, urls=urls), tmp_path)
    assert accused(audit) == {"source"}
    assert audit.floor.f1_macro == 1
    assert audit.floor.rule == {"a.example.org": "A", "b.example.org": "B"}
    assert audit.sources == {"A": {"a.example.org": 30}, "B": {"b.example.org": 30}}


def test_the_table_fits_a_terminal_of_80_columns(films, tmp_path):
    catalog, _, audit = audited(write_classes(tmp_path / "x", films, plant_exposure), tmp_path)
    console = Console(width=80, file=io.StringIO())
    print_audit(console, catalog, audit, ["a note"])
    printed = console.file.getvalue()
    for shortcut in audit.shortcuts:
        if not shortcut.unmeasured:
            row = next(
                line for line in printed.splitlines() if f" {TITLES[shortcut.name]} " in line
            )
            assert str(shortcut.balanced_accuracy) in row
            assert str(shortcut.f1_macro) in row
        if shortcut.accused or shortcut.unmeasured:
            assert shortcut.verdict in " ".join(printed.split())
    assert printed.rstrip().endswith("a note")


def test_the_demo_data_hide_the_class_where_they_say_so(demo_dir, cache_dir):
    _, _, audit = audited(demo_dir, cache_dir)
    assert not accused(audit) & {"border", "mask", "file"}
    assert "source" in accused(audit), "drawn so, as in the release"
    assert audit.is_demo


def test_copies_do_not_help_a_predictor():
    """Were a group cut by a fold, a forest would know the class of its copies."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation(np.repeat([0, 1], 40)), 4)
    groups = np.repeat(np.arange(80), 4)
    view = np.repeat(rng.standard_normal((80, 20)), 4, axis=0).astype(np.float32)
    everything = np.ones(320, bool)
    for members, caught in ((groups, False), (np.arange(320), True)):
        (told,) = measure_shortcuts({"border": (view, everything)}, labels, members, ["A", "B"])
        assert told.accused == caught


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [400, 30])
    view = rng.standard_normal((430, 8)).astype(np.float32)
    view[:, 3] += 2.0 * labels
    (told,) = measure_shortcuts(
        {"border": (view, np.ones(430, bool))}, labels, np.arange(430), ["many", "few"]
    )
    assert told.recall["few"] > 0.6
    assert told.accused


def test_scores_are_those_of_scikit_learn_and_the_interval_that_of_a_bootstrap():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), (300, 120, 60))
    groups = rng.integers(0, 300, len(labels))
    predicted = np.where(rng.random(len(labels)) < 0.4, labels, rng.integers(0, 3, len(labels)))
    accuracy, f1_macro, f1, recall = score(labels, predicted, groups, 3)
    assert accuracy.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert f1_macro.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    np.testing.assert_allclose(f1, f1_score(labels, predicted, average=None))
    np.testing.assert_allclose(recall.mean(), accuracy.value)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    drawn = []
    for _ in range(600):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        drawn.append(
            (
                balanced_accuracy_score(labels[rows], predicted[rows]),
                f1_score(labels[rows], predicted[rows], average="macro"),
            )
        )
    spread = 2 * 2.5758 * np.std(drawn, axis=0)
    assert accuracy.high - accuracy.low == pytest.approx(spread[0], rel=0.12)
    assert f1_macro.high - f1_macro.low == pytest.approx(spread[1], rel=0.12)


def test_copies_make_no_interval_narrower():
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, 3, (2, 200))
    once = score(labels, predicted, np.arange(200), 3)[0]
    thrice = score(*(np.tile(a, 3) for a in (labels, predicted, np.arange(200))), 3)[0]
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_guesses_are_hardly_ever_accused():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 24)
    wrong = 0
    for _ in range(2000):
        predicted = rng.integers(0, 4, len(labels))
        wrong += judge("border", labels, predicted, np.arange(len(labels)), list("ABCD")).accused
    assert wrong / 2000 < 2 * (1 - LEVEL)


def test_images_that_are_alike_and_tell_each_other_are_hardly_ever_accused():
    """As a forest does with pairs of look-alikes in two folds: both are right or both are wrong."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(2000):
        labels = rng.permutation(np.repeat(np.arange(4), 24))
        predicted = labels.reshape(-1, 2)[:, ::-1].ravel()  # what the twin taught
        wrong += judge("border", labels, predicted, np.arange(len(labels)), list("ABCD")).accused
    assert wrong / 2000 < 2 * (1 - LEVEL)


def test_what_cannot_be_measured_says_why(films, tmp_path):
    few = write_classes(tmp_path / "few", films[:19])
    catalog, duplicates, audit = audited(few, tmp_path)
    for shortcut in audit.shortcuts[1:]:
        assert shortcut.unmeasured == "B has 9 distinct images, 10 are needed".replace(
            "images", "masks" if shortcut.name == "mask" else "images"
        )
        assert not shortcut.accused
    told = json.loads(audit.to_json(), parse_constant=pytest.fail)
    assert told["shortcuts"][1]["balanced_accuracy"] == {"value": None, "low": None, "high": None}
    assert "audit/f1_macro/border" not in audit.metrics()
    assert "9 distinct images" in write_page(audit, catalog, duplicates)


def test_images_without_masks(films, tmp_path):
    root = write_classes(tmp_path / "x", films)
    for number in range(25):
        (root / "B" / "masks" / f"B-{number}.png").unlink()
    catalog = scan_catalog(root, mask_mode="none", cache_dir=tmp_path)
    assert len(catalog.table) == 60
    measured = measure_files(catalog)
    assert (measured.masks.sum((1, 2)) > 0).sum() == 35
    assert build_views(catalog, measured)["mask"][1].sum() == 35
    duplicates = Duplicates(np.arange(60), pd.DataFrame({"i": [], "j": [], "exact": []}))
    audit = audit_data(catalog, duplicates, cache_dir=tmp_path)
    assert audit.shortcuts[2].unmeasured == "B has 5 distinct masks, 10 are needed"
    assert audit.masks["B"]["unusable"] == {"missing_mask": 25}
    assert audit.masks["A"]["with_mask"] == 30


@pytest.mark.parametrize(("tried", "short"), [(20_000, 1e-9), (0, 0.05)])
def test_the_source_floor_is_that_of_the_best_rule(tried, short, monkeypatch):
    monkeypatch.setattr(audit_sources, "MAX_RULES", tried)  # with 0, by exchange
    rng = np.random.default_rng(4)
    for _ in range(30):
        num_sources, num_classes = rng.integers(2, 5, 2)
        labels = rng.integers(0, num_classes, 60)
        sources = rng.integers(0, num_sources, 60)
        skewed = np.where(rng.random(60) < 0.5, labels % num_sources, sources)
        best = max(
            f1_score(
                labels,
                np.array(rule)[skewed],
                average="macro",
                labels=range(num_classes),
                zero_division=0,
            )
            for rule in itertools.product(range(num_classes), repeat=int(num_sources))
        )
        floor = source_floor([f"s{k}" for k in skewed], labels, list("ABCDE")[:num_classes])
        assert floor.f1_macro == pytest.approx(best, abs=short)
        majority = np.array([np.bincount(labels[skewed == k]).argmax() for k in skewed])
        told = f1_score(
            labels, majority, average="macro", labels=range(num_classes), zero_division=0
        )
        assert floor.majority_f1_macro == pytest.approx(told)


def test_the_source_floor_of_a_split_is_made_on_train():
    train = (["x"] * 6 + ["y"] * 4, np.array([0] * 6 + [1] * 4))
    tested = (["x", "y", "y", "new"], np.array([0, 0, 1, 1]))
    floor = source_floor(*train, ["A", "B"], tested=tested)
    assert floor.rule == {"x": "A", "y": "B"}
    told = f1_score([0, 0, 1, 1], [0, 1, 1, 0], average="macro")  # "new" is the frequent class
    assert floor.f1_macro == pytest.approx(told)


def catalog_of(classes: str, sources: str) -> Catalog:
    """A catalog of images that are not on disk: one letter each for class and source."""
    names = sorted(set(classes))
    table = pd.DataFrame(
        {
            "image_id": [f"{c}/{k}" for k, c in enumerate(classes)],
            "class_name": list(classes),
            "label": [names.index(c) for c in classes],
            "source": list(sources),
            "pixel_hash": [str(k) for k in range(len(classes))],
        }
    ).reindex(columns=list(COLUMNS))
    problems = pd.DataFrame({"path": [], "problem": [], "detail": [], "fatal": []})
    thumbnails = np.zeros((len(table), 32, 32), np.uint8)
    return Catalog(Path("x"), tuple(names), table, thumbnails, problems, "d", False, "x")


def duplicates_of(groups: list[int]) -> Duplicates:
    links = [
        (i, j, 1.0, False)
        for i, j in itertools.combinations(range(len(groups)), 2)
        if groups[i] == groups[j]
    ]
    pairs = pd.DataFrame(links, columns=["i", "j", "similarity", "exact"])
    return Duplicates(np.array(groups), pairs)


def test_copies_are_counted_within_and_across_classes_and_sources():
    copies = describe_copies(catalog_of("AAABBB", "xxyyyx"), duplicates_of([0, 0, 1, 1, 2, 2]))
    assert (copies.groups, copies.images, copies.largest) == (3, 6, 2)
    assert (copies.across_classes, copies.across_sources) == (1, 1)
    assert copies.examples == [["A/2", "B/3"]]
    assert copies.per_class == {"A": 3, "B": 3}
    assert (copies.exact_pairs, copies.near_pairs) == (0, 3)


def test_copies_across_splits_are_found():
    catalog = catalog_of("AAAABBBB", "xxxxyyyy")
    duplicates = duplicates_of([0, 0, 0, 1, 2, 2, 3, 3])
    parts = ["train", "test", "test", "train", "train", "val", "test", "test"]
    told = audit_split(catalog, duplicates, Split(catalog.table.assign(split=parts)))
    assert told.groups_cut == 2
    assert told.tested_and_trained == 2
    assert told.examples == [["A/0", "A/1", "A/2"], ["B/4", "B/5"]]


def test_expected_copies_are_those_of_random_splits():
    rng = np.random.default_rng(5)
    groups = np.concatenate([np.repeat(np.arange(40), 3), np.arange(40, 120)])
    catalog = catalog_of("AB" * 100, "xy" * 100)
    parts = np.repeat(["train", "val", "test"], (140, 20, 40))
    told = audit_split(
        catalog, duplicates_of(groups.tolist()), Split(catalog.table.assign(split=parts))
    )
    seen = []
    for _ in range(500):
        dealt = rng.permutation(parts)
        trained = np.bincount(groups[dealt == "train"], minlength=120)
        seen.append((trained[groups[dealt == "test"]] > 0).sum())
    assert told.expected_ungrouped == pytest.approx(np.mean(seen), rel=0.05)


def test_files_and_masks_are_described(tmp_path):
    root = tmp_path / "x"
    film = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
    lungs = np.zeros((48, 64), np.uint8)
    lungs[20:30, 20:40] = 255
    wide = lungs.copy()
    wide[:40, 10:50] = 255
    stored = {
        ("A", "1.jpg"): (film, {"quality": 30}, lungs),
        ("A", "2.jpg"): (film[::-1], {"quality": 92}, lungs),
        ("B", "1.png"): (np.stack([film] * 3, -1), {}, wide),
        ("B", "2.png"): (film.T, {}, lungs.T),
    }
    for (name, file), (pixels, options, mask) in stored.items():
        for kind in ("images", "masks"):
            (root / name / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name / "images" / file, **options)
        Image.fromarray(mask).save(root / name / "masks" / f"{file[0]}.png")
    _, _, audit = audited(root, tmp_path)
    assert audit.files["A"]["stored_as"] == {"JPEG L 8 bit": 2}
    assert audit.files["A"]["jpeg_quality"] == {"30": 1, "92": 1}
    assert audit.files["B"]["stored_as"] == {"PNG RGB 8 bit": 1, "PNG L 8 bit": 1}
    assert audit.files["B"]["jpeg_quality"] == {}
    assert audit.files["B"]["sizes"] == {"64 x 48": 1, "48 x 64": 1}
    assert audit.files["B"]["brightness_mean"] == pytest.approx(film.mean())
    assert audit.files["B"]["contrast_mean"] == pytest.approx(film.std())
    assert audit.files["B"]["black_share_mean"] == pytest.approx((film == 0).mean())
    assert (audit.masks["A"]["tiny"], audit.masks["A"]["touching_edge"]) == (2, 0)
    assert (audit.masks["B"]["tiny"], audit.masks["B"]["touching_edge"]) == (1, 1)
    np.testing.assert_allclose(np.sum(audit.histograms["A"]), 1)


@pytest.fixture
def small(films, tmp_path):
    return write_classes(tmp_path / "small", films[:8])


def test_an_audit_is_kept_until_the_data_change(small, tmp_path):
    _, _, first = audited(small, tmp_path)
    assert not first.cached
    catalog, duplicates, again = audited(small, tmp_path)
    assert again.cached
    assert again.to_json() == first.to_json()
    elsewhere = replace(catalog, table=catalog.table.assign(source="elsewhere.org"))
    other = audit_data(elsewhere, duplicates, cache_dir=tmp_path)
    assert not other.cached
    assert other.sources["A"] == {"elsewhere.org": 4}
    for store in (tmp_path / "audits").iterdir():
        store.write_text(store.read_text()[:300])
    assert audited(small, tmp_path)[2].to_json() == first.to_json()
    assert not audited(small, tmp_path / "new")[2].cached


def test_a_file_that_changes_meanwhile_stops_the_audit(small, tmp_path):
    catalog = scan_catalog(small, cache_dir=tmp_path)
    duplicates = duplicates_of(list(range(8)))
    path = Path(catalog.table["path"].iloc[5])
    buffer = io.BytesIO()
    Image.fromarray(np.eye(40, dtype=np.uint8)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=rf"{path.name}: changed while"):
        audit_data(catalog, duplicates, cache_dir=tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        audit_data(catalog, duplicates, cache_dir=tmp_path)


def test_the_page_is_one_file_with_all_findings(films, tmp_path):
    evil = "https://a.org/<script>alert(1)</script>"
    root = write_classes(tmp_path / "x", films[:8], urls=(evil, evil))
    catalog = scan_catalog(root, cache_dir=tmp_path)
    duplicates = duplicates_of([0, 1, 2, 3, 0, 4, 5, 5])
    parts = ["train", "val", "test", "train", "test", "train", "test", "train"]
    split = Split(catalog.table.assign(split=parts))
    audit = audit_data(catalog, duplicates, split=split, cache_dir=tmp_path)
    page = write_page(audit, catalog, duplicates, split=split)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", page)
    for shortcut in audit.shortcuts:
        assert TITLES[shortcut.name] in page
        assert shortcut.verdict in page
    assert audit.headline() in page
    for title in ("least certain groups", "Groups across classes", "Groups across splits"):
        assert title in page
    assert page.count('<img src="data:image/png;base64,') == 5
    assert "One film in several classes" in page
    assert "A/A-0, B/B-0" in page
    assert audit.split.tested_and_trained == 2
    assert "test images with a copy in train: 2" in page


@pytest.mark.parametrize("agree", [True, False])
def test_an_interval_without_width_is_not_called_certain(films, tmp_path, agree):
    root = write_classes(tmp_path / "x", films[:8])
    catalog, duplicates, audit = audited(root, tmp_path)
    labels, groups = np.arange(80) % 2, np.arange(80)
    predicted = labels if agree else np.where(groups < 10, 1 - labels, labels)
    shortcut = judge("source", labels, predicted, groups, ["A", "B"])
    page = write_page(replace(audit, shortcuts=(shortcut,)), catalog, duplicates)
    assert ("An interval without width (Source) means" in page) == agree
    assert ("error rate of up to 3/n" in page) == agree


def test_without_metadata_no_floor_is_made_up(films, tmp_path):
    root = write_classes(tmp_path / "x", films[:8])
    for name in "AB":
        (root / f"{name}.metadata.xlsx").unlink()
    catalog, duplicates, audit = audited(root, tmp_path)
    assert "Source alone: no metadata tell a source." in audit.summary()
    assert "audit/source_floor" not in audit.metrics()
    page = write_page(audit, catalog, duplicates)
    assert "not measured: no metadata tell a source" in page
    assert "has macro F1 <b>" not in page


def test_a_large_set_is_learnt_from_a_part(monkeypatch):
    monkeypatch.setattr(audit_shortcuts, "MAX_TRAIN", 60)
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 400)
    view = (rng.standard_normal((400, 4)) + 3 * labels[:, None]).astype(np.float32)
    (told,) = measure_shortcuts(
        {"border": (view, np.ones(400, bool))}, labels, np.arange(400), ["A", "B"]
    )
    assert told.num_images == 400
    assert told.balanced_accuracy.value > 0.95
