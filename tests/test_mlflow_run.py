"""`mlflow run .` as a user types it: a whole run, and mistakes that end in one clear line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from cxr_mlflow.tracking.parents import close_dead_runs
from cxr_mlflow.tracking.processes import birth_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("hears_ctrl_c")]
MLFLOW_RUN = (sys.executable, "-m", "mlflow", "run", "--env-manager", "local")


def mlflow_run(repo: Path, tmp_path: Path, *args: str) -> subprocess.CompletedProcess:
    """Run `mlflow run` on the checkout with this environment's Python and the test's store."""
    return subprocess.run(
        [*MLFLOW_RUN, str(repo), *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    """Let commands find this Python, and the cache of the session."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("CXR_CACHE_DIR", str(cache_dir))


def statuses() -> list[str]:
    """Status of every run in the test's store."""
    ids = [e.experiment_id for e in mlflow.search_experiments()]
    return [run.info.status for run in mlflow.search_runs(ids, output_format="list")]


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("strategy=smote", "'none', 'weighted', 'oversample'"),
        ("epochs=many", "--epochs"),
        ("epochs=0", "--epochs=0 must be at least 1"),
        ("modle=cnn", "--modle"),
        ("image-size=64", "-P image_size"),
        ("data_dir=/no/such/folder", "--data-dir"),
    ],
)
def test_a_mistake_is_one_clear_line_and_no_run_stays_running(
    repo, tmp_path, tracking, parameter, told
):
    done = mlflow_run(repo, tmp_path, "-P", parameter)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, done.stderr
    assert told in errors[0]
    assert "Traceback" not in done.stderr
    assert statuses() == ["FAILED"]


def test_a_whole_run(repo, tmp_path, tracking, cache_dir):
    done = mlflow_run(
        repo,
        tmp_path,
        *("--experiment-name", "chest-xray", "-P", "data_dir=demo", "-P", "model=cnn"),
        *("-P", "strategy=weighted", "-P", "epochs=1", "-P", "image_size=48", "-P", "lr=1e-3"),
    )
    assert done.returncode == 0, done.stderr
    (run,) = mlflow.search_runs(experiment_names=["chest-xray"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.tags["model"] == "cnn"
    assert run.data.tags["synthetic"] == "true"
    assert "Synthetic data" in run.data.tags["mlflow.note.content"]
    assert run.data.params["strategy"] == "weighted"
    assert 0 <= run.data.metrics["test/f1_macro"] <= 1
    assert f"run       {run.info.run_id}" in done.stdout
    assert "cxr-classifier-demo version 1" in done.stdout
    client = mlflow.MlflowClient()
    aliases = client.get_registered_model("cxr-classifier-demo").aliases
    assert {name: str(version) for name, version in aliases.items()} == {
        "challenger": "1",
        "champion": "1",
    }

    split = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="data/split.csv"
    )
    model = ("-P", "model_uri=models:/cxr-classifier-demo@champion")
    done = mlflow_run(
        repo,
        tmp_path,
        *("-e", "evaluate", *model, "-P", "data_dir=demo"),
        *("-P", "subset=test", "-P", f"split_file={split}"),
    )
    assert done.returncode == 0, done.stderr
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.kind = 'evaluation'",
        output_format="list",
    )
    assert found[0].data.metrics["test/f1_macro"] == run.data.metrics["test/f1_macro"]

    (demo,) = cache_dir.glob("demo-*")
    out = tmp_path / "labels.csv"
    covid = demo / "COVID" / "images"
    done = mlflow_run(
        repo, tmp_path, "-e", "predict", *model, "-P", f"input={covid}", "-P", f"output={out}"
    )
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 1 + len(list(covid.iterdir()))
    assert set(statuses()) == {"FINISHED"}


