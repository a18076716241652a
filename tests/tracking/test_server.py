"""A whole run against a real `mlflow server`, as a team uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import mlflow
import pytest

from cxr_mlflow.config import RunConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.run import Tracker, open_run, use_tracking_uri
from tools.mlflow_server import free_port, serve_mlflow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_store):
    """Address of a real server on loopback, with its own store."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with serve_mlflow(f"sqlite:///{folder / 'mlflow.db'}", folder) as url:
        yield url


@pytest.fixture
def on_server(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    mlflow.set_registry_uri(server)
    return server


def test_a_whole_run_arrives_at_the_server(on_server, tmp_path, demo_dir, cache_dir):
    from cxr_mlflow.pipeline import run_experiment

    options = {
        "data_dir": str(demo_dir),
        "cache_dir": str(cache_dir),
        "model": "cnn",
        "epochs": 1,
        "image_size": 48,
        "bootstrap_samples": 100,
        "experiment": "team",
    }
    done = run_experiment(RunConfig.from_options(options))
    run = mlflow.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/f1_macro"] == pytest.approx(done.metrics["f1_macro"])
    assert "Test macro F1" in run.data.tags["mlflow.note.content"]
    table = mlflow.artifacts.load_text(f"runs:/{done.run_id}/test/predictions.csv")
    assert table.startswith("image_id,")
    model = mlflow.pyfunc.load_model("models:/cxr-classifier-demo@champion")
    assert model.metadata.metadata["mask_mode"] == "lungs"
    assert any(f"{on_server}/#/experiments/" in line for line in done.lines)
    assert not list(tmp_path.glob("mlruns"))  # nothing fell beside the server


def test_a_run_that_mlflow_run_opened_is_joined(on_server, monkeypatch):
    client = mlflow.MlflowClient(on_server)
    run_id = client.create_run(client.create_experiment("joined")).info.run_id
    client.log_param(run_id, "lr", "1e-3")
    client.log_param(run_id, "run_name", "'two words'")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with open_run("another", "my name", {"a": "b"}) as run:
        run.log_params({"lr": "0.001", "run_name": "two words", "new": "x"})
        with pytest.raises(InputError, match="lr=1e-3"):
            run.log_params({"lr": "0.002"})
    joined = client.get_run(run_id)
    assert joined.info.status == "FINISHED"
    assert joined.data.params == {"lr": "1e-3", "run_name": "'two words'", "new": "x"}
    assert (joined.info.run_name, joined.data.tags["a"]) == ("my name", "b")


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no good"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_status_tells_how_it_ended(on_server, error, status):
    opened: list[Tracker] = []

    def fail() -> None:
        with open_run("ends", "x", {}) as run:
            opened.append(run)
            raise error

    with pytest.raises(type(error)):
        fail()
    ended = mlflow.get_run(opened[0].run_id)
    assert ended.info.status == status
    assert type(error).__name__ in ended.data.tags["failure"]


def test_a_server_that_is_not_there_is_named(monkeypatch, tracking):
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    with pytest.raises(InputError, match=f"MLFLOW_TRACKING_URI={dead}"):
        use_tracking_uri()
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


DIES_AT_A_TABLE = """
import os, signal
from sqlalchemy import event
from sqlalchemy.engine import Engine
from cxr_mlflow.tracking.run import use_tracking_uri

@event.listens_for(Engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "CREATE TABLE evaluation_datasets" in statement:
        os.kill(os.getpid(), signal.SIGKILL)

use_tracking_uri()
"""


def test_a_process_killed_while_it_makes_the_tables_leaves_no_store_that_is_half_made(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    died = subprocess.run([sys.executable, "-c", DIES_AT_A_TABLE], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert use_tracking_uri() == uri
    assert {path.suffix for path in tmp_path.iterdir()} <= {".db", ".lock"}
    assert mlflow.search_experiments()[0].artifact_location.endswith("mlruns/0")
