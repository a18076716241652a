"""Two versions on the same test images: which has the higher macro F1, and how surely."""

from __future__ import annotations

from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cxr_mlflow.evaluation.comparison import NotComparable
from cxr_mlflow.evaluation.intervals import Bootstrap, Interval, paired_difference
from cxr_mlflow.tracking.tested import (
    PREDICTIONS,
    TEST_DIGEST,
    digest_of_test,
    read_predictions,
    run_behind,
)


@dataclass(frozen=True)
class _Test:
    """What a version was tested on, and what it predicted."""

    version: str
    digest: str
    table: pd.DataFrame  # indexed by image_id


def compare_tests(
    client: mlflow.MlflowClient,
    version: ModelVersion,
    other: ModelVersion,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[Interval, int]:
    """Bootstrap the difference of macro F1 from the predictions that the runs logged.

    Parameters
    ----------
    client : MlflowClient
    version, other : ModelVersion
    samples, seed : int
        Of the bootstrap.

    Returns
    -------
    difference : Interval
        Macro F1 of `version` minus that of `other`, with its 95 % interval.
    num_images : int

    Raises
    ------
    NotComparable
        If they were tested on different images, or the predictions of one are missing.
    """
    a, b = (_test_of(client, each) for each in (version, other))
    if a.digest != b.digest:
        raise NotComparable(
            f"it was tested on other images than version {b.version} "
            f"({TEST_DIGEST} {a.digest[:12]} and {b.digest[:12]})"
        )
    if not a.table.index.equals(b.table.index) or not a.table["true"].equals(b.table["true"]):
        raise NotComparable(f"its {PREDICTIONS} lists other images than that of {b.version}")
    columns = [a.table["true"], a.table["predicted"], b.table["predicted"]]
    codes, classes = pd.factorize(np.concatenate([column.to_numpy(object) for column in columns]))
    y_true, pred_a, pred_b = np.split(codes.astype(np.int64), 3)
    groups = pd.factorize(a.table["group"])[0].astype(np.int64) if "group" in a.table else None
    how = Bootstrap(groups=groups, samples=samples, seed=seed)
    return paired_difference(y_true, pred_a, pred_b, len(classes), how), len(y_true)


def _test_of(client: mlflow.MlflowClient, version: ModelVersion) -> _Test:
    """Read digest and predictions from the run that made a version."""
    name = f"version {version.version}"
    run_id = run_behind(client, version.version, version.run_id, version.model_id)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise NotComparable(f"the run of {name} is gone ({error.message})") from error
    told = f"the run of {name}"
    digest, table = digest_of_test(run, told), read_predictions(client, run_id, told)
    if missing := {"image_id", "true", "predicted"} - {*table.columns}:
        raise NotComparable(f"{PREDICTIONS} of {name} has no column {', '.join(sorted(missing))}")
    return _Test(str(version.version), digest, table.set_index("image_id").sort_index())
