"""What a model card says of probabilities, abstaining and prediction sets, of each class too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cxr_mlflow.evaluation.control_words import with_ends
from cxr_mlflow.evaluation.markdown import pairs, table
from cxr_mlflow.evaluation.model_card_facts import VARIANTS, CardFacts
from cxr_mlflow.evaluation.model_card_scores import NO_WIDTH, Section
from cxr_mlflow.evaluation.score import Score

CALIBRATION_NAMES = {
    "ece": "calibration error (ECE)",
    "ece_floor": "ECE that perfect probabilities would have on so few images",
    "brier": "Brier score",
}
VARIANT_NAMES = {"uncorrected/": "without prior correction", "raw/": "raw", "": "as served"}
PROMISE_NAMES = {
    "set_coverage": "set holds the class",
    "set_size": "classes in a set",
    "selective_coverage": "answered",
    "selective_risk": "errors among answers",
}
ALWAYS = ("raw/", "")
"""Variants that have a column even where nothing was measured."""


def calibration_section(facts: CardFacts) -> Section:
    """Whether probabilities, abstentions and prediction sets keep what they promise."""
    told = {
        name: facts.calibration.get(name, "")
        for name in dict.fromkeys(
            ("calibration", "abstaining", "prediction sets", *facts.calibration)
        )
    }
    shown = _variants(facts)
    rows = [
        [name, *_cells(facts.calibration_scores, [f"{head}{key}" for head in shown])]
        for key, name in CALIBRATION_NAMES.items()
    ]
    head = ["on the test images", *(VARIANT_NAMES[each] for each in shown)]
    return Section(
        "Calibration, abstaining, prediction sets",
        (
            "Whether a confidence of 0.9 is right nine times in ten; smaller is better.",
            table(head, rows, words=1),
            pairs(told),
            *(_per_class(facts, shown) if facts.class_calibration else ()),
        ),
        ("reliability", "risk_coverage", "prediction_sets"),
    )


def _variants(facts: CardFacts) -> list[str]:
    """Probabilities that were scored, by the beginning of their keys."""
    return [each for each in VARIANTS if each in ALWAYS or f"{each}ece" in facts.calibration_scores]


def _per_class(facts: CardFacts, shown: Sequence[str]) -> tuple[str, ...]:
    """The same of each class."""
    heads = [VARIANT_NAMES[each] for each in shown]
    errors = {**{f"{each}ece": name for each, name in zip(shown, heads, strict=True)},
              "ece_floor": "perfect probabilities"}  # fmt: skip
    briers = {f"{each}brier": name for each, name in zip(shown, heads, strict=True)}
    return (
        "Calibration error (ECE) of the probability of each class:",
        _class_table(facts, errors),
        "Brier score, the part of each class:",
        _class_table(facts, briers),
        "Prediction sets and abstaining on the test films of each class, near-duplicates counted "
        "once (classes in a set: of the images). The coverage of the sets is stated for each "
        "class, the risk of an answer for all classes together.",
        _class_table(facts, PROMISE_NAMES),
        NO_WIDTH,
    )


def _class_table(facts: CardFacts, shown: Mapping[str, str]) -> str:
    rows = [
        [name, *_cells(scores, list(shown))] for name, scores in facts.class_calibration.items()
    ]
    return table(["class", *shown.values()], rows, words=1)


def _cells(scores: Mapping[str, Score], keys: Sequence[str]) -> list[str]:
    return [with_ends(scores.get(key, Score(None))) for key in keys]
