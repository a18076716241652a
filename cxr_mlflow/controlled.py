"""What stands beside a run because of its finished control models: derived from all, every time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cxr_mlflow.compare import Compared, describe
from cxr_mlflow.data.preprocess import CONTROLS
from cxr_mlflow.evaluation.comparison import RowScore, TestedRun
from cxr_mlflow.evaluation.control_facts import CONTROL, ControlModel, FoundControls, chance_of
from cxr_mlflow.evaluation.control_words import in_brief, in_epochs, in_full
from cxr_mlflow.evaluation.metrics import class_slugs
from cxr_mlflow.evaluation.note_controls import with_controls
from cxr_mlflow.evaluation.score import Score
from cxr_mlflow.tracking.cards import add_control_models
from cxr_mlflow.tracking.parents import Child, children_of, get_run
from cxr_mlflow.tracking.registry import describe_versions_of
from cxr_mlflow.tracking.tested import (
    TEST_DIGEST,
    as_tested,
    options_of_run,
    remarks_on_making,
)
from cxr_mlflow.tracking.tracker import Tracker

CONTROL_OF = "control_of"
"""Tag of a control: the run that it controls."""
SEEN = CONTROLS | {
    "lungs": "the lungs alone",
    "lungs-crop": "the lungs alone, enlarged",
    "crop": "the box around the lungs",
    "none": "the whole image",
}
"""Mask modes, in the order in which controls are told, and what a model sees under them."""
WHOLE = ("none", "crop")
"""Mask modes that show more than the lungs, and no outline of them."""


@dataclass(frozen=True)
class Beside:
    """What the controls of a run found, and the comparison it was read off."""

    found: FoundControls
    compared: Compared


def wanted_of(own: str) -> list[str]:
    """Mask modes whose controls make a run of the mode `own` a controlled one; three at most.

    A network that is shown the whole film does not know the outline that a mask has; the lungs
    alone tell more of it then.
    """
    third = "lungs" if own in WHOLE else "mask-only"
    return [mode for mode in ("lungs-out", "box-out", third) if mode != own]


def strongest(run_id: str) -> dict[str, Child]:
    """Finished controls of a run: of each mask mode that with most epochs, then the newest."""
    run = get_run(run_id)
    best: dict[str, Child] = {}
    for child in children_of(run):  # the oldest first
        tags = child.run.data.tags
        if not child.is_done or tags.get(CONTROL_OF) != run_id:
            continue
        if tags.get(TEST_DIGEST) != run.data.tags.get(TEST_DIGEST):
            continue
        mode = child.run.data.params["mask_mode"]
        if mode not in best or epochs_of(child) >= epochs_of(best[mode]):
            best[mode] = child
    return {mode: best[mode] for mode in SEEN if mode in best}


def epochs_of(child: Child) -> int:
    """Most epochs that a control was given."""
    return int(child.run.data.params["epochs"])


def tell_controls(run_id: str) -> Beside:
    """Write what all finished controls of a run found to each place that tells of its score.

    Note and README.md, tag `controls`, metrics `control/...`, the report `controls/`, the versions
    registered from it and its card. All say the same, however often controls were trained.
    """
    run = get_run(run_id)
    beside = look(run_id)
    found, brief = beside.found, in_brief(beside.found)
    note = with_controls(run.data.tags.get("mlflow.note.content", ""), brief, in_full(found))
    tracker = Tracker(run_id, run.info.experiment_id)
    tracker.log_metrics(metrics_of(found))
    for name, text in (
        ("report.html", beside.compared.html()),
        ("report.md", beside.compared.markdown()),
    ):
        tracker.log_text(text, f"controls/{name}")
    tracker.log_text(note, "README.md")
    tracker.set_tags({"controls": brief, "mlflow.note.content": note})
    describe_versions_of(run_id, note, {"controls": brief})
    add_control_models(tracker, found)  # the card in short is the description then
    return beside


def look(run_id: str) -> Beside:
    """Compare a run with its strongest controls; nothing is written."""
    run, controls = get_run(run_id), strongest(run_id)
    options = options_of_run(run_id, ["epochs", "mask_mode", "bootstrap_samples"])
    own = options["mask_mode"]
    compared = describe(
        [
            replace(as_tested(run, own), remarks=remarks_on_making(run)),
            *(_as_control(mode, child, options["epochs"]) for mode, child in controls.items()),
        ],
        title=f"Controls of {run.info.run_name}",
        baseline=own,
        samples=options["bootstrap_samples"],
    )
    rows = {row.row: row for row in compared.comparison.rows}
    gaps = {pair.a: Score.of(pair.difference) for pair in compared.comparison.pairs}
    classes = compared.comparison.classes
    found = FoundControls(
        epochs=options["epochs"],
        chance=chance_of(len(classes)),
        wanted=tuple(wanted_of(own)),
        models=tuple(
            ControlModel(
                mode=mode,
                sees=SEEN[mode],
                epochs=epochs_of(child),
                f1_macro=Score.of(rows[mode].scores["f1_macro"]),
                difference=gaps[mode],
                classes=by_class(rows[mode], classes),
            )
            for mode, child in controls.items()
        ),
    )
    return Beside(found, replace(compared, about={"found": in_full(found), **compared.about}))


def _as_control(mode: str, child: Child, epochs_of_run: int) -> TestedRun:
    """Read what a control predicted; its budget stands beside its row where it is another."""
    remarks = [*remarks_on_making(child.run), CONTROL + SEEN[mode]]
    if (epochs := epochs_of(child)) != epochs_of_run:
        told = f"trained for at most {in_epochs(epochs)} where the run had {epochs_of_run}"
        remarks.append(told)
    return replace(as_tested(child.run, mode), remarks=tuple(remarks))


def by_class(row: RowScore, classes: tuple[str, ...]) -> dict[str, Score]:
    """F1 of each class."""
    slugs = class_slugs(classes)
    return {
        name: Score.of(row.scores[f"f1/{key}"]) for name, key in zip(classes, slugs, strict=True)
    }


def metrics_of(found: FoundControls) -> dict[str, float]:
    """What was found as metrics `control/<mode>/...`; what was not measured is left out."""
    metrics: dict[str, float | None] = {}
    for model in found.models:
        scores = {"f1_macro": model.f1_macro, "difference": model.difference}
        slugs = class_slugs(list(model.classes))
        scores |= {
            f"f1/{key}": score for key, score in zip(slugs, model.classes.values(), strict=True)
        }
        head = f"control/{model.mode.replace('-', '_')}"
        metrics[f"{head}/epochs"] = float(model.epochs)
        for name, score in scores.items():
            ends = {"": score.value, "_low": score.low, "_high": score.high}
            metrics |= {f"{head}/{name}{end}": value for end, value in ends.items()}
    return {name: value for name, value in metrics.items() if value is not None}
