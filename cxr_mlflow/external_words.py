"""What is said beside the score of a model on a folder: warnings, facts, the last lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cxr_mlflow.describe import SYNTHETIC, left_out
from cxr_mlflow.evaluation.control_facts import NONE_FOUND
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.model_card import External
from cxr_mlflow.evaluation.model_card_gather import score_of
from cxr_mlflow.evaluation.note import NOT_CONTROLLED
from cxr_mlflow.external import Films, bad_files
from cxr_mlflow.names import slug
from cxr_mlflow.serving.predictor import Predictor
from cxr_mlflow.tracking.origin import Origin


def what_readers_must_know(
    films: Films, predictor: Predictor, present: Sequence[str], origin: Origin | None
) -> tuple[str, ...]:
    """List what is said wherever these scores are shown."""
    warnings = [SYNTHETIC] if films.catalog.is_demo else []
    if predictor.trained_on.get("synthetic") == "true" and not films.catalog.is_demo:
        warnings.append("Trained on synthetic data: the model has never seen an X-ray.")
    if len(present) < len(predictor.classes):
        warnings.append(
            f"Only {len(present)} of {len(predictor.classes)} classes of the model have images "
            f"here: all averages are over {' and '.join(present)} and compare with no others."
        )
    if films.unchecked:
        warnings.append(
            f"Could not be checked against the training images: {films.unchecked}. Films that the "
            "model was trained on may be among these, and the scores are too good then."
        )
        if predictor.trained_on.get("data_digest") == films.catalog.digest:
            warnings.append(
                "The model was trained on images of this very folder: these scores are too good. "
                "Use --subset test with the split file of the training run."
            )
    warnings += left_out(bad_files(films.catalog, films.class_map))
    if origin is None or origin.controls == NONE_FOUND:
        return (*warnings, NOT_CONTROLLED)
    return (*warnings, f"Controls of the training run, on its own test images: {origin.controls}")


def checked_tag(films: Films) -> str:
    """Say in a tag whether the images were compared with those the model was trained on."""
    return f"yes: {films.checked}" if films.checked else f"no: {films.unchecked}"


def facts_of(
    films: Films, predictor: Predictor, origin: Origin | None, model_uri: str
) -> dict[str, str]:
    """Lay out for the note which model was scored on what."""
    catalog = films.catalog
    run = f"{origin.name} ({origin.run_id})" if origin else "not in this store"
    about = ", ".join(f"{key}={predictor.trained_on[key]}" for key in ("model", "data", "weights")
                      if key in predictor.trained_on)  # fmt: skip
    counts = films.table["class_name"].value_counts()
    names = ", ".join(
        f"{name} {counts.get(name, 0):,}" + (f" as {to}" if slug(name) != slug(to) else "")
        for name, to in films.class_map.items()
        if to is not None
    )
    facts = {
        "model": f"{model_uri} ({about})" if about else model_uri,
        "training run": run,
        "input": f"{predictor.image_size} px, mask mode {predictor.mask_mode}",
        "data": f"{catalog.name}, digest {catalog.digest[:12]}",
        "images": f"{len(films.table):,} scored: {names}",
        "copies of training images": films.checked or f"not looked for: {films.unchecked}",
    }
    if aside := films.left_out():
        facts["left out by the class map"] = ", ".join(
            f"{name} {number:,}" for name, number in aside.items()
        )
    return facts


def external_test(
    films: Films,
    present: Sequence[str],
    classes: Sequence[str],
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    run_id: str,
) -> External:
    """Gather for the model card what a model scored; metrics and intervals as for `score_lines`."""
    catalog = films.catalog
    scores = {key: score_of(metrics, intervals, key) for key in ("f1_macro", "roc_auc_macro")}
    return External(
        data=f"{catalog.name} (synthetic)" if catalog.is_demo else catalog.name,
        digest=catalog.digest,
        classes=", ".join(f"{name} as {to}" for name, to in films.class_map.items() if to),
        images=len(films.table),
        copies=None if films.copies is None else len(films.copies.rows),
        present=len(present),
        run_id=run_id,
        **scores,
    )


def score_lines(
    metrics: Mapping[str, float],
    intervals: Mapping[str, Interval],
    present: Sequence[str],
    classes: Sequence[str],
    num_images: int,
) -> list[str]:
    """Write the first of the last lines in the terminal: scores over the classes that are there.

    Parameters
    ----------
    metrics, intervals : mapping
        Of `evaluation.present.over_present` where classes are absent.
    present, classes : sequence of str
        Classes that have images, and all of the model.
    num_images : int
    """
    over = "" if len(present) == len(classes) else f" over {len(present)} of {len(classes)} classes"
    f1, areas = intervals["f1_macro"], []
    for name in present:
        area = intervals.get(f"roc_auc/{slug(name)}")
        areas.append(f"{name} {'not measured' if area is None else _told(area)}")
    return [
        f"{num_images:,} images: macro F1{over} {_told(f1)}, accuracy {metrics['accuracy']:.3f}",
        f"ROC AUC, which no threshold touches: {', '.join(areas)}",
    ]


def _told(score: Interval) -> str:
    if score.value != score.value:
        return "not measured"
    ends = "" if score.low != score.low else f" ({score.low:.3f}-{score.high:.3f})"
    return f"{score.value:.3f}{ends}"
