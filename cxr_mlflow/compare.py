"""Puts runs that MLflow knows on one table: with what they share, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.compared import Compared
from cxr_mlflow.describe import SYNTHETIC
from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.comparison import TestedRun, compare
from cxr_mlflow.evaluation.comparison_words import Missing
from cxr_mlflow.experiment.plan import load_plan
from cxr_mlflow.labels import recipe, tell_differences
from cxr_mlflow.tracking.named import Named, name_runs
from cxr_mlflow.tracking.parents import description_of, find_parent, get_run
from cxr_mlflow.tracking.registry import use_registry
from cxr_mlflow.tracking.tested import shared_params
from cxr_mlflow.tracking.tracker import Tracker

SHOWN_PARAMS = {
    "data_digest": "data digest",
    "test_digest": "test digest",
    "image_size": "image size",
    "mask_mode": "mask mode",
    "epochs": "most epochs",
    "git_commit": "code",
    "version/torch": "torch",
}
"""Parameters that are told where all runs share them, with their names in words."""
SAMPLES = 2000


def find_runs(what: Sequence[str], experiment: str) -> Named:
    """Find the runs that words name.

    Parameters
    ----------
    what : sequence of str
        As `tracking.named.name_runs` takes them, and paths of experiment files.
    experiment : str
        MLflow experiment in which the runs of a file are.
    """
    use_registry()
    return name_runs([_name_in(word, experiment) for word in what], experiment)


def _name_in(word: str, experiment: str) -> str:
    """Name of an experiment file; other words stay as they are.

    Raises
    ------
    InputError
        If the file has no runs yet.
    """
    if not Path(word).is_file():
        return word
    name = load_plan(ExperimentConfig(file=word), experiment=experiment).name
    if find_parent(experiment, name) is None:
        raise InputError(
            f"{word}: no run of {name!r} in the MLflow experiment {experiment}; "
            "train it with cxr experiment run, or name another with --experiment"
        )
    return name


def parent_to_log_on(named: Named) -> Tracker:
    """Open the parent run that a report is logged on.

    Raises
    ------
    InputError
        If anything but one experiment is named.
    """
    if named.only_parent is None:
        raise InputError("--log: give one experiment file, its name, or the id of its parent run")
    info = named.only_parent.info
    return Tracker(info.run_id, info.experiment_id)


def compare_runs(
    named: Named, what: Sequence[str], *, baseline: str | None = None, samples: int | None = None
) -> Compared:
    """Compare the runs that words name, with the cells that are missing.

    Parameters
    ----------
    named : Named
        Of `find_runs`.
    what : sequence of str
        The words, for the title.
    baseline : str, optional
        See `describe`.
    samples : int, optional
        Bootstrap resamples; by default as many as the runs of an experiment were told.
    """
    title = f"{len(what)} runs compared" if len(what) > 1 else what[0]
    about = {}
    if parent := named.only_parent:
        title = str(parent.info.run_name)
        tags = parent.data.tags
        about = about_experiment(
            description_of(parent), tags.get("data", ""), synthetic=tags.get("synthetic") == "true"
        )
        told = next(iter(named.runs.values())).data.params.get("bootstrap_samples")
        samples = samples or (int(told) if told else None)
    elif len(named.runs) == 1 and not named.versions:
        title = str(next(iter(named.runs.values())).info.run_name)
    return describe(
        named.tested(),
        title=title,
        about=about,
        missing=named.missing,
        baseline=baseline,
        samples=samples or SAMPLES,
    )


def about_experiment(description: str, data: str, *, synthetic: bool) -> dict[str, str]:
    """Write what a report of an experiment begins with."""
    about = {"about": description} if description else {}
    if data:
        about["data"] = f"{data}. {SYNTHETIC}" if synthetic else data
    return about


def describe(
    tested: Sequence[TestedRun],
    *,
    title: str,
    about: Mapping[str, str] | None = None,
    missing: Iterable[Missing] = (),
    baseline: str | None = None,
    samples: int = SAMPLES,
) -> Compared:
    """Compare runs, and gather what a report says about them.

    Parameters
    ----------
    tested : sequence of TestedRun
    title : str
    about : mapping, optional
        What is told first, above what the runs share.
    missing : iterable of Missing
        Cells without a score.
    baseline : str, optional
        Row with which all others are compared, or an unambiguous part of its label, `v1` or
        `@champion`; every pair by default.
    samples : int
        Bootstrap resamples.
    """
    comparison = compare(tested, baseline=baseline, samples=samples)
    made = {run.run_id: get_run(run.run_id).data for run in tested}
    shared = shared_params([data.params for data in made.values()], SHOWN_PARAMS)
    differing = tell_differences(
        [recipe(made[row.runs[0].run_id].params) for row in comparison.rows]
    )
    machines = dict.fromkeys(d.tags["machine"] for d in made.values() if "machine" in d.tags)
    told = {
        **(about or {}),
        "test images": f"{comparison.num_images:,}, in {comparison.num_groups:,} groups of "
        "near-duplicates",
        **({"differs between rows": differing} if differing else {}),
        **{SHOWN_PARAMS[name]: _short(name, values) for name, values in shared.items()},
        **({"machine": "; ".join(machines)} if machines else {}),
        "made on": date.today().isoformat(),
    }
    return Compared(comparison, title, told, tuple(missing))


def _short(name: str, values: Sequence[str]) -> str:
    if "digest" in name or name == "git_commit":
        values = [v[:12] + ("-dirty" if v.endswith("-dirty") else "") for v in values]
    told = ", ".join(dict.fromkeys(values))
    if name == "git_commit" and len(values) > 1:
        return f"{told} — the runs were made by {len(values)} states of the code"
    return told
