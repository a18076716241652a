"""Controls that a run carries beside its score: what the source of a file alone gives away."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cxr_mlflow.config import DataConfig
from cxr_mlflow.data.audit import Audit, audit_data
from cxr_mlflow.data.audit_sources import source_floor
from cxr_mlflow.data.prepare import Study, cache_folder
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.intervals import Bootstrap, label_intervals
from cxr_mlflow.evaluation.sources import (
    UNKNOWN,
    in_doubt,
    never_within,
    within_lines,
    within_metrics,
    within_sources,
)
from cxr_mlflow.names import slug


def audit_study(study: Study, data: DataConfig, *, progress: bool = True) -> Audit:
    """Audit the images of a study, or read what was found about them before."""
    return audit_data(
        study.catalog,
        study.duplicates,
        split=study.split,
        cache_dir=cache_folder(data),
        progress=progress,
    )


@dataclass(frozen=True)
class Controls:
    """What the controls of a run found, in words and as metrics."""

    lines: dict[str, str]
    metrics: dict[str, float]


def source_controls(
    study: Study,
    result: Assessment,
    *,
    samples: int,
    doubted: Mapping[str, Collection[str]] | None = None,
) -> Controls:
    """Hold a run's test score against the sources of its images.

    Parameters
    ----------
    study : Study
        The rule of the source floor is learnt on its training images.
    result : Assessment
        Of the test images of `study`.
    samples : int
        Bootstrap resamples.
    doubted : mapping of str to collection of str, optional
        Classes whose listed sources do not fit their films -> these sources; see `Audit.doubted`.
    """
    doubted = doubted or {}
    classes = study.catalog.classes
    train, test = (study.split.rows(split) for split in ("train", "test"))
    how = Bootstrap(groups=study.duplicates.groups[test], samples=samples)
    sources = study.catalog.table["source"].to_numpy(object)
    tested = sources[test].tolist()
    lines = {"source floor": "not measured: the training images do not tell their sources"}
    metrics: dict[str, float] = {}
    if (sources[train] != UNKNOWN).any():
        floor = source_floor(
            sources[train].tolist(), study.labels[train], classes, tested=(tested, result.y_true)
        )
        guessed = floor.predict(tested, classes)
        ends = label_intervals(result.y_true, guessed, classes, how)["f1_macro"]
        lines["source floor"] = (
            f"macro F1 {floor.f1_macro:.3f} ({ends.low:.3f}–{ends.high:.3f}) knowing only the "
            f"source of a file{in_doubt(doubted)}"
        )
        metrics = {
            "source_floor/f1_macro": floor.f1_macro,
            "source_floor/f1_macro_low": ends.low,
            "source_floor/f1_macro_high": ends.high,
            "source_floor/majority_f1_macro": floor.majority_f1_macro,
            **{f"source_floor/f1/{slug(name)}": value for name, value in floor.f1.items()},
        }
    within = within_sources(result.y_true, result.probabilities, tested, classes, how)
    lines |= within_lines(within, never_within(study.labels, sources.tolist(), classes), doubted)
    metrics |= within_metrics(within)
    return Controls(lines, {f"{result.split}/{name}": value for name, value in metrics.items()})
