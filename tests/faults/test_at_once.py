"""Eight processes start on a store that is not there yet, and finish at the same moment.

Each in a folder of its own. PostgreSQL is not even up when they start, and then gets its tables
from processes that share no lock, as those of several machines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

import mlflow
import pytest

from tools.mlflow_server import free_port
from tools.postgres_server import find_postgres, postgres_uri, serve_postgres

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
ERRORS = (0.45, 0.02, 0.30, 0.40, 0.35, 0.25, 0.45, 0.40)
BEST = 1
SCRIPT = Path(__file__).with_name("at_once.py")


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """Tracking URI of a store without tables, and the context in which it is there."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'mlflow.db'}", nullcontext()
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    port = free_port()
    return postgres_uri(port), serve_postgres(port)


def all_there(folder, what, processes):
    deadline = time.monotonic() + 240
    while len(list(folder.glob(f"{what}-*"))) < len(ERRORS):
        for process in processes:
            assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, f"not all are {what}"
        time.sleep(0.05)


def test_no_run_is_lost_and_the_best_model_is_champion(store, tmp_path):
    store, serving = store
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store, "MLFLOW_REGISTRY_URI": store}
    environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = str(SCRIPT.parents[2])
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(SCRIPT), str(tmp_path), str(number), str(errors)],
                    cwd=folder,
                    env=environment,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number, errors in enumerate(ERRORS)
            for folder in [tmp_path / f"machine-{number}"]
            if not folder.mkdir()
        ]
        stack.callback(lambda: [p.kill() for p in processes])
        all_there(tmp_path, "ready", processes)
        (tmp_path / "start").touch()
        all_there(tmp_path, "opening", processes)
        stack.enter_context(serving)
        all_there(tmp_path, "trained", processes)
        (tmp_path / "end").touch()
        for process in processes:
            _, told = process.communicate(timeout=240)
            assert process.returncode == 0, told[-3000:]
        check(store)


def check(store):
    mlflow.set_tracking_uri(store)
    mlflow.set_registry_uri(store)
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("lab").experiment_id])
    assert sorted(run.data.tags["number"] for run in runs) == [str(n) for n in range(len(ERRORS))]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.metrics["val/loss"] == float(run.data.tags["errors"]) for run in runs)
    versions = client.search_model_versions("name = 'films'")
    numbers = sorted(int(version.version) for version in versions)
    assert numbers == list(range(1, len(ERRORS) + 1))
    assert {v.run_id for v in versions} == {run.info.run_id for run in runs}
    champion = client.get_model_version_by_alias("films", "champion")
    assert client.get_run(champion.run_id).data.tags["number"] == str(BEST)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
