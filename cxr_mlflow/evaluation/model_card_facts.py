"""All that a model card tells, as plain data: it can be saved, read back and added to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.control_facts import (
    CONTROLLED,
    NONE_FOUND,
    FoundControls,
    read_controls,
)
from cxr_mlflow.evaluation.note import NOT_CONTROLLED
from cxr_mlflow.evaluation.score import Score, read_scores

CARD_VERSION = 1
"""Raise it when a card of before could not be read any more."""
CALIBRATION_SCORES = ("ece", "ece_floor", "brier")
VARIANTS = ("uncorrected/", "raw/", "")
"""Of the probabilities: without the prior correction, as the network says them, as served."""
PROMISE_SCORES = ("set_coverage", "set_size", "selective_coverage", "selective_risk")


@dataclass(frozen=True)
class Subgroup:
    """How often the model is right among some images; see `subgroups.subgroups`."""

    source: str
    class_name: str  # "" for all classes
    images: int
    groups: int
    right: int
    share: Score
    confidence: float


@dataclass(frozen=True)
class External:
    """What a model scored on other data than those it was trained and tested on."""

    data: str  # name of the data set
    digest: str
    classes: str  # "normal as Normal, flu as Viral Pneumonia"
    images: int
    copies: int | None  # of training images, taken out before; None: not looked for
    present: int  # classes of the model that have images; the scores are means over these
    f1_macro: Score
    roc_auc_macro: Score
    run_id: str

    def same_test(self, other: External) -> bool:
        """Whether it is of the same images under the same classes."""
        return (self.digest, self.classes) == (other.digest, other.classes)


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card of a model tells. Everything is text, a number, or a mapping of these."""

    run_name: str
    created: str  # date
    synthetic: bool  # whether the images are drawn, not taken
    sees: str  # what the model sees, if it was trained as a control; else ""
    warnings: tuple[str, ...]
    classes: tuple[str, ...]
    image_size: int  # pixels
    mask_mode: str
    level: float  # of the intervals
    details: Mapping[str, str]
    data: Mapping[str, str]
    images: Mapping[str, Mapping[str, int]]  # split -> class -> images
    sources: Mapping[str, Mapping[str, int]]  # class -> source -> images
    left_out: Mapping[str, int]  # problem -> files
    audit: tuple[str, ...]  # sentences
    training: Mapping[str, str]
    options: Mapping[str, Mapping[str, str]]  # section -> option -> value
    versions: Mapping[str, str]  # package -> version
    scores: Mapping[str, Score]  # keys of HEADLINES and roc_auc_macro
    class_scores: Mapping[str, Mapping[str, Score]]  # class -> support and PER_CLASS
    confusion: tuple[tuple[int, ...], ...]  # rows true
    controls: Mapping[str, str]  # what was checked -> what was found
    source_floor: Score | None  # macro F1 of who knows only the source of a file
    calibration: Mapping[str, str]  # the same
    calibration_scores: Mapping[str, Score]  # CALIBRATION_SCORES, VARIANTS before each
    subgroups: tuple[Subgroup, ...]
    errors: tuple[Mapping[str, Any], ...]  # the surest; PREDICTED and, if there, prediction_set
    num_errors: int
    num_tested: int
    digests: Mapping[str, str]
    run_id: str = ""
    model_uri: str = ""  # of the logged model, "models:/m-..."
    registered: str | None = None  # "cxr-classifier version 3 (challenger; ...)"
    control_models: FoundControls | None = None
    external: tuple[External, ...] = ()  # what was found on other data
    class_calibration: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Class -> keys as in `calibration_scores`, and PROMISE_SCORES."""

    @property
    def control_state(self) -> str:
        """What stands beside every score: whether control models say where it comes from."""
        if self.sees:
            return "a control itself"
        if self.control_models is None:
            return NONE_FOUND
        state = self.control_models.state
        return "see Controls" if state == CONTROLLED else f"{state}, see Controls"

    def to_json(self) -> str:
        """Write all facts as JSON; null where nothing was measured."""
        told = {"version": CARD_VERSION, **asdict(self)}
        return json.dumps(told, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CardFacts:
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If it is not the JSON of a card, or that of another version of this program.
        """
        try:
            told = json.loads(text)
            version = told.pop("version")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError("model_card.json is not the JSON of a model card") from error
        if version != CARD_VERSION:
            raise InputError(
                f"model_card.json has version {version}, this program writes {CARD_VERSION}; "
                "train the run again, or read it with the cxr-mlflow that wrote it"
            )
        try:
            told["control_models"] = read_controls(told["control_models"])
            told["scores"] = read_scores(told["scores"])
            told["calibration_scores"] = read_scores(told["calibration_scores"])
            told["class_scores"] = {k: read_scores(v) for k, v in told["class_scores"].items()}
            for name, scores in told.get("class_calibration", {}).items():
                told["class_calibration"][name] = read_scores(scores)
            if isinstance(floor := told["source_floor"], float):  # a card of before it had ends
                told["source_floor"] = Score(floor)
            elif floor:
                told["source_floor"] = Score(**floor)
            told["external"] = tuple(map(_external, told.get("external", ())))
            told["confusion"] = tuple(map(tuple, told["confusion"]))
            told["subgroups"] = tuple(
                Subgroup(**{**row, "share": Score(**row["share"])}) for row in told["subgroups"]
            )
            for name in ("warnings", "classes", "audit", "errors"):
                told[name] = tuple(told[name])
            return cls(**told)
        except (KeyError, TypeError, AttributeError) as error:
            known = {f.name for f in fields(cls)}
            odd = ", ".join(sorted(set(told) ^ known)) or str(error)
            raise InputError(f"model_card.json is damaged: see {odd}") from error


def with_control_models(facts: CardFacts, found: FoundControls) -> CardFacts:
    """Put what all control models found in the place of what was known before."""
    warnings = tuple(each for each in facts.warnings if each != NOT_CONTROLLED)
    return replace(facts, control_models=found, warnings=warnings)


def with_external(facts: CardFacts, found: External) -> CardFacts:
    """Add what an external evaluation found; the same one of before is replaced."""
    others = [each for each in facts.external if not each.same_test(found)]
    return replace(facts, external=(*others, found))


def _external(told: Mapping[str, Any]) -> External:
    scores = {name: Score(**told[name]) for name in ("f1_macro", "roc_auc_macro")}
    return External(**{**told, **scores})
