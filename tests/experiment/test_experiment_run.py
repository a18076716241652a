"""An experiment as it is lived: a cell fails, the runner is killed, it goes on, it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import mlflow
import pandas as pd
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BASE = "base: {model: cnn, image_size: 32, epochs: 1, batch_size: 32, bootstrap_samples: 200}\n"
GOOD = "  - {strategy: none}\n"
BAD = "  - {strategy: weighted, lr: 1.0e+30, clip_norm: 0}\n"
OVERSAMPLE = "  - {strategy: oversample}\n"
DEADLINE = 300


class Lab:
    """A folder with a store and an experiment file, and the command that is typed in it."""

    def __init__(self, folder: Path, demo_dir: Path, cache_dir: Path) -> None:
        self.folder, self.demo_dir = folder, demo_dir
        self.file = folder / "table.yaml"
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        told = {"MLFLOW_TRACKING_URI": self.uri, "CXR_CACHE_DIR": str(cache_dir)}
        self.environment = {**os.environ, **told, "OMP_NUM_THREADS": "1"}

    def write(self, *rows: str, seeds: str = "[0]") -> None:
        self.file.write_text(f"name: lived\n{BASE}rows:\n{''.join(rows)}seeds: {seeds}\n")

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cxr_mlflow", "experiment", "run", str(self.file)]
        return subprocess.Popen(
            [*command, "--data-dir", str(self.demo_dir), "--experiment", "lab", *options],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *options: str) -> tuple[int, str]:
        process = self.start(*options)
        out, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, out

    def runs(self, kind: str) -> list[mlflow.entities.Run]:
        client = mlflow.MlflowClient(self.uri)
        home = client.get_experiment_by_name("lab")
        wanted = f"tags.kind = '{kind}'"
        order = ["attributes.start_time ASC"]
        return (
            list(client.search_runs([home.experiment_id], wanted, order_by=order)) if home else []
        )

    @property
    def parent(self) -> mlflow.entities.Run:
        (run,) = self.runs("experiment")
        return run

    def cells(self) -> list[tuple[str, str]]:
        return [(run.info.run_name, run.info.status) for run in self.runs("training")]

    def read(self, path: str) -> Path:
        client = mlflow.MlflowClient(self.uri)
        return Path(client.download_artifacts(self.parent.info.run_id, path, str(self.folder)))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, demo_dir, cache_dir, empty_store):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    return Lab(folder, demo_dir, cache_dir)


@pytest.fixture(scope="module")
def one_failed(lab):
    """Two cells at a time, of which one cannot be trained."""
    lab.write(GOOD, BAD)
    return lab.run("--jobs", "2")


@pytest.fixture(scope="module")
def killed(lab, one_failed):
    """Another row in the bad one's place; the runner is killed while its cell is trained."""
    lab.write(GOOD, OVERSAMPLE)
    before = len(lab.cells())
    process = lab.start()
    deadline = time.monotonic() + DEADLINE
    while len(lab.cells()) == before:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while ("cnn-oversample-seed0", "RUNNING") in lab.cells():  # the cell sees that it is alone
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="module")
def finished(lab, killed):
    return lab.run()


@pytest.fixture(scope="module")
def again(lab, finished):
    before = [run.info.end_time for run in [*lab.runs("experiment"), *lab.runs("training")]]
    result = lab.run()
    after = [run.info.end_time for run in [*lab.runs("experiment"), *lab.runs("training")]]
    return (*result, before == after)


def test_one_failed_cell_does_not_stop_the_others(lab, one_failed):
    status, out = one_failed
    assert status == 1
    assert "cnn, weighted, seed 0: FAILED" in out
    assert "cnn, none, seed 0: macro F1" in out
    assert "Downloading" not in out  # MLflow's own bars


def test_two_runners_of_one_experiment_are_refused(lab, killed, cache_dir):
    (folder,) = (cache_dir / "experiments").glob("lived-*")
    with filelock.FileLock(folder / "conductor.lock"):
        status, out = lab.run()
    assert status == 2
    assert "another process conducts this experiment here" in out


def test_killed_in_the_middle_it_goes_on_with_what_is_missing(lab, finished):
    status, out = finished
    assert status == 0, out
    assert "2 rows, 2 cells, 1 finished; 1 to train" in out
    told = lab.cells()
    assert [state for name, state in told if name == "cnn-oversample-seed0"] == ["FINISHED"]
    good = [name for name, state in told if state == "FINISHED"]
    assert len(good) == 2, "no cell is trained twice"
    (resumed,) = (r for r in lab.runs("training") if r.info.run_name == "cnn-oversample-seed0")
    assert resumed.data.tags["attempts"] == "2", "the killed cell went on in its own run"
    assert "RUNNING" not in {state for _, state in told}
    assert lab.parent.info.status == "FINISHED"
    assert "failure" not in lab.parent.data.tags


