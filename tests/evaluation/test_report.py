"""What a run says: tables that can be traced to images, and warnings that cannot be missed."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from cxr_mlflow.evaluation.intervals import Bootstrap, bootstrap_intervals
from cxr_mlflow.evaluation.metrics import confusion, evaluate
from cxr_mlflow.evaluation.note import NOTE_LIMIT
from cxr_mlflow.evaluation.report import (
    NOT_CONTROLLED,
    RunSummary,
    metrics_json,
    predictions_table,
    summary_lines,
    worst_errors,
    write_note,
    write_scores,
)

CLASSES = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
SYNTHETIC = "Synthetic data: the scores say nothing about X-rays."


def predictions(classes, num_images=120):
    generator = np.random.default_rng(0)
    y_true = np.arange(num_images) % len(classes)
    logits = generator.normal(size=(num_images, len(classes))) + 2 * np.eye(len(classes))[y_true]
    exp = np.exp(logits)
    return y_true, exp / exp.sum(axis=1, keepdims=True)


def summary(classes=CLASSES, *, drop=None, **changes):
    y_true, probabilities = predictions(classes)
    if drop is not None:
        y_true, probabilities = y_true[y_true != drop], probabilities[y_true != drop]
    made = RunSummary(
        run_name="resnet18-oversample-s0",
        model="resnet18",
        strategy="oversample",
        weights="random (ImageNet unreachable)",
        seed=0,
        image_size=112,
        mask_mode="lungs",
        epochs_run=7,
        best_epoch=5,
        data_name="demo",
        data_digest="d" * 64,
        split_digest="5" * 64,
        num_train=800,
        num_val=100,
        num_test=len(y_true),
        classes=classes,
        metrics=evaluate(y_true, probabilities, classes),
        intervals=bootstrap_intervals(y_true, probabilities, classes, Bootstrap(samples=100)),
        confusion=confusion(y_true, probabilities.argmax(axis=1), len(classes)),
        warnings=[SYNTHETIC, NOT_CONTROLLED],
        num_duplicate_groups=3,
        git_commit="0123456789abcdef",
        registered_version="cxr-classifier-demo version 3 (challenger)",
    )
    return dataclasses.replace(made, **changes)


def test_predictions_are_told_image_by_image():
    table = predictions_table(
        ["COVID/1", "Normal/2"],
        np.array([0, 1]),
        np.array([[0.9, 0.1], [0.7, 0.3]]),
        ["COVID", "Viral Pneumonia"],
        sources=["SIRM", "RSNA"],
    )
    assert table.to_dict("records") == [
        {"image_id": "COVID/1", "source": "SIRM", "true": "COVID", "predicted": "COVID",
         "confidence": 0.9, "correct": True, "p_covid": 0.9, "p_viral_pneumonia": 0.1},
        {"image_id": "Normal/2", "source": "RSNA", "true": "Viral Pneumonia", "predicted": "COVID",
         "confidence": 0.7, "correct": False, "p_covid": 0.7, "p_viral_pneumonia": 0.3},
    ]  # fmt: skip


def test_predictions_refuse_ids_that_do_not_fit():
    y_true, probabilities = predictions(CLASSES)
    with pytest.raises(ValueError, match="3 image ids"):
        predictions_table(["a", "b", "c"], y_true, probabilities, CLASSES)


def test_worst_errors_are_the_surest_wrong_ones_and_lead_back_to_their_images():
    y_true, probabilities = predictions(CLASSES)
    table = predictions_table([f"i{i}" for i in range(120)], y_true, probabilities, CLASSES)
    worst = worst_errors(table, limit=5)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != y_true)
    expected = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:5]
    assert worst.index.tolist() == expected.tolist()
    assert not worst["correct"].any()
    assert len(worst_errors(table[table["correct"]])) == 0


def test_json_has_null_for_what_was_not_measured():
    made = summary(drop=1)
    text = json.dumps(metrics_json(made.metrics, made.intervals), allow_nan=False)
    read = json.loads(text)
    assert read["metrics"]["f1_macro"] is None
    assert read["metrics"]["accuracy"] == made.metrics["accuracy"]
    assert read["intervals"]["f1/lung_opacity"] == {"value": None, "low": None, "high": None}
    assert read["intervals"]["accuracy"]["low"] == made.intervals["accuracy"].low
    assert read["level"] == 0.95


def test_note_shows_the_warnings_beside_and_before_the_scores():
    made = summary()
    note = write_note(made)
    interval = made.intervals["f1_macro"]
    headline = f"**Test macro F1 {interval.value:.3f}** (95% interval {interval.low:.3f} to "
    first = note.splitlines()[0]  # the UI shows little more than this line
    assert first.startswith(headline)
    assert "Synthetic data" in first
    assert "Not controlled" in first
    positions = [note.index(part) for part in (headline, "Read this first", SYNTHETIC,
                                               "| score | value |", "### Per class")]  # fmt: skip
    assert positions == sorted(positions)
    assert "Read this first" not in write_note(summary(warnings=()))


def test_note_has_the_scores_of_each_class_and_the_facts():
    made = summary()
    note = write_note(made)
    f1 = made.intervals["f1/viral_pneumonia"]
    row = next(line for line in note.splitlines() if line.startswith("| Viral Pneumonia |"))
    assert f"{f1.value:.3f} ({f1.low:.3f}–{f1.high:.3f})" in row
    assert f" {made.metrics['specificity/viral_pneumonia']:.3f} " in row
    for fact in ("random (ImageNet unreachable)", "oversample", "112 px, mask mode lungs",
                 "7 run, best 5", "dddddddddddd", "555555555555", "0123456789ab",
                 "cxr-classifier-demo version 3", "train 800, val 100, test 120",
                 "not for diagnosis"):  # fmt: skip
        assert fact in note, fact
    diagonal = made.confusion[2, 2]
    assert f"**{diagonal}**" in note.split("### Confusion")[1]
    assert "not registered" in write_note(summary(registered_version=None))


def test_note_says_what_was_not_measured():
    note = write_note(summary(drop=1))
    assert "**Test macro F1 –**" in note
    assert "not measured" in note
    assert "nan" not in note
    assert "| Lung\\_Opacity | 0 | – |" in note


def test_note_of_an_evaluation_has_the_warnings_and_scores_without_facts_of_a_training():
    made = summary()
    note = write_scores(made.metrics, made.intervals, CLASSES, [NOT_CONTROLLED])
    parts = ("**Test macro F1 0.", "Not controlled", "| Viral Pneumonia | 30 |",
             "not for diagnosis")  # fmt: skip
    positions = [note.index(part) for part in parts]
    assert positions == sorted(positions)
    assert "### Facts" not in note


def test_names_cannot_break_the_note():
    hostile = ["a|b", "<script>x</script>", "*c*", "d_e_f"]
    note = write_note(summary(hostile))
    assert "<script>" not in note
    tables = [line for line in note.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables if "d\\_e\\_f" in line and "*" not in line} <= {6, 9}
    assert "| a&#124;b |" in note


def test_note_fits_into_an_mlflow_tag_and_says_what_it_left_out():
    note = write_note(summary([f"Class with a long name {i}" for i in range(40)]))
    assert len(note) <= NOTE_LIMIT
    assert "Left out here for length, see the artifacts: confusion" in note
    warned = write_note(summary(warnings=[f"file {i} skipped " + "x" * 500 for i in range(50)]))
    assert len(warned) <= NOTE_LIMIT
    assert "and 42 more" in warned


def test_last_lines_have_the_scores_and_each_warning_beside_them():
    made = summary()
    lines = summary_lines(made)
    interval = made.intervals["f1_macro"]
    assert f"macro F1 {interval.value:.3f} ({interval.low:.3f}-{interval.high:.3f})" in lines[0]
    assert f"Lung_Opacity {made.metrics['f1/lung_opacity']:.3f}" in lines[1]
    assert lines[2:] == [f"! {SYNTHETIC}", f"! {NOT_CONTROLLED}"]