def start(*args: str) -> subprocess.Popen[str]:
    """Type `mlflow run` in a terminal of its own, which sends Ctrl-C to all that it started."""
    return subprocess.Popen(
        [*MLFLOW_RUN, *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def until(what: str, status: str) -> None:
    """Wait for a status that is set behind `mlflow run`."""
    deadline = time.monotonic() + 60
    while mlflow.get_run(what).info.status != status:
        assert time.monotonic() < deadline, mlflow.get_run(what).info.status
        time.sleep(0.2)


def runs() -> list[Run]:
    """Runs of the test's store, the first first."""
    found = mlflow.search_runs(experiment_names=["chest-xray"], output_format="list")
    return sorted(found, key=lambda run: run.info.start_time)


def test_ended_and_typed_again_it_is_one_run_with_the_whole_history(
    repo, tmp_path, tracking, demo_dir
):
    args = [str(repo), "--experiment-name", "chest-xray", "-P", f"data_dir={demo_dir}"]
    args += ["-P", "model=cnn", "-P", "epochs=40", "-P", "patience=40"]  # it ends a second late
    args += ["-P", "image_size=48", "-P", "batch_size=8"]
    with start(*args) as ended:
        next(line for line in ended.stderr if line.startswith("epoch   2/40"))
        ended.send_signal(signal.SIGTERM)  # mlflow run does not tell its child
        told = ended.stderr.read()  # until the child is gone as well
    assert "the mlflow run that started this is gone" in told
    (first,) = runs()
    assert first.info.status == "KILLED"
    assert first.data.tags["failure"] == "Terminated"

    with start(*args) as ended:
        next(line for line in ended.stderr if line.startswith("epoch"))
        os.killpg(ended.pid, signal.SIGINT)
        ended.stderr.read()
    assert ended.returncode == 1
    _, link = runs()
    until(link.info.run_id, "FINISHED")
    killed = mlflow.get_run(first.info.run_id)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["failure"] == "KeyboardInterrupt"

    done = mlflow_run(Path(args[0]), tmp_path, *args[1:])
    assert done.returncode == 0, done.stderr
    whole, *links = runs()
    assert whole.info.run_id == first.info.run_id
    assert whole.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(whole.info.run_id, "val/f1_macro")
    assert [m.step for m in history] == list(range(1, 41))
    for link in links:
        assert link.info.status == "FINISHED"
        assert link.data.tags["continued_in"] == whole.info.run_id
        assert not link.data.metrics
    assert f"run       {whole.info.run_id}" in done.stdout


@pytest.mark.parametrize("how", ["SIGTERM to mlflow run", "Ctrl-C", "SIGKILL to all"])
def test_ended_while_it_prepares_nothing_lives_on_and_no_run_stays_running(
    repo, tmp_path, tracking, demo_dir, how
):
    args = [str(repo), "--experiment-name", "chest-xray", "-P", f"data_dir={demo_dir}"]
    with start(*args) as ended:
        next(line for line in ended.stderr if "Running command" in line)
        while not (run := runs()[0]).data.tags.get("process"):
            time.sleep(0.05)
        child = int(run.data.tags["process"].partition("@")[0])
        if how == "SIGTERM to mlflow run":
            ended.send_signal(signal.SIGTERM)
        elif how == "Ctrl-C":
            os.killpg(ended.pid, signal.SIGINT)
        else:
            os.killpg(ended.pid, signal.SIGKILL)
        ended.stderr.read()  # until the child is gone as well
    deadline = time.monotonic() + 20
    while birth_of(child):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.1)
    if how == "SIGKILL to all":  # the next command closes it
        assert close_dead_runs() == [run.info.run_id]
    until(run.info.run_id, "KILLED")


@pytest.mark.skipif("CXR_TEST_UV" not in os.environ, reason="set CXR_TEST_UV=1: installs 6 GB")
def test_uv_builds_the_environment_of_conda_yaml(repo, tmp_path, tracking):
    args = ["--env-manager", "uv", "-P", "data_dir=demo", "-P", "model=cnn", "-P", "epochs=1"]
    done = mlflow_run(repo, tmp_path, *args, "-P", "image_size=48")
    assert done.returncode == 0, done.stderr[-3000:]
    assert statuses() == ["FINISHED"]
