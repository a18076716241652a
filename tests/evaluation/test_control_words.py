"""What is said of control models: true of their budget and score, and in whole sentences."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.metrics import f1_score

from cxr_mlflow.evaluation.control_facts import chance_of
from cxr_mlflow.evaluation.control_words import in_brief, in_full
from cxr_mlflow.evaluation.note import DISCLAIMER, NOT_CONTROLLED, NOTE_LIMIT
from cxr_mlflow.evaluation.note_controls import with_controls

ALL = {"lungs-out": 9, "box-out": 9, "mask-only": 9}
NOTE = (
    f"**Test macro F1 0.700**. **Synthetic data; Not controlled.**\n\n> - {NOT_CONTROLLED}\n\nend\n"
)
OLD = "Controls: the same recipe, trained for 1 epochs instead of 9,, scores macro F1 0.1."
GARBLED = re.compile(r",,|,\.|\.\.|\b1 epochs|  |\(\)|nan|None")


@pytest.mark.parametrize(
    ("epochs", "state"),
    [
        ({}, "not controlled"),
        (ALL, "controlled"),
        (ALL | {"mask-only": 12}, "controlled"),
        (ALL | {"none": 1}, "controlled"),
        (ALL | {"mask-only": 8}, "partly controlled"),
        ({"lungs-out": 9, "mask-only": 9}, "partly controlled"),
    ],
)
def test_controlled_is_a_run_with_every_control_at_its_own_budget(found_controls, epochs, state):
    found = found_controls(epochs)
    assert found.state == state
    if epochs:
        assert in_brief(found).startswith(
            f"{state.capitalize()}: the same recipe scores macro F1 on"
        )


def test_a_smaller_budget_is_a_floor_and_said_beside_the_score(found_controls):
    found = found_controls({"lungs-out": 1, "box-out": 9})
    assert in_brief(found) == (
        "Partly controlled: the same recipe scores macro F1 on all but the lungs 0.600 "
        "(0.550–0.650) after at most 1 epoch where the run had 9, undertrained; on all but the box "
        "around the lungs 0.600 (0.550–0.650); not trained: mask-only"
    )
    assert in_full(found).count("its score is a floor only") == 1
    longer = in_full(found_controls({"lungs-out": 12}))
    assert "after at most 12 epochs where the run had 9" in longer
    assert "floor" not in longer


@pytest.mark.parametrize(
    ("difference", "told"),
    [
        (
            (0.006, -0.07, 0.082),
            "as well as the run, as far as these images tell: +0.006 (−0.070 to",
        ),
        ((-0.203, -0.23, -0.176), "does worse than the run: −0.203 (−0.230 to −0.176)."),
        ((0.05, 0.01, 0.09), "does better than the run: +0.050 (+0.010 to +0.090)."),
        ((None, None, None), "how it compares with the run is not measured."),
    ],
)
def test_a_verdict_stands_beside_the_score(found_controls, difference, told):
    assert f"On the outline of the lungs a model {'' if difference[0] else 'scored; '}" in in_full(
        found_controls({"mask-only": 9}, difference=difference)
    )
    assert told in in_full(found_controls({"mask-only": 9}, difference=difference))


def test_a_control_that_guesses_says_nothing_if_it_could_learn_less_than_the_run(found_controls):
    low = (0.55, 0.5, 0.6)
    few, full = (in_full(found_controls({"mask-only": n}, score=low)) for n in (1, 9))
    assert "No better than guessing (0.500): it says nothing." in few
    assert "No better than guessing (0.500): it found nothing there to go by" in full
    assert "undertrained, no better than guessing" in few.split(". ")[0]
    assert "guessing" not in in_full(found_controls({"mask-only": 1}, score=(0.55, 0.51, 0.6)))


def test_no_blind_guess_has_a_higher_macro_f1_than_chance():
    rng = np.random.default_rng(0)
    true = rng.choice(4, 40_000, p=[0.5, 0.3, 0.15, 0.05])
    for shares in ([0.25] * 4, [0.5, 0.3, 0.15, 0.05], [0.7, 0.1, 0.1, 0.1], [1, 0, 0, 0]):
        guessed = rng.choice(4, 40_000, p=shares)
        score = f1_score(true, guessed, average="macro", zero_division=0)
        assert score < chance_of(4) + 0.01
        if shares[0] == 0.5:
            assert score == pytest.approx(chance_of(4), abs=0.01)


@pytest.mark.parametrize("note", [NOTE, NOTE.replace("Not controlled", OLD)])
def test_a_note_tells_the_newest_controls_only(found_controls, note):
    for epochs in ({"lungs-out": 1}, {"lungs-out": 9}, ALL):
        found = found_controls(epochs)
        note = with_controls(note, in_brief(found), in_full(found))
        head, _, bullet, *rest = note.split("\n")
        assert head == f"**Test macro F1 0.700**. **Synthetic data; {in_brief(found)}.**"
        assert bullet == f"> - {in_full(found)}"
        assert rest == ["", "end", ""]


def test_the_note_of_a_control_tells_its_own_controls_too(found_controls):
    note = "**Test macro F1 0.700**. **A control.**\n"
    for _ in range(2):
        note = with_controls(note, in_brief(found_controls(ALL)), "all")
    assert note == f"**Test macro F1 0.700**. **A control.** **{in_brief(found_controls(ALL))}.**\n"


def test_a_note_that_gets_too_long_loses_its_last_tables(found_controls):
    found = found_controls(ALL)
    table = "\n\n### Facts\n\n" + "x" * 3000
    note = with_controls(NOTE + table * 2 + "\n" + "y" * 1500, in_brief(found), in_full(found))
    assert len(note) <= NOTE_LIMIT
    assert note.count("### Facts") == 1
    assert note.endswith(f"Left out here for length, see the artifacts.\n\n*{DISCLAIMER}*\n")


@pytest.mark.parametrize("budgets", [(1, 1, 1), (9, 1, 12), (12, 9, 9)])
@pytest.mark.parametrize("score", [(0.6, 0.55, 0.65), (0.4, 0.3, 0.5), (0.6, None, None)])
@pytest.mark.parametrize("difference", [(0.1, -0.1, 0.2), (-0.1, -0.2, -0.05), (None, None, None)])
def test_every_text_is_in_whole_sentences(found_controls, budgets, score, difference):
    epochs = dict(zip(ALL, budgets, strict=True))
    found = found_controls(epochs, score=score, difference=difference)
    for text in (
        in_brief(found),
        in_full(found),
        with_controls(NOTE, in_brief(found), in_full(found)),
    ):
        assert not GARBLED.search(text), text
    assert in_full(found).endswith(".")
