"""A model card says what was measured, what was not, and that it is not for diagnosis."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, recall_score
from statsmodels.stats.proportion import proportion_confint

from cxr_mlflow.config import RunConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.assessment import assess
from cxr_mlflow.evaluation.control_words import with_ends
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.metrics import confusion
from cxr_mlflow.evaluation.model_card import (
    DESCRIPTION_LIMIT,
    CardFacts,
    External,
    Score,
    card_page,
    facts_of,
    with_control_models,
    with_external,
    write_brief,
    write_card,
)
from cxr_mlflow.evaluation.report import NOT_CONTROLLED, RunSummary
from cxr_mlflow.evaluation.subgroups import ALL_CLASSES, MIN_GROUPS, subgroups
from tools.mlflow_ui import find_browser, open_browser

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
SOURCES = ("BIMCV", "RSNA", "RSNA", "Kermany")  # of each class
HOSTILE = ("a|b", "<script>x()</script>", "*c* [d](http://e)", "f\ng `h`")
SPLITS = {"train": 70, "val": 10, "test": 20}
CONTROLS = {
    "source floor": "macro F1 0.464 knowing only the source of a file",
    "within RSNA": "Lung_Opacity vs Normal, 60 images: macro F1 0.800 (0.700–0.900)",
    "never within a source": "COVID has no image in a source that has another class",
}


def made_facts(classes=CLASSES, *, drop=None, sources=SOURCES, **changes):
    """Facts of a model that is right about two times in three, on 120 test images."""
    generator = np.random.default_rng(0)
    labels = np.arange(120) % len(classes)
    kept = labels[labels != drop]
    logits = generator.normal(size=(len(kept), len(classes))) + 2 * np.eye(len(classes))[kept]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    table = pd.DataFrame(
        {
            "image_id": [f"{classes[label]}/{row}" for row, label in enumerate(kept)],
            "label": kept,
            "source": [sources[label] for label in kept],
        }
    )
    groups = np.arange(len(kept)) // 2 * 2  # pairs of neighbours are copies of one film
    how = Bootstrap(groups=groups, samples=100)
    result = assess(table, probabilities, classes, split="test", subtitle="", how=how)
    predicted = probabilities.argmax(axis=1)
    summary = RunSummary(
        run_name="resnet18-oversample",
        model="resnet18",
        strategy="oversample",
        weights="partial ImageNet",
        seed=7,
        image_size=112,
        mask_mode="lungs",
        epochs_run=9,
        best_epoch=6,
        data_name="films",
        data_digest="d" * 64,
        split_digest="5" * 64,
        num_train=280,
        num_val=40,
        num_test=len(kept),
        classes=classes,
        metrics=result.metrics,
        intervals=result.intervals,
        confusion=confusion(kept, predicted, len(classes)),
        warnings=[NOT_CONTROLLED],
        num_duplicate_groups=3,
        git_commit="0123456789abcdef",
    )
    told = {
        "params": {
            **RunConfig().to_params(),
            "cache_dir": "/home/somebody/cache",
            "bootstrap_samples": "100",
            "version/torch": "2.15.0",
            "test_digest": "7" * 64,
        },
        "split_counts": pd.DataFrame(dict.fromkeys(classes, SPLITS.values()), index=list(SPLITS)),
        "source_counts": pd.crosstab(
            pd.Series([classes[label] for label in labels]),
            pd.Series([sources[label] for label in labels]),
        ),
        "left_out": {"missing_mask": 2},
        "audit": ["5 of 6 shortcuts tell the classes beyond chance."],
        "controls": CONTROLS,
        "source_floor": Score(0.464, 0.451, 0.477),
        "calibration": {"calibration": "temperature 1.30", "abstaining": "below confidence 0.9"},
        "calibration_metrics": {
            "raw/ece": 0.2,
            "raw/ece_low": 0.1,
            "raw/ece_high": 0.3,
            "ece": 0.05,
            "ece_low": 0.01,
            "ece_high": 0.09,
            "threshold": math.inf,
            **changes.pop("more_calibration", {}),
        },
        "created": "2026-01-31",
        "synthetic": False,
    }
    place = {"run_id": "e" * 32, "model_uri": "models:/m-0123"}
    place["registered"] = "cxr-classifier version 3 (challenger)"
    facts = facts_of(summary, result, **{**told, **changes})
    return dataclasses.replace(facts, **place), result


@pytest.fixture(scope="module")
def facts():
    return made_facts()[0]


@pytest.fixture(scope="module")
def card(facts):
    return write_card(facts)


@pytest.fixture(scope="module")
def png():
    buffer = io.BytesIO()
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows_of(text):
    """Cells of all table rows below the head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if not set(row[0]) <= set("|-:")]


