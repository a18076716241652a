"""The view of the MLflow UI in which runs are compared: kept on the experiment, opened by a link.

MLflow keeps a view that somebody saved or shared as a tag of the experiment: the columns, the order
and the charts of its page. Ours is there from the first run on, in the menu "Views" and as a link.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cxr_mlflow.tracking.record import COMPARED

KEY = "cxr"
NAME = "cxr: scores and figures"
TAG = f"mlflow.sharedViewState.{KEY}"
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Without it the UI asks whoever opens the experiment for the first time what it is about."""
SCORE = "test/f1_macro"
COLUMNS = ("params.`model`", "params.`strategy`", "params.`seed`", f"metrics.`{SCORE}`")
FIGURES = (*(f"test_{name}" for name in COMPARED), "training_curves")
CREATED = 1_795_651_200_000
"""When the view was made, milliseconds since 1970: always the same, as the view is."""
MOST_RUNS = 10


def view_state() -> dict[str, Any]:
    """Return the state of an experiment's page: best run first, what matters, charts.

    A metric to sort by makes the UI list the children of a parent run beside it, unfolded.
    """
    section = {"display": True, "deleted": False, "isGenerated": False, "isReordered": True}
    return {
        "selectedColumns": [*COLUMNS],
        "orderByKey": f"metrics.`{SCORE}`",
        "orderByAsc": False,
        "compareRunSections": [
            {**section, "uuid": "scores", "name": "Scores", "columns": 2, "cardHeight": 300},
            {**section, "uuid": "figures", "name": "Figures", "columns": 1, "cardHeight": 360},
        ],
        "compareRunCharts": _charts(),
        "isAccordionReordered": True,
    }


def _charts() -> list[dict[str, Any]]:
    """Return the charts of a comparison: scores, parallel coordinates, figures side by side."""
    common = {"deleted": False, "isGenerated": False, "runsCountToCompare": MOST_RUNS}
    scores = common | {"metricSectionId": "scores"}
    parallel = {"selectedParams": ["model", "strategy"], "selectedMetrics": [SCORE]}
    figure = common | {"metricSectionId": "figures", "type": "IMAGE", "step": 0}
    return [
        {**scores, "uuid": "bars", "type": "BAR", "metricKey": SCORE, "displayName": SCORE},
        {**scores, "uuid": "parallel", "type": "PARALLEL", "showAllRuns": False, **parallel},
        *({**figure, "uuid": key, "imageKeys": [key], "showRunParams": False} for key in FIGURES),
    ]


def view_tags() -> dict[str, str]:
    """Return the tags of an experiment that has the view."""
    saved = {"name": NAME, "createdAt": CREATED, "state": json.dumps(view_state())}
    return {TAG: json.dumps(saved), KIND_TAG: KIND}


def offer_view(experiment_id: str) -> None:
    """Put the view on an experiment that lacks it; where that cannot be, nothing happens.

    No run may fail for want of a view, so what MLflow says against it is not told. What somebody
    chose as the experiment's kind stays.
    """
    with suppress(MlflowException, RequestException, SQLAlchemyError, OSError):
        client = mlflow.MlflowClient()
        there = client.get_experiment(experiment_id).tags
        for name, value in view_tags().items():
            if there.get(name) != value and (name == TAG or name not in there):
                client.set_experiment_tag(experiment_id, name, value)


def view_links(address: str, experiment_id: str) -> dict[str, str]:
    """Return the addresses of the view: `table` and `charts`.

    Parameters
    ----------
    address : str
        Of the server, http://127.0.0.1:5000.
    experiment_id : str
    """
    page = f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}"
    return {"table": page, "charts": f"{page}&compareRunsMode=CHART"}
