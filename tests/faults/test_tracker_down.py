"""A whole training without a server; later `cxr sync` brings all of it, the model too, once."""

from __future__ import annotations

import pytest

from tests.faults.world import World
from tools.mlflow_server import free_port, serve_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def test_trained_without_a_server_and_synced_later(tmp_path, empty_store, demo_dir, cache_dir):
    port = free_port()
    world = World(tmp_path, demo_dir, cache_dir, uri=f"http://127.0.0.1:{port}")
    done = world.type(epochs="2")
    assert done.returncode == 0, done.stderr
    assert "MLflow does not answer" in done.stderr
    assert "no connection" in done.stderr
    assert "Nothing is lost" in done.stdout
    assert "cxr sync" in done.stdout
    assert "macro F1" in done.stdout

    failed = world.run(["-m", "cxr_mlflow", "sync"])
    assert failed.returncode == 1
    assert "records not sent" in failed.stdout

    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    with serve_mlflow(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, port=port):
        synced = world.run(["-m", "cxr_mlflow", "sync"])
        assert synced.returncode == 0, synced.stdout
        assert "records have arrived" in synced.stdout
        assert "nothing to send" in world.run(["-m", "cxr_mlflow", "sync"]).stdout
        (run,) = world.runs()
        assert run.info.status == "FINISHED"
        assert [step for step, _ in world.history(run)["val/f1_macro"]] == [1, 2]
        assert 0 <= run.data.metrics["test/f1_macro"] <= 1
        champion = world.client.get_model_version_by_alias("cxr-classifier-demo", "champion")
        assert champion.run_id == run.info.run_id
        assert "version 1" in run.data.tags["mlflow.note.content"]
        paths = {f.path for f in world.client.list_artifacts(run.info.run_id)}
        assert {"README.md", "model_card.html", "weights", "test"} <= paths