def test_the_first_lines_say_not_for_diagnosis_and_not_controlled(card, facts):
    head = card.split("## ")[0]
    assert "**Not for diagnosis" in head.splitlines()[2]
    score = facts.scores["f1_macro"]
    assert f"**Test macro F1 {score.value:.3f}**" in head
    assert f"interval {score.low:.3f} to {score.high:.3f}" in head
    assert "knowing only the source of a file scores 0.464 (0.451–0.477)" in head
    assert "**Not controlled: no control model was trained.**" in head


def test_every_headline_score_has_its_interval_and_not_controlled_beside_it(card, facts):
    for text in (card.split("## ")[0], section(card, "Metrics").split("Per class")[0]):
        rows = {row[0]: row[1:] for row in rows_of(text)}
        for name, key in {"macro F1": "f1_macro", "accuracy": "accuracy", "MCC": "mcc",
                          "balanced accuracy": "balanced_accuracy"}.items():  # fmt: skip
            score = facts.scores[key]
            ends = f"{score.low:.3f} to {score.high:.3f}"
            assert rows[name] == [f"{score.value:.3f}", ends, "**not controlled**"]


@pytest.mark.parametrize(
    ("title", "told"),
    [
        ("Model details", ["resnet18", "cxr-classifier version 3", "112 × 112 px"]),
        ("Out of scope", ["Diagnosis"]),
        ("Data and sources", ["| train | 70 | 70 | 70 | 70 | 280 |", "| COVID | BIMCV | 30 |",
                              "2 missing\\_mask", "near-duplicate groups | 3", "no near-duplicate",
                              "5 of 6 shortcuts", "Reference standard"]),
        ("Training", ["partial ImageNet", "| seed | 7 |", "9 run", "epoch 6", "weight\\_decay=0.05",
                      "torch 2.15.0"]),
        ("Controls", ["**not controlled**", "macro F1 0.464", "| source probe | not measured |",
                      "| saliency in the lungs | not measured |", "60 images"]),
        ("Calibration, abstaining, prediction sets",
         ["| calibration error (ECE) | 0.200 (0.100–0.300) | 0.050 (0.010–0.090) |",
          "| Brier score | not measured | not measured |", "temperature 1.30",
          "| prediction sets | not measured |"]),
        ("External testing", ["**not measured**"]),
        ("Ethical considerations", ["age, sex, ethnicity", "not measured"]),
        ("Limits", ["COVID has no image in a source", "Patients are not known"]),
        ("How to use it", ['load_model("models:/m-0123")', '"mask"']),
        ("Provenance", ["e" * 32, "d" * 64, "5" * 64, "7" * 64, "0123456789abcdef"]),
    ],
)  # fmt: skip
def test_section_tells(card, title, told):
    for words in told:
        assert words in section(card, title)


def test_scores_of_each_class_are_those_of_the_assessment():
    facts, result = made_facts()
    rows = {row[0]: row for row in rows_of(section(write_card(facts), "Metrics"))}
    f1, recall = (result.intervals[f"{name}/viral_pneumonia"] for name in ("f1", "recall"))
    row = rows["Viral Pneumonia"]
    assert row[0] != row[1]
    told = section(write_card(facts), "Metrics")
    line = next(li for li in told.splitlines() if li.startswith("| Viral Pneumonia | 30 |"))
    assert f"{f1.value:.3f} ({f1.low:.3f}–{f1.high:.3f})" in line
    assert f"{recall.value:.3f} ({recall.low:.3f}–{recall.high:.3f})" in line
    ranked = [result.intervals[f"{name}/viral_pneumonia"] for name in ("average_precision",
                                                                      "roc_auc")]  # fmt: skip
    cells = " | ".join(f"{s.value:.3f} ({s.low:.3f}–{s.high:.3f})" for s in ranked)
    assert f"| Viral Pneumonia | 30 | {cells} |" in told
    for score, name in zip(ranked, ("average_precision", "roc_auc"), strict=True):
        assert score.low < score.value < score.high
        assert score.value == pytest.approx(result.metrics[f"{name}/viral_pneumonia"])


