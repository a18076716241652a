"""What a model card says about what was measured: scores, controls, subgroups, failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cxr_mlflow.evaluation.control_facts import FoundControls
from cxr_mlflow.evaluation.control_words import (
    CAVEATS,
    in_brief,
    in_epochs,
    signed,
    verdict,
    with_ends,
)
from cxr_mlflow.evaluation.markdown import NOT_MEASURED, Markdown, bullets, escape, pairs, table
from cxr_mlflow.evaluation.model_card_facts import CardFacts, Subgroup
from cxr_mlflow.evaluation.note import HEADLINES
from cxr_mlflow.evaluation.score import Score
from cxr_mlflow.evaluation.sources import UNKNOWN
from cxr_mlflow.evaluation.subgroups import MIN_GROUPS

EXPECTED_CONTROLS = {
    "source floor": "source floor",
    "within ": "within one source",
    "source probe": "source probe",
    "saliency": "saliency in the lungs",
}
"""Beginning of a control's name -> what the card calls it where it is missing."""
SCORE_NAMES = HEADLINES | {"roc_auc_macro": "ROC AUC, mean of one against the rest"}
DECIDED = {"precision": "precision", "recall": "recall", "specificity": "specificity", "f1": "F1"}
"""Scores of a class that hang on which class is predicted -> what the card calls them."""
RANKED = {"average_precision": "AP", "roc_auc": "ROC AUC"}
"""Those that hang on the order of the probabilities alone."""
MOST_CONFUSIONS = 5
NO_WIDTH = "An interval without width means that all resamples agree, not certainty."


@dataclass(frozen=True)
class Section:
    """A heading, what stands below it, and the names of the figures that belong there."""

    title: str
    blocks: tuple[str, ...]
    figures: tuple[str, ...] = ()


def headline(facts: CardFacts) -> str:
    """Macro F1 with its interval, and in the same breath what it may be worth."""
    score = facts.scores["f1_macro"]
    told = f"**Test macro F1 {_number(score.value)}**"
    if score.low is not None:
        told += f" ({facts.level:.0%} interval {_number(score.low)} to {_number(score.high)})"
    if facts.source_floor is not None:
        told += f"; knowing only the source of a file scores {with_ends(facts.source_floor)}"
    return f"{told}. **{escape(controls_told(facts))}**"


def controls_told(facts: CardFacts) -> str:
    """One sentence: what control models score, or that there are none."""
    if facts.sees:
        return f"A control itself: it sees {facts.sees}, and is no classifier."
    if not facts.control_models:
        return "Not controlled: no control model was trained."
    return f"{in_brief(facts.control_models)}."


def score_table(facts: CardFacts) -> str:
    """Headline scores, each with its interval and whether it is controlled."""
    state = Markdown(f"**{facts.control_state}**")
    rows = [
        [SCORE_NAMES[key], _number(score.value), _ends(score), state]
        for key, score in facts.scores.items()
    ]
    return table(["score", "value", f"{facts.level:.0%} interval", "control models"], rows, words=1)


def metrics_section(facts: CardFacts) -> Section:
    """Scores of all classes and of each, and the confusion."""
    confusion = [
        [name, *(Markdown(f"**{n:,}**") if c == p else f"{n:,}" for p, n in enumerate(row))]
        for c, (name, row) in enumerate(zip(facts.classes, facts.confusion, strict=True))
    ]
    return Section(
        "Metrics",
        (
            f"On {facts.num_tested:,} test images that took no part in training, in the choice of "
            "the epoch or in the calibration. Macro scores count each class alike; chance is a "
            f"balanced accuracy of {1 / len(facts.classes):.2f}. Intervals: {facts.level:.0%}, "
            "bootstrap over groups of near-duplicates.",
            score_table(facts),
            f"Per class (**{facts.control_state}**):",
            _class_table(facts, DECIDED),
            "The order of the probabilities, which no threshold touches. AP is average precision; "
            "guessing gets the share of the class.",
            _class_table(facts, RANKED),
            NO_WIDTH,
            "Confusion, true classes in rows:",
            table(["true ↓ predicted →", *facts.classes], confusion, words=1),
        ),
        ("confusion_rates", "confusion_counts", "roc", "precision_recall"),
    )


def _class_table(facts: CardFacts, shown: Mapping[str, str]) -> str:
    """Some scores of each class, with their intervals."""
    rows = [
        [name, count(scores["support"].value), *(with_ends(scores[metric]) for metric in shown)]
        for name, scores in facts.class_scores.items()
    ]
    return table(["class", "n", *shown.values()], rows, words=1)


def controls_section(facts: CardFacts) -> Section:
    """What the score may owe to something else than the lungs."""
    told = dict(facts.controls)
    for beginning, name in EXPECTED_CONTROLS.items():
        if not any(each.startswith(beginning) for each in told):
            told[name] = NOT_MEASURED
    if facts.control_models is None:
        missing = "none: it is a control itself" if facts.sees else Markdown("**not controlled**")
        told = {"control models (all but the lungs, their outline alone)": missing, **told}
    return Section(
        "Controls",
        (
            "What the score may owe to something else than the lungs. "
            f"**{escape(controls_told(facts))}**",
            *(_control_models(facts, facts.control_models) if facts.control_models else ()),
            pairs(told, ("control", "found")),
        ),
        ("saliency_shares",),
    )


