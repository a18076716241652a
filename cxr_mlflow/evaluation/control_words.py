"""What is said of the control models of a run, wherever it is said."""

from __future__ import annotations

from cxr_mlflow.evaluation.control_facts import ControlModel, FoundControls
from cxr_mlflow.evaluation.score import Score

CAVEATS = (
    "lungs-out (all but the lungs) also shows the exact outline of the lungs, and dense lung that "
    "the mask misses. What it scores need not come from outside the lungs.",
    "box-out (all but the box around the lungs) hides both, but the height, width and place of the "
    "lungs, and lung that lies outside the box of the mask.",
    "A control shows what a score could owe to other things than the lungs, not what it does owe.",
)
"""How far the numbers carry."""


def in_brief(found: FoundControls) -> str:
    """State, scores and budgets in one clause, without a stop at its end."""
    scores = "; ".join(f"on {model.sees} {_scored(found, model)}" for model in found.models)
    told = f"{found.state.capitalize()}: the same recipe scores macro F1 {scores}"
    return f"{told}; not trained: {', '.join(found.missing)}" if found.missing else told


def in_full(found: FoundControls) -> str:
    """What was found, and what each control means beside the score of the run."""
    return " ".join([f"{in_brief(found)}.", *(verdict(found, model) for model in found.models)])


def verdict(found: FoundControls, model: ControlModel) -> str:
    """How a control does beside the run, and what must be known of it, in sentences."""
    told = [f"On {model.sees} a model {_beside_the_run(model.difference)}."]
    if found.is_undertrained(model):
        told.append(
            f"It was trained for at most {in_epochs(model.epochs)} where the run had "
            f"{found.epochs}: its score is a floor only, more training may raise it."
        )
    if found.is_guessing(model):
        means = "it found nothing there to go by, or learnt nothing"
        means = "it says nothing" if found.is_undertrained(model) else means
        told.append(f"No better than guessing ({found.chance:.3f}): {means}.")
    return " ".join(told)


def in_epochs(number: int) -> str:
    """Count epochs in words."""
    return f"{number} epoch{'' if number == 1 else 's'}"


def with_ends(score: Score) -> str:
    """Write a score with the ends of its interval: 0.844 (0.823–0.864)."""
    if score.value is None:
        return "not measured"
    if score.low is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} ({score.low:.3f}–{score.high:.3f})"


def signed(score: Score) -> str:
    """Write a difference with the ends of its interval: −0.203 (−0.230 to −0.176)."""
    if score.value is None or score.low is None:
        return "not measured"
    told = f"{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f})"
    return told.replace("-", "−")


def _scored(found: FoundControls, model: ControlModel) -> str:
    told = with_ends(model.f1_macro)
    if model.epochs != found.epochs:
        told += f" after at most {in_epochs(model.epochs)} where the run had {found.epochs}"
    if found.is_undertrained(model):
        told += ", undertrained"
    return f"{told}, no better than guessing" if found.is_guessing(model) else told


def _beside_the_run(difference: Score) -> str:
    if difference.low is None or difference.high is None:
        return "scored; how it compares with the run is not measured"
    if difference.low > 0:
        return f"does better than the run: {signed(difference)}"
    if difference.high < 0:
        return f"does worse than the run: {signed(difference)}"
    return f"does as well as the run, as far as these images tell: {signed(difference)}"