def scored(value):
    return {"": value, "_low": value - 0.01, "_high": value + 0.02}


def test_calibration_and_promises_are_told_of_each_class():
    names = {"uncorrected/ece": 0.4, "raw/ece": 0.3, "ece": 0.2, "ece_floor": 0.05,
             "uncorrected/brier": 0.34, "raw/brier": 0.33, "brier": 0.32, "set_coverage": 0.875,
             "set_size": 1.5, "selective_coverage": 0.6, "selective_risk": 0.12}  # fmt: skip
    metrics = {"uncorrected/ece": 0.41} | {
        f"{name}{end}/lung_opacity": told
        for name, value in names.items()
        for end, told in scored(value).items()
    }
    facts, _ = made_facts(more_calibration=metrics)
    told = section(write_card(facts), "Calibration, abstaining, prediction sets")
    assert "| on the test images | without prior correction | raw | as served |" in told
    assert "| calibration error (ECE) | 0.410 | 0.200 (0.100–0.300) | 0.050" in told
    rows = [line for line in told.splitlines() if line.startswith("| Lung\\_Opacity |")]
    assert [row.removeprefix("| Lung\\_Opacity | ") for row in rows] == [
        "0.400 (0.390–0.420) | 0.300 (0.290–0.320) | 0.200 (0.190–0.220) | 0.050 (0.040–0.070) |",
        "0.340 (0.330–0.360) | 0.330 (0.320–0.350) | 0.320 (0.310–0.340) |",
        "0.875 (0.865–0.895) | 1.500 (1.490–1.520) | 0.600 (0.590–0.620) | 0.120 (0.110–0.140) |",
    ]
    assert CardFacts.from_json(facts.to_json()) == facts


def external(**changes):
    told = {"data": "Shen|zhen", "digest": "9" * 64, "classes": "flu as Normal", "images": 1565,
            "copies": 3, "present": 2, "f1_macro": Score(0.342, 0.312, 0.374),
            "roc_auc_macro": Score(0.444, 0.395, 0.492), "run_id": "a" * 32}  # fmt: skip
    return External(**{**told, **changes})


def test_external_evaluations_are_all_listed_and_the_same_one_once(facts):
    told = with_external(facts, external())
    other = external(digest="8" * 64, data="Montgomery", copies=None, roc_auc_macro=Score(None))
    told = with_external(with_external(told, other), external(images=1500, run_id="b" * 32))
    rows = rows_of(section(write_card(told), "External testing"))[1:]
    assert rows[0] == ["Montgomery, digest 888888888888: flu as Normal", "a" * 32, "1,565",
                       "not measured", "2 of 4", "0.342 (0.312–0.374)", "not measured"]  # fmt: skip
    assert rows[1] == ["Shen&#124;zhen, digest 999999999999: flu as Normal", "b" * 32, "1,500", "3",
                       "2 of 4", "0.342 (0.312–0.374)", "0.444 (0.395–0.492)"]  # fmt: skip
    assert len(rows) == 2
    assert CardFacts.from_json(told.to_json()) == told
    mapped = with_external(told, external(classes="flu as COVID"))
    assert len(mapped.external) == 3, "under another class map it is another test"


def test_a_card_of_before_these_facts_is_read(facts):
    told = json.loads(facts.to_json())
    del told["class_calibration"]
    told |= {"external": {}, "source_floor": 0.464}
    old = CardFacts.from_json(json.dumps(told))
    assert old.source_floor == Score(0.464)
    assert "knowing only the source of a file scores 0.464." in write_card(old)
    assert "Images of other hospitals: **not measured**" in write_card(old)


