"""What the parent run of an experiment tells: with what it was run, its plan, how far it is."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.config import FILE, NONE, flag
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.experiment.plan import Cell, Plan
from cxr_mlflow.telling import datasets_of
from cxr_mlflow.tracking.parents import PLAN_FILE, PlannedCell, get_run, write_plan
from cxr_mlflow.tracking.tracker import Tracker

COMPLETE, BEST, REGISTERED, STATE = "complete", "best", "registered", "state"
"""Tags of a parent run: the digest of its cells when all were done; the best of them, and as what
it is registered; how far it is, in words."""
OF_A_TABLE = ("verdict", "leading_row")
"""Tags that a comparison of the cells leaves, see `compare.Compared.log_to`."""
FILE_COPY, LOGS = "experiment.yaml", "cells"
"""Artifacts of a parent run: its file; a folder with what each cell printed."""
ASKED = "asked/"
"""How the tags of a parent run begin that say with what it was run last."""
WORDS = ("seeds", "overrides", "data_dir", "weights")
"""Options that stand over the file."""


def marks_of(keys: Mapping[Cell, str]) -> str:
    """Digest of the cells asked for: a parent run that has it is complete."""
    return hashlib.sha256("".join(sorted(keys.values())).encode()).hexdigest()


def tell_beginning(
    run: Tracker, asked: ExperimentConfig, plan: Plan, study: Study, keys: Mapping[Cell, str]
) -> None:
    """Tell with what an experiment is run, and what is asked for; it is not complete now.

    Parameters of a run cannot change, so those of the first session stand; tags tell the newest.

    Parameters
    ----------
    run : Tracker
        The parent run.
    asked : ExperimentConfig
    plan : Plan
    study : Study
    keys : mapping of Cell to str
        By which the run of each cell is found again.
    """
    told = asked_for(asked, plan, study)
    known = get_run(run.run_id).data.params
    run.log_params({name: value for name, value in told.items() if name not in known})
    run.forget(tags=(COMPLETE, BEST, REGISTERED))
    if "cells" in known:  # not what `mlflow run` logged, but what an earlier session did
        run.set_tags({f"{ASKED}{name}": value for name, value in told.items()})
    for context, (table, name, digest) in datasets_of(study).items():
        run.log_dataset(table, name=name, digest=digest, context=context)
    run.log_text(file_text(asked, plan), FILE_COPY)
    tell_plan(run, plan, keys)


def tell_plan(run: Tracker, plan: Plan, keys: Mapping[Cell, str]) -> None:
    """Tell which cells are asked for, with all their options."""
    planned = [
        PlannedCell(keys[c], c.row, str(c.seed), c.name, c.config.to_params()) for c in plan.cells
    ]
    run.log_json(write_plan(planned), PLAN_FILE)


def tell_logs(run: Tracker, plan: Plan, folder: Path) -> None:
    """Tell what cells printed, where a session could not do so when they ended."""
    there = run.files(LOGS)
    for log in (folder / f"{cell.name}.log" for cell in plan.cells):
        if log.is_file() and f"{LOGS}/{log.name}" not in there:
            run.log_file(log, LOGS)


def asked_for(asked: ExperimentConfig, plan: Plan, study: Study) -> dict[str, str]:
    """Say with what an experiment is run, by the names `mlflow run` gives its options."""
    weights = dict.fromkeys(cell.config.model.weights for cell in plan.cells)
    return {
        "file": asked.file,
        "data_dir": str(study.catalog.root),
        "weights": ", ".join(weights),
        "seeds": ",".join(dict.fromkeys(str(cell.seed) for cell in plan.cells)),
        "overrides": asked.overrides,
        "jobs": str(asked.jobs),
        "max_time": str(asked.max_time),
        "cells": str(len(plan.cells)),
        "rows": str(len(plan.rows)),
        "data_digest": study.catalog.digest,
        "split_digest": study.split.digest,
        "test_digest": study.split.test_digest,
    }


def file_text(asked: ExperimentConfig, plan: Plan) -> str:
    """Text of the experiment file, below a line with what the command line set over it."""
    over = [(name, getattr(asked, name)) for name in WORDS]
    told = [f"--{flag(name)} {shlex.quote(v)}" for name, v in over if v not in (FILE, NONE)]
    return (
        f"# over this file, on the command line: {' '.join(told)}\n{plan.text}"
        if told
        else plan.text
    )
