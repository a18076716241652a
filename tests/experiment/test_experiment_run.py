"""An experiment as it is lived: a cell fails, the runner is killed, it goes on, it is done."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import filelock
import mlflow
import pandas as pd
import pytest

from cxr_mlflow.config import RunConfig, all_options
from cxr_mlflow.labels import recipe
from cxr_mlflow.typed_options import typed_options
from tests.faults.world import HEARS_CTRL_C
from tools.mlflow_server import free_port, serve_mlflow

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

    def __init__(
        self, folder: Path, demo_dir: Path, cache_dir: Path, uri: str | None = None
    ) -> None:
        self.folder, self.demo_dir = folder, demo_dir
        self.file = folder / "table.yaml"
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        told = {"MLFLOW_TRACKING_URI": self.uri, "CXR_CACHE_DIR": str(cache_dir)}
        self.environment = {**os.environ, **told, "OMP_NUM_THREADS": "1"}

    def write(self, *rows: str, seeds: str = "[0]", base: str = "") -> None:
        told = BASE.replace("}", f"{base}}}")
        self.file.write_text(f"name: lived\n{told}rows:\n{''.join(rows)}seeds: {seeds}\n")

    def sql(self, statement: str, *values: object) -> None:
        """Do to the store what MLflow has no words for."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store, store:
            store.execute(statement, values)

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HEARS_CTRL_C, "experiment", "run", str(self.file)]
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

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def wait_for(self, process: subprocess.Popen[str], number: int) -> None:
        """Wait until so many trainings have begun."""
        deadline = time.monotonic() + DEADLINE
        while len(self.cells()) < number:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def read(self, path: str) -> Path:
        client = mlflow.MlflowClient(self.uri)
        return Path(client.download_artifacts(self.parent.info.run_id, path, str(self.folder)))


def options_of_params(params: dict[str, str]) -> dict[str, object]:
    names = {f.name for _, f in all_options()}
    return typed_options({k: v for k, v in params.items() if k in names}, "a run")


def picture_steps(lab: Lab, run_id: str) -> set[str]:
    found = [f.path for f in lab.client.list_artifacts(run_id, "images")]
    return {path.split("+step+")[1].split("+")[0] for path in found if "comparison_rows" in path}


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
    lab.wait_for(process, before + 1)
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
    assert "Where the rows err" in out or "cnn, none" in out.split("failed")[-1], "a table is shown"


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


def test_the_parent_run_says_with_what_it_was_run(lab, again, demo_dir):
    told = lab.parent.data.params
    assert (told["jobs"], told["seeds"], told["cells"]) == ("2", "0", "2"), "of the first session"
    assert told["data_dir"] == str(demo_dir)
    assert lab.parent.data.tags["asked/jobs"] == "1", "of the last one that trained"
    assert lab.parent.data.tags["state"] == "complete"
    contexts = {i.tags[0].value for i in lab.parent.inputs.dataset_inputs}
    assert contexts == {"training", "validation", "testing"}
    cells = json.loads(lab.read("plan.json").read_text())
    assert [cell["options"]["epochs"] for cell in cells] == ["1", "1"]


def test_a_store_made_with_fewer_options_is_done_all_the_same(lab, again):
    """As if `start_size` had been added to the code since: nothing is trained again."""
    keys = []
    for run in (r for r in lab.runs("training") if r.info.status == "FINISHED"):
        params = run.data.params
        config = RunConfig.from_options(options_of_params(params))
        told = {k: v for k, v in recipe(config.to_params()).items() if k != "start_size"}
        weights = f"{params['first_weights']} "
        evidence = {"data": params["data_digest"], "split": params["split_digest"]}
        text = json.dumps({"recipe": told, **evidence, "weights": weights}, sort_keys=True)
        keys.append(hashlib.sha256(text.encode()).hexdigest())
        lab.client.set_tag(run.info.run_id, "cell", keys[-1])
        lab.sql("DELETE FROM params WHERE key = 'start_size' AND run_uuid = ?", run.info.run_id)
    marks = hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()
    lab.client.set_tag(lab.parent.info.run_id, "complete", marks)
    before = len(lab.cells())
    status, out = lab.run()
    assert status == 0, out
    assert "nothing to do: all 2 cells are finished" in out
    assert len(lab.cells()) == before