def _control_models(facts: CardFacts, found: FoundControls) -> tuple[str, ...]:
    """Scores of the run and of each control, by class; what they mean, and how far that goes."""
    rows = [
        [
            f"the run itself ({facts.mask_mode})",
            in_epochs(found.epochs),
            with_ends(facts.scores["f1_macro"]),
            "–",
            *(with_ends(facts.class_scores[name]["f1"]) for name in facts.classes),
        ],
        *(
            [
                f"{model.sees} ({model.mode})",
                in_epochs(model.epochs),
                with_ends(model.f1_macro),
                signed(model.difference),
                *(with_ends(model.classes[name]) for name in facts.classes),
            ]
            for model in found.models
        ),
    ]
    head = [
        "trained on",
        "at most",
        "macro F1",
        "less the run",
        *(f"F1 {n}" for n in facts.classes),
    ]
    told = (*(verdict(found, model) for model in found.models), *CAVEATS)
    return table(head, rows, words=2), bullets(told)


def subgroups_section(facts: CardFacts) -> Section:
    """How often the model is right, by source."""
    known = {each.source for each in facts.subgroups} - {UNKNOWN}
    people = (
        f"Subgroups of people (age, sex, ethnicity): {NOT_MEASURED}, the data do not tell them."
    )
    if not known:
        untold = f"By source: {NOT_MEASURED}, the test images do not tell their sources."
        return Section("Subgroups", (untold, people))
    rows = [
        [
            each.source,
            each.class_name or "all its classes",
            f"{each.images:,}",
            _share(each),
            f"{each.confidence:.3f}",
        ]
        for each in facts.subgroups
    ]
    head = ["source", "class", "n", "predicted right", "mean confidence"]
    return Section(
        "Subgroups",
        (
            "How often the predicted class is the true one, by source of the test images (recall, "
            f"in a row of one class). With fewer than {MIN_GROUPS} distinct films: too few. "
            f"**{facts.control_state.capitalize()}.**",
            table(head, rows, words=2),
            people,
        ),
    )


def _share(each: Subgroup) -> str:
    if each.share.value is None:
        return f"too few ({each.right} of {each.images})"
    return with_ends(each.share)


def failures_section(facts: CardFacts) -> Section:
    """The most frequent mistakes, and those of which the model was surest."""
    if not facts.num_errors:
        return Section("Failures", (f"None of {facts.num_tested:,} test images was misjudged.",))
    mistakes = sorted(
        (
            (count, sum(row), facts.classes[true], facts.classes[predicted])
            for true, row in enumerate(facts.confusion)
            for predicted, count in enumerate(row)
            if count and true != predicted
        ),
        key=lambda each: -each[0],
    )
    common = [
        f"{count:,} of {of_class:,} {true} called {predicted}"
        for count, of_class, true, predicted in mistakes[:MOST_CONFUSIONS]
    ]
    rows = [
        [each["image_id"], each["source"], each["true"], each["predicted"]]
        + ([each["prediction_set"] or "empty"] if "prediction_set" in each else [])
        + [f"{each['confidence']:.3f}"]
        for each in facts.errors
    ]
    sets = ["prediction set"] if any("prediction_set" in each for each in facts.errors) else []
    head = ["image", "source", "true", "predicted", *sets, "confidence"]
    return Section(
        "Failures",
        (
            f"{facts.num_errors:,} of {facts.num_tested:,} test images were misjudged. Most often:",
            bullets(common),
            f"The {len(rows)} errors of which the model was surest:",
            table(head, rows, words=len(head) - 1),
        ),
        ("worst_errors",),
    )


def external_section(facts: CardFacts) -> Section:
    """What other data said than those it was trained and tested on."""
    if not facts.external:
        told = f"Images of other hospitals: **{NOT_MEASURED}**. Scores usually fall there."
        return Section("External testing", (told,))
    rows = [
        [
            f"{each.data}, digest {each.digest[:12]}: {each.classes}",
            each.run_id,
            count(each.images),
            NOT_MEASURED if each.copies is None else f"{each.copies:,}",
            f"{each.present} of {len(facts.classes)}",
            with_ends(each.f1_macro),
            with_ends(each.roc_auc_macro),
        ]
        for each in facts.external
    ]
    head = ["data", "run", "n", "copies taken out", "classes", "macro F1", "ROC AUC, mean"]
    return Section(
        "External testing",
        (
            "Other data than those the model was trained and tested on; films that it was trained "
            "on are taken out first. The scores are means over the classes that have images there. "
            f"**{facts.control_state.capitalize()}.**",
            table(head, rows, words=2),
            "Whether it is another hospital, and whether its classes are the same finding, the "
            "program cannot tell.",
        ),
    )


def count(value: float | None) -> str:
    """Write how many."""
    return NOT_MEASURED if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"


def _ends(score: Score) -> str:
    return NOT_MEASURED if score.low is None else f"{_number(score.low)} to {_number(score.high)}"