def test_paths_of_the_machine_stay_out(card, facts):
    assert "somebody" not in card + facts.to_json()


def test_failures_are_the_surest_errors_and_the_most_frequent_mistakes():
    facts, result = made_facts()
    wrong = result.predictions[~result.predictions["correct"]]
    told = section(write_card(facts), "Failures")
    assert f"{len(wrong)} of 120 test images were misjudged" in told
    surest = wrong.sort_values("confidence", ascending=False)["image_id"].head(10)
    listed = [row[0].replace("\\", "") for row in rows_of(told)[1:]]
    assert listed == surest.tolist()
    pairs = wrong.groupby(["true", "predicted"]).size()
    first = re.search(r"- (\d+) of 30 ", told)
    assert int(first[1]) == pairs.max()


def test_what_was_not_measured_is_said_and_never_blank():
    facts, _ = made_facts(drop=1, source_floor=None, controls={}, calibration={}, audit=[])
    card = write_card(facts)
    assert "**Test macro F1 not measured**. **Not controlled" in card
    assert not re.search(r"\b(nan|None|inf)\b", card)
    assert not re.search(r"\|[ \t]*\|", card)
    for name in ("source floor", "within one source", "source probe", "saliency in the lungs"):
        assert f"| {name} | not measured |" in card
    json.loads(facts.to_json(), parse_constant=pytest.fail)


def test_json_brings_the_same_facts_back(facts):
    assert CardFacts.from_json(facts.to_json()) == facts
    dropped, _ = made_facts(drop=1)
    assert CardFacts.from_json(dropped.to_json()) == dropped


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not the JSON of a model card"),
        ("[]", "not the JSON of a model card"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1, "scores": {}}', "damaged"),
    ],
)
def test_json_of_something_else_is_refused(text, told):
    with pytest.raises(InputError, match=told):
        CardFacts.from_json(text)


def test_json_with_a_fact_missing_names_it(facts):
    told = json.loads(facts.to_json())
    del told["run_name"]
    with pytest.raises(InputError, match="run_name"):
        CardFacts.from_json(json.dumps(told))


def test_control_models_replace_not_controlled_wherever_it_was_said(facts, found_controls):
    found = found_controls({"lungs-out": 9, "box-out": 9, "mask-only": 9}, classes=CLASSES)
    controlled = with_control_models(facts, found)
    card = write_card(controlled)
    for text in (card, write_brief(controlled)):
        assert "ot controlled" not in text
        assert "scores macro F1 on all but the lungs 0.600 (0.550–0.650)" in text
        assert text.count("**see Controls**") >= 4
    own = f"F1 {with_ends(facts.class_scores['COVID']['f1'])}"[3:]
    assert f"| the run itself (lungs) | 9 epochs | {with_ends(facts.scores['f1_macro'])} |" in card
    assert own in card
    assert "| all but the lungs (lungs-out) | 9 epochs | 0.600 (0.550–0.650) | −0.100" in card
    assert "F1 COVID" in card, "the class in doubt has a column of its own"
    assert "exact outline of the lungs, and dense lung that the mask misses" in card
    assert NOT_CONTROLLED in facts.warnings, "the facts that were given stay as they are"
    assert CardFacts.from_json(controlled.to_json()) == controlled


def test_weak_controls_do_not_make_a_controlled_card(facts, found_controls):
    found = found_controls({"lungs-out": 1, "box-out": 9, "mask-only": 9}, classes=CLASSES)
    card = write_card(with_control_models(facts, found))
    assert card.count("**partly controlled, see Controls**") >= 4
    assert "**see Controls**" not in card
    assert "| all but the lungs (lungs-out) | 1 epoch |" in card


def test_controls_that_a_card_of_before_told_in_words_are_derived_again(facts):
    told = json.loads(facts.to_json()) | {"control_models": {"all but the lungs": "0.400,"}}
    assert CardFacts.from_json(json.dumps(told)).control_models is None
    assert CardFacts.from_json(json.dumps(told | {"control_models": {}})) == facts