def test_the_second_time_it_does_nothing(lab, again):
    status, out, untouched = again
    assert status == 0, out
    assert "nothing to do: all 2 cells are finished" in out
    assert untouched
    assert "leads with macro F1" in out or "not distinguishable" in out


def test_the_table_is_on_the_parent_run(lab, finished):
    table = pd.read_csv(lab.read("comparison/table.csv"))
    runs = {run.info.run_name: run for run in lab.runs("training") if run.info.status == "FINISHED"}
    assert len(runs) == len(table) == 2
    scores = sorted(run.data.metrics["test/f1_macro"] for run in runs.values())
    assert sorted(table["f1_macro_mean"]) == pytest.approx(scores)
    html = lab.read("comparison/report.html").read_text()
    assert "cnn, oversample" in html
    assert "synthetic data" in html
    assert "synthetic data" in lab.parent.data.tags["mlflow.note.content"]
    for name in ("rows", "classes", "pairs"):
        assert lab.read(f"comparison/{name}.png").stat().st_size > 1000
    plan = json.loads(lab.read("plan.json").read_text())
    assert {cell["name"] for cell in plan} == {"cnn-none-seed0", "cnn-oversample-seed0"}


def test_children_hang_under_the_parent_and_share_the_test_images(lab, finished):
    children = lab.runs("training")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {lab.parent.info.run_id}
    done = [run for run in children if run.info.status == "FINISHED"]
    assert len({run.data.tags["test_digest"] for run in done}) == 1
    assert done[0].data.tags["test_digest"] == lab.parent.data.tags["test_digest"]


def test_the_best_on_validation_is_registered(lab, finished):
    done = [run for run in lab.runs("training") if run.info.status == "FINISHED"]
    best = max(done, key=lambda run: run.data.metrics["best_val_f1_macro"])
    client = mlflow.MlflowClient(lab.uri)
    (version,) = client.search_model_versions("name = 'cxr-classifier-demo'")
    assert version.run_id == best.info.run_id
    assert version.tags["gate"] == "passed"
    champion = client.get_model_version_by_alias("cxr-classifier-demo", "champion")
    assert champion.version == version.version
    assert "cxr-classifier-demo version 1" in lab.parent.data.tags["registered"]
    assert version.tags["model_card"] == f"runs:/{best.info.run_id}/model_card.html"
    assert "The model card is among the files of this model" in version.description
    card = client.download_artifacts(best.info.run_id, "model_card.md", str(lab.folder))
    text = Path(card).read_text()
    assert "| registered as | cxr-classifier-demo version 1 (champion; " in text
    note = best.data.tags["mlflow.note.content"]
    assert "| registered as | cxr-classifier-demo version 1 (champion; " in note
    other = next(run for run in done if run.info.run_id != best.info.run_id)
    assert "| registered as | not registered |" in other.data.tags["mlflow.note.content"]


def test_a_new_seed_adds_its_cells_alone_and_time_can_be_up(lab, again):
    lab.write(GOOD, OVERSAMPLE, seeds="[0, 1]")
    status, out = lab.run("--max-time", "1e-9")
    assert status == 3
    assert "4 cells, 2 finished; 2 to train" in out
    assert "2 of 4 cells are left; the same command goes on" in out
    assert lab.parent.info.status == "KILLED"
    assert len(lab.cells()) == 3
    lab.write(GOOD, OVERSAMPLE)


def test_through_mlflow_run_the_new_run_points_to_the_old_one(lab, again, repo):
    lab.write(GOOD, OVERSAMPLE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mlflow", "run", str(repo), "-e", "experiment"),
            *("--env-manager", "local", "--experiment-name", "lab", "-P", f"file={lab.file}"),
            *("-P", f"data_dir={lab.demo_dir}", "-P", "experiment=lab"),
        ],
        cwd=lab.folder,
        env=lab.environment
        | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    client = mlflow.MlflowClient(lab.uri)
    home = client.get_experiment_by_name("lab").experiment_id
    (opened,) = client.search_runs([home], f"tags.continued_in = '{lab.parent.info.run_id}'")
    assert opened.info.status == "FINISHED"
    assert lab.parent.info.run_id in opened.data.tags["mlflow.note.content"]
    assert len(lab.cells()) == 3, "nothing was trained"
