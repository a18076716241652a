"""What the control models of a run scored, as plain data: the one list that all pages tell from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cxr_mlflow.evaluation.score import Score, read_scores

CONTROLLED, PARTLY, NONE_FOUND = "controlled", "partly controlled", "not controlled"
"""Whether control models say where a score comes from."""
CONTROL = "a control: "
"""So begins what stands in that place of a control itself; then what it sees."""


@dataclass(frozen=True)
class ControlModel:
    """One control model: what it saw, how long it could learn, what it scored."""

    mode: str  # mask mode
    sees: str  # the same in words
    epochs: int  # most that it was given
    f1_macro: Score
    difference: Score  # its macro F1 less that of the run, on the same images
    classes: Mapping[str, Score]  # class -> F1


@dataclass(frozen=True, kw_only=True)
class FoundControls:
    """All control models of a run, the strongest of each mask mode."""

    epochs: int  # most that the run itself was given
    chance: float  # best macro F1 of who guesses without looking, see `chance_of`
    wanted: tuple[str, ...]  # mask modes that must be there, in full, for "controlled"
    models: tuple[ControlModel, ...]

    @property
    def state(self) -> str:
        """Say how far the run is controlled."""
        if not self.models:
            return NONE_FOUND
        full = {model.mode for model in self.models if not self.is_undertrained(model)}
        return CONTROLLED if full >= set(self.wanted) else PARTLY

    @property
    def missing(self) -> tuple[str, ...]:
        """Mask modes that were not trained and should be."""
        there = {model.mode for model in self.models}
        return tuple(mode for mode in self.wanted if mode not in there)

    def is_undertrained(self, model: ControlModel) -> bool:
        """Whether a control could learn for less long than the run."""
        return model.epochs < self.epochs

    def is_guessing(self, model: ControlModel) -> bool:
        """Whether a control may be no better than a guess."""
        return model.f1_macro.low is None or model.f1_macro.low <= self.chance


def chance_of(num_classes: int) -> float:
    """Highest macro F1 that guessing reaches: 1 / C, by guessing each class as often as it occurs.

    Who guesses class c with probability q has precision p, recall q and so F1 2pq / (p + q), where
    p is the share of the class. The sum over classes is largest where q = p, and F1 is p then.
    """
    return 1 / num_classes


def read_controls(told: Mapping[str, Any] | None) -> FoundControls | None:
    """Read what `dataclasses.asdict` made of found controls.

    None where there are none, or in a form of before, in words: they are derived again from the
    control models themselves.
    """
    if not told or "models" not in told:
        return None
    return FoundControls(
        epochs=told["epochs"],
        chance=told["chance"],
        wanted=tuple(told["wanted"]),
        models=tuple(_read_model(model) for model in told["models"]),
    )


def _read_model(told: Mapping[str, Any]) -> ControlModel:
    scores = {name: Score(**told[name]) for name in ("f1_macro", "difference")}
    return ControlModel(**{**told, **scores, "classes": read_scores(told["classes"])})