def test_a_control_is_not_called_uncontrolled():
    facts, _ = made_facts(sees="all but the lungs")
    card = write_card(facts)
    assert "A control itself: it sees all but the lungs, and is no classifier" in card
    assert "**not controlled**" not in card


def test_drawn_images_claim_no_patients():
    card = write_card(made_facts(synthetic=True)[0])
    assert "no person is behind them" in card
    assert "the finding that was drawn" in card


def test_a_model_without_masks_asks_for_none(facts):
    unmasked = dataclasses.replace(facts, mask_mode="none")
    told = section(write_card(unmasked), "How to use it")
    assert '"mask"' not in told
    assert "| mask | not used |" in told


def test_names_can_break_neither_the_markdown_nor_the_page(png):
    facts, _ = made_facts(HOSTILE, sources=HOSTILE, controls={"</td><b>x": "`| <i>y"})
    card, page = write_card(facts), card_page(facts, {"<img src=x>": png})
    rendered = MarkdownIt("commonmark").enable("table").render(card)  # obeys HTML, unlike ours
    for text in (rendered, page):
        assert "<script" not in text
        assert "<b>x" not in text
        assert "<i>y" not in text
        assert 'href="http' not in text
        assert "&lt;script&gt;x()&lt;/script&gt;" in text
    assert "<img src=x" not in page
    for lines in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({line.count(" | ") for line in lines.splitlines() if "---" not in line}) == 1


def test_names_that_are_no_text_do_not_stop_the_card(facts):
    odd = dataclasses.replace(facts, run_name="films of \udcff")
    write_card(odd).encode()
    card_page(odd, {}).encode()
    assert CardFacts.from_json(odd.to_json()) == odd


def test_page_is_one_file_with_its_figures_where_they_belong(facts, png):
    page = card_page(facts, {"reliability": png, "roc": png, "a figure": png})
    assert "default-src 'none'" in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,|#)', page) == []
    assert page.count("<img ") == 3
    assert 'width="100" height="50"' in page
    order = ["Metrics</h2>", "Figure: ROC curves", "Calibration, abstaining, prediction sets</h2>",
             "Figure: Confidence against", "Provenance</h2>", "Figure: a figure"]  # fmt: skip
    positions = [page.index(words) for words in order]
    assert positions == sorted(positions)
    with pytest.raises(ValueError, match="'roc' is no PNG"):
        card_page(facts, {"roc": b"GIF89a"})


def test_page_and_markdown_say_the_same(facts, card):
    page = re.sub(r"<(style|title)>.*?</\1>|<nav.*?</nav>", "", card_page(facts, {}), flags=re.S)
    markdown = MarkdownIt("commonmark").enable("table").render(card)

    def words(text):
        return re.sub(r"<[^>]+>", " ", text).split()

    assert words(page) == words(markdown)


def test_description_of_a_version_fits_into_every_registry(facts):
    brief = write_brief(facts)
    assert brief.splitlines()[0].startswith("**Test macro F1 ")
    assert NOT_CONTROLLED in brief
    assert facts.run_id in brief
    many = dataclasses.replace(facts, warnings=tuple(f"file {i} " + "<" * 300 for i in range(50)))
    assert len(write_brief(many)) <= DESCRIPTION_LIMIT
    assert "and 4" in write_brief(many)
    assert "Test macro F1" in write_brief(many)


def subgroup_data():
    generator = np.random.default_rng(1)
    true = np.array(["COVID", "Normal"])[generator.integers(0, 2, 400)]
    source = np.where(true == "COVID", "A", np.array(["A", "B"])[generator.integers(0, 2, 400)])
    source = source.astype(object)
    source[:5] = "few"
    predicted = np.where(generator.random(400) < 0.8, true, "Normal")
    confidence = generator.uniform(0.5, 1, 400)
    return pd.DataFrame(
        {"source": source, "true": true, "predicted": predicted, "confidence": confidence}
    )


