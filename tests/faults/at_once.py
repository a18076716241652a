"""One of several processes that open a run, register and fight for the alias at the same moment.

`at_once.py FOLDER NUMBER ERRORS`: waits for FOLDER/start, then opens its run, sharing no lock with
the others but those beside the store; waits for FOLDER/end, then registers a model that mistakes
this share of the test images.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd

from cxr_mlflow.serving.gate import GateReport
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.journaled import open_journaled
from cxr_mlflow.tracking.registry import promote, register
from cxr_mlflow.tracking.remote import Remote
from cxr_mlflow.tracking.run import open_store

IMAGES = 400


def fight(remote: Remote, record: Record) -> None:
    """Register a model of this run, and let it fight for the alias."""
    client, known = mlflow.MlflowClient(), remote.journal.remote
    if "model_id" not in known:
        logged = client.create_logged_model(known["experiment_id"], "model", known["run_id"])
        client.finalize_logged_model(logged.model_id, "READY")
        remote.journal.remember(model_id=logged.model_id)
    uri = f"models:/{remote.journal.remote['model_id']}"
    version = register(uri, name="films", gate=GateReport(ok=True))
    promote("films", version, samples=200)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def main(folder: Path, number: int, errors: float) -> None:
    (folder / f"ready-{number}").touch()
    wait_for(folder / "start")
    os.environ["CXR_LOCK_DIR"] = str(Path.cwd() / "locks")
    (folder / f"opening-{number}").touch()
    open_store()
    random = np.random.default_rng(number)
    wrong = random.random(IMAGES) < errors
    true = np.arange(IMAGES) % 2
    names = np.array(["COVID", "Normal"])
    table = pd.DataFrame(
        {
            "image_id": [f"film-{i}" for i in range(IMAGES)],
            "true": names[true],
            "predicted": names[(true + wrong) % 2],
        }
    )
    journal = Journal(folder / f"journal-{number}")
    tags = {"test_digest": "d", "number": str(number), "errors": str(errors)}
    with open_journaled(
        journal, f"journal-{number}", "lab", f"run {number}", tags, {}, handlers={"fight": fight}
    ) as run:
        run.log_metrics({"val/loss": errors}, step=1)
        run.log_csv(table, "test/predictions.csv")
        assert run.delivery.wait(seconds=200), run.delivery.refusal or run.delivery.trouble
        os.environ["CXR_LOCK_DIR"] = str(folder / "locks")
        (folder / f"trained-{number}").touch()
        wait_for(folder / "end")
        run.once("fight", "fight", {})
    assert run.is_delivered, run.delivery.refusal or run.delivery.trouble


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
