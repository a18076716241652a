"""Controls that a run carries beside its score: what the source of a file alone gives away."""

from __future__ import annotations

from dataclasses import dataclass

from cxr_mlflow.data.prepare import Study
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.sources import (
    control_lines,
    control_metrics,
    never_within,
    source_floor,
    within_sources,
)


@dataclass(frozen=True)
class Controls:
    """What the controls of a run found, in words and as metrics."""

    lines: dict[str, str]
    metrics: dict[str, float]


def source_controls(study: Study, result: Assessment, *, samples: int) -> Controls:
    """Hold a run's test score against the sources of its images.

    Parameters
    ----------
    study : Study
        The rule of the source floor is learnt on its training images.
    result : Assessment
        Of the test images of `study`.
    samples : int
        Bootstrap resamples.
    """
    table, classes = study.catalog.table, study.catalog.classes
    train, test = (study.split.rows(split) for split in ("train", "test"))
    sources, told = table["source"].tolist(), table["source"].to_numpy(object)
    floor = source_floor(
        told[train].tolist(), study.labels[train], told[test].tolist(), result.y_true, classes
    )
    within = within_sources(
        result.y_true,
        result.probabilities,
        told[test].tolist(),
        classes,
        groups=study.duplicates.groups[test],
        samples=samples,
    )
    alone = never_within(study.labels, sources, classes)
    metrics = {
        f"{result.split}/{name}": value for name, value in control_metrics(floor, within).items()
    }
    return Controls(control_lines(floor, within, alone), metrics)