def test_subgroups_are_accuracy_and_recall_by_source():
    predictions = subgroup_data()
    found = subgroups(predictions, ["COVID", "Normal"], Bootstrap(samples=300))
    found = found.set_index(["source", "class"])
    assert found["images"].groupby("source").max().sum() == 400
    for (source, name), row in found.iterrows():
        here = predictions[predictions["source"] == source]
        true, predicted = here["true"], here["predicted"]
        if name != ALL_CLASSES:
            share = recall_score(true, predicted, labels=[name], average="macro")
            assert row["images"] == (true == name).sum()
            of_class = here[true == name]
        else:
            share, of_class = accuracy_score(true, predicted), here
        assert row["right"] == round(share * row["images"])
        assert row["confidence"] == pytest.approx(of_class["confidence"].mean())
        if row["images"] < MIN_GROUPS:
            assert row[["share", "low", "high"]].isna().all()
            continue
        assert row["share"] == pytest.approx(share)
        if 0 < share < 1:
            low, high = proportion_confint(row["right"], row["images"], method="wilson")
            assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.03)
    assert ("B", ALL_CLASSES) not in found.index, "one class needs no row for all"
    assert found.loc["few", "share"].isna().all()


def test_a_subgroup_without_errors_is_not_called_certain():
    perfect = subgroup_data().assign(predicted=lambda table: table["true"])
    found = subgroups(perfect, ["COVID", "Normal"], Bootstrap(samples=100))
    row = found[(found["source"] == "B") & (found["class"] == "Normal")].iloc[0]
    low, high = proportion_confint(row["groups"], row["groups"], method="beta")
    assert (row["share"], row["low"], row["high"]) == pytest.approx((1, low, high))
    wrong = perfect.assign(predicted="Viral Pneumonia")
    row = subgroups(wrong, ["COVID", "Normal"], Bootstrap(samples=100)).iloc[0]
    assert (row["share"], row["low"]) == (0, 0)
    assert row["high"] == pytest.approx(proportion_confint(0, row["groups"], method="beta")[1])


def test_copies_of_one_film_are_one_witness_in_a_subgroup():
    once = subgroup_data()
    fourfold = pd.concat([once] * 4, ignore_index=True)
    groups = np.tile(np.arange(400), 4)
    columns = ["source", "class", "groups", "share", "low", "high"]
    expected = subgroups(once, ["COVID", "Normal"], Bootstrap(samples=200))[columns]
    found = subgroups(fourfold, ["COVID", "Normal"], Bootstrap(groups=groups, samples=200))[columns]
    pd.testing.assert_frame_equal(found, expected)


def test_unknown_sources_are_no_subgroups():
    told = section(write_card(made_facts(sources=["unknown"] * 4)[0]), "Subgroups")
    assert "By source: not measured" in told


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")
def test_no_table_has_to_be_scrolled_on_a_screen_of_1200_pixels(tmp_path):
    ends = {"": 0.111, "_low": 0.1, "_high": 0.2}
    names = ("uncorrected/ece", "raw/ece", "ece", "ece_floor", "uncorrected/brier", "raw/brier")
    told = {f"{name}{end}{tail}": value for name in (*names, "brier", "set_coverage", "set_size",
                                                     "selective_coverage", "selective_risk")
            for tail in ("", "/lung_opacity") for end, value in ends.items()}  # fmt: skip
    facts = with_external(made_facts(more_calibration=told)[0], external())
    (tmp_path / "card.html").write_text(card_page(facts, {}), encoding="utf-8")
    with open_browser(find_browser()) as browser:
        page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
        page.goto((tmp_path / "card.html").as_uri())
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
            ".map(e => e.innerText.slice(0, 80))"
        )
    assert wide == []


def test_page_shows_in_a_browser_without_fetching_or_overflowing(facts, png, tmp_path):
    (tmp_path / "card.html").write_text(card_page(facts, {"roc": png}), encoding="utf-8")
    asked: list[str] = []
    with open_browser(find_browser()) as browser:
        page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: asked.append(message.text))
        page.goto((tmp_path / "card.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("[...document.images].every(image => image.naturalWidth === 100)")
        beside = page.get_by_role("cell", name="not controlled").first.bounding_box()
        assert beside["x"] + beside["width"] <= 390, "beside the score on a phone, too"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