def test_a_cell_of_another_machine_is_waited_for_until_it_is_silent(lab, again):
    (run,) = (r for r in lab.runs("training") if r.info.run_name == "cnn-oversample-seed0")
    one, parent = run.info.run_id, lab.parent.info.run_id
    lab.client.set_tag(one, "host", "spot-vm")
    lab.client.set_tag(one, "heartbeat", f"{time.time():.0f}")
    lab.client.update_run(one, status="RUNNING")
    before = len(lab.cells())
    steps = picture_steps(lab, parent)
    status, out = lab.run()
    assert status == 3, out
    assert "is being made on spot-vm, says the server" in out
    assert "taken for dead at" in out
    assert "1 of 2 cells are left (another machine has the others)" in out
    assert "cxr-classifier-demo version" not in out, "no best of a table that is not whole"
    told = lab.parent
    assert not {"best", "registered", "complete"} & told.data.tags.keys()
    assert told.info.status == "FINISHED", "nothing went wrong"
    assert "failure" not in told.data.tags
    assert told.data.tags["state"].startswith("1 of 2 cells done")
    means = {k: v for k, v in told.data.metrics.items() if k.startswith("mean/f1_macro/")}
    assert {name: math.isnan(value) for name, value in means.items()} == {
        "mean/f1_macro/cnn_none": False,
        "mean/f1_macro/cnn_oversample": True,
    }
    assert len(picture_steps(lab, parent)) == len(steps) + 1, "the picture is not the old one"

    long_ago = time.time() - 1000
    lab.client.set_tag(one, "heartbeat", f"{long_ago:.0f}")
    lab.sql("UPDATE runs SET start_time = ? WHERE run_uuid = ?", int(1000 * long_ago), one)
    status, out = lab.run("--max-time", "1e-9", "--overrides", "epochs=2")
    assert status == 3, out
    assert "none of its 1 finished cells is asked for now" in out
    assert "2 rows, 2 cells; 2 to train" in out
    gone = lab.client.get_run(one)
    assert gone.info.status == "KILLED"
    assert "no sign of life from spot-vm since" in gone.data.tags["failure"]
    assert len(lab.cells()) == before
    assert lab.parent.data.tags["asked/overrides"] == "epochs=2"
    assert lab.read("experiment.yaml").read_text().startswith("# over this file")
    assert {c["options"]["epochs"] for c in json.loads(lab.read("plan.json").read_text())} == {"2"}
    assert "verdict" not in lab.parent.data.tags, "no cell is done"
    lab.client.delete_tag(one, "failure")
    lab.client.update_run(one, status="FINISHED")


def test_after_each_seed_there_is_a_table_and_ctrl_c_says_how_far_it_is(lab, again):
    lab.write(GOOD, seeds="[0, 1, 2]")
    before = len(lab.cells())
    process = lab.start()
    lab.wait_for(process, before + 2)
    assert lab.parent.data.metrics["cells/done"] == 2
    assert "macro F1" in lab.read("comparison/report.md").read_text()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, out
    assert "stopped; 2 of 3 cells done, the same command goes on" in out
    assert "Traceback" not in out
    assert out.count("Macro F1") or "cnn, none" in out
    assert lab.parent.info.status == "KILLED"
    assert lab.parent.data.tags["state"].startswith("stopped; 2 of 3 cells done")


def test_a_new_seed_adds_its_cells_alone_and_time_can_be_up(lab, again):
    lab.write(GOOD, OVERSAMPLE, seeds="[0, 1]")
    before = len(lab.cells())
    status, out = lab.run("--max-time", "1e-9")
    assert status == 3
    assert "4 cells, 3 finished; 1 to train" in out
    assert "1 of 4 cells are left (the time was up); the same command goes on" in out
    assert lab.parent.info.status == "FINISHED"
    assert lab.parent.data.tags["state"].startswith("3 of 4 cells done; the time was up")
    assert len(lab.cells()) == before
    lab.write(GOOD, OVERSAMPLE)


def test_through_mlflow_run_the_new_run_points_to_the_old_one(lab, again, repo):
    lab.write(GOOD, OVERSAMPLE)
    before = len(lab.cells())
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
    assert len(lab.cells()) == before, "nothing was trained"


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """A folder of modules that make cells wait seconds, not a minute, for a dead server."""
    folder = tmp_path_factory.mktemp("impatient")
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'cxr_mlflow.experiment.child' in sys.orig_argv:\n"
        "    from cxr_mlflow.tracking import journaled\n"
        "    journaled.LAST_SECONDS = journaled.FIRST_CONTACT_SECONDS = 1.0\n"
    )
    return folder


def test_a_server_that_dies_stops_nothing_and_nothing_is_trained_twice(
    tmp_path, demo_dir, cache_dir, empty_store, impatient
):
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    store, port = f"sqlite:///{tmp_path / 'mlflow.db'}", free_port()
    lab = Lab(tmp_path, demo_dir, cache_dir, uri=f"http://127.0.0.1:{port}")
    lab.environment["PYTHONPATH"] = f"{impatient}{os.pathsep}{Path(__file__).parents[2]}"
    lab.environment["CXR_STATE_DIR"] = str(tmp_path / "state")
    lab.write(GOOD, seeds="[0, 1]", base=", register: false")
    with serve_mlflow(store, tmp_path, port=port):
        process = lab.start()
        lab.wait_for(process, 1)
    out, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 3, out
    assert "Traceback" not in out
    assert out.count("Training goes on; what it misses is told later") == 1
    assert out.count("not sent yet") == 2, out
    assert "2 of 2 cells done. MLflow does not answer" in out
    assert "no connection). Nothing is lost: when it answers, `cxr sync`" in out
    with serve_mlflow(store, tmp_path, port=port):
        status, out = lab.run()
        assert status == 0, out
        assert "2 finished; 0 to train" in out
        assert [status for _, status in lab.cells()] == ["FINISHED"] * 2
        assert lab.parent.info.status == "FINISHED"
        assert lab.parent.data.metrics["cells/done"] == 2
        logs = {f.path for f in lab.client.list_artifacts(lab.parent.info.run_id, "cells")}
        assert logs == {"cells/cnn-none-seed0.log", "cells/cnn-none-seed1.log"}
