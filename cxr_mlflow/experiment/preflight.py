"""What is found out before the first cell is trained: that data and first weights can be used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cxr_mlflow.controls import audit_study
from cxr_mlflow.data.prepare import Study, prepare
from cxr_mlflow.errors import InputError
from cxr_mlflow.experiment.plan import Cell, Plan
from cxr_mlflow.models import LoadedModel, freeze_first, load_model


def prepare_all(plan: Plan) -> Study:
    """Read and audit the data in every way the cells want them, so that no two do it at once.

    Raises
    ------
    InputError
        If the cells would not be tested on the same images.
    """
    studies = [prepare(data) for data in plan.inputs()]
    first = studies[0]
    for data, study in zip(plan.inputs(), studies, strict=True):
        if study.split.digest != first.split.digest:
            raise InputError(
                f"with mask_mode={data.mask_mode} other images are usable than with "
                f"{plan.data.mask_mode}: the cells would not be tested on the same images"
            )
    audit_study(first, plan.data)
    return first


def evidence_of(plan: Plan, study: Study) -> dict[Cell, dict[str, str]]:
    """Digests of what each cell is made of, beside its options: data, split, first weights.

    Reads each kind of first weights once, so that a bad file shows now.
    """
    known: dict[tuple[str, str], tuple[LoadedModel, str]] = {}
    evidence = {}
    for cell in plan.cells:
        model = cell.config.model
        told = (model.model, model.weights)
        if told not in known:
            loaded = load_model(model.model, len(study.catalog.classes), weights=told[1], seed=0)
            path = Path(model.weights).expanduser()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            known[told] = loaded, f"{loaded.weights} {content}"
        loaded, weights = known[told]
        freeze_first(model.model, loaded, model.freeze)  # so that it is refused now
        digests = {"data": study.catalog.digest, "split": study.split.digest}
        evidence[cell] = {**digests, "weights": weights}
    return evidence
