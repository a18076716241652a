"""A logged model carries all it needs, passes or fails the gate, and answers over HTTP."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from cxr_mlflow.serving import package
from cxr_mlflow.serving.gate import check_model_loads
from cxr_mlflow.serving.predictor import open_predictor
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, Prior, ScorerConfig
from tools.mlflow_server import free_port, running

pytestmark = pytest.mark.slow
GREYS = (20, 100, 120, 140, 230)


def png(grey: int, size: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), grey).save(buffer, "PNG")
    return buffer.getvalue()


FILMS, WHITE = [png(grey) for grey in GREYS], [png(255)] * len(GREYS)
EXPECTED = np.array([[1 / (1 + math.exp(16 * g / 255 - 8))] for g in GREYS])
EXPECTED = np.hstack([EXPECTED, 1 - EXPECTED])


@pytest.fixture
def run_id(tracking: str, tmp_path: Path) -> str:
    """Open run of an experiment that is not the active one."""
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))
    return str(client.create_run(experiment).info.run_id)


@pytest.fixture
def logged(run_id: str, brightness_model) -> str:
    return package.log_model(brightness_model("lungs"), run_id=run_id)


def test_logging_and_predicting_in_a_process_that_has_the_project(
    run_id, brightness_model, tmp_path
):
    client = mlflow.MlflowClient()
    path = list(sys.path)
    with mlflow.start_run():  # of another experiment
        uri = package.log_model(brightness_model(), run_id=run_id, tags={"seed": "3"})
    assert sys.path == path
    assert client.get_run(run_id).info.status == "RUNNING"
    logged = client.get_logged_model(uri.removeprefix("models:/"))
    assert logged.source_run_id == run_id
    assert logged.experiment_id == client.get_run(run_id).info.experiment_id
    assert logged.tags["seed"] == "3"
    assert str(logged.status) == "READY"

    model = mlflow.pyfunc.load_model(uri)
    table = model.predict(pd.DataFrame({"image": FILMS}))
    assert list(table.columns) == ["label", "confidence", "p_dark_film", "p_normal"]
    np.testing.assert_allclose(table[["p_dark_film", "p_normal"]], EXPECTED, atol=1e-5)
    arrays = np.stack([np.full((40, 40), grey, np.uint8) for grey in GREYS])
    pd.testing.assert_frame_equal(model.predict(arrays), table)
    assert model.predict(model.input_example)["label"].tolist() == ["Dark Film"]
    outputs = model.metadata.get_output_schema().input_names()
    assert outputs == list(table.columns)

    scorer = sys.modules[type(model.unwrap_python_model().scorer).__module__]
    assert scorer.__name__.startswith("cxr_serving_")  # its own code, not this checkout's
    assert "/artifacts/" in scorer.__file__


def test_what_a_logged_model_holds(logged, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path / "copy")))
    wanted = (folder / "requirements.txt").read_text().split()
    names = {line.partition("==")[0] for line in wanted}
    assert names == {"mlflow", "numpy", "onnxruntime", "pandas", "pillow"}
    assert all(re.fullmatch(r"[a-z]+==[\w.]+", line) for line in wanted)  # no +cu132
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pyc", ".pth")]
    code = list(folder.rglob("*.py"))
    assert len(code) == len(package.SHIPPED) + 1
    assert not [path for path in code if "cxr_mlflow" in path.read_text()]
    assert len(list((folder / "code").glob("cxr_serving_*"))) == 1


def test_equal_code_has_one_name_and_other_code_another(tmp_path, monkeypatch):
    first, _ = package.ship_code(tmp_path / "a")
    again, _ = package.ship_code(tmp_path / "b")
    monkeypatch.setattr(package, "SHIPPED", (*package.SHIPPED, "config.py"))
    other, _ = package.ship_code(tmp_path / "c")
    assert first.name == again.name != other.name


def test_a_model_of_masked_lungs_says_so(logged):
    model = mlflow.pyfunc.load_model(logged)
    with pytest.raises(MlflowException, match=r"trained on lungs cut out.*send a `mask`"):
        model.predict(pd.DataFrame({"image": FILMS}))
    pairs = np.full((2, 2, 40, 40), 255, np.uint8)
    assert model.predict(pairs)["label"].tolist() == ["Normal", "Normal"]


def test_predictor_is_one_face_of_folder_and_uri(logged, brightness_model, tmp_path):
    films = pd.DataFrame({"image": FILMS, "mask": WHITE})
    folder, uri = open_predictor(str(brightness_model("lungs"))), open_predictor(logged)
    assert (folder.classes, folder.mask_mode, folder.image_size, dict(folder.trained_on)) == (
        (uri.classes, uri.mask_mode, uri.image_size, dict(uri.trained_on))
    )
    pd.testing.assert_frame_equal(folder.predict(films), uri.predict(films))


def test_gate_passes_a_good_model(logged, tmp_path, monkeypatch):
    mlflow.set_tracking_uri("sqlite:///mlflow.db")  # relative, as in a user's folder
    mlflow.set_registry_uri("sqlite:///mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    report = check_model_loads(logged, FILMS, WHITE, EXPECTED)
    assert report.ok, report.reasons
    assert not report.reasons
    assert not report.torch_imported
    assert report.max_difference < 1e-5
    assert report.seconds > report.load_seconds > 0
    assert 50 < report.peak_memory_mb < 1500
    assert report.tags()["gate"] == "passed"


def test_a_model_that_promises_something_is_logged_with_it_and_passes_the_gate(
    run_id, brightness_model
):
    path = brightness_model() / "scorer.json"
    config = replace(
        ScorerConfig.read(path),
        temperature=2.0,
        abstaining=Abstaining(threshold=0.9, risk=0.05, delta=0.05),
        prediction_sets=PredictionSets(thresholds=(0.4, 0.0), coverage=0.9, per_class=True),
        prior=Prior(shares=(0.8, 0.2), shift=(0.5, -0.9)),
    )
    path.write_text(config.dumps())
    uri = package.log_model(path.parent, run_id=run_id)
    model = mlflow.pyfunc.load_model(uri)
    table = model.predict(pd.DataFrame({"image": FILMS}))
    assert table["abstain"].tolist() == [False, True, True, True, False]
    assert table["prediction_set"].tolist() == ["Dark Film; Normal"] * 4 + ["Normal"]
    schema = model.metadata.get_output_schema()
    assert schema.input_names() == list(table.columns)
    told = model.metadata.metadata
    assert told["calibration"] == {"temperature": 2.0}
    assert told["abstaining"] == {"threshold": 0.9, "risk": 0.05, "delta": 0.05}
    assert told["prediction_sets"]["coverage"] == 0.9
    assert told["prior"] == {"shares": [0.8, 0.2], "shift": [0.5, -0.9]}
    assert told["promises"].startswith("approximate: ")

    calibrated = 1 / (1 + np.exp((16 * np.array(GREYS) / 255 - 8) / 2))
    expected = np.column_stack([calibrated, 1 - calibrated])
    assert check_model_loads(uri, FILMS, None, expected).ok
    assert not check_model_loads(uri, FILMS, None, EXPECTED).ok  # the raw ones are not it


def test_gate_stops_another_network(logged):
    report = check_model_loads(logged, FILMS, WHITE, EXPECTED + 1e-3)
    assert not report.ok
    assert re.search(r"probabilities are off by 1\.0e-03", report.reasons[0])
    assert report.tags()["gate"] == "failed"


def test_gate_stops_what_fails_in_the_clean_process(logged):
    report = check_model_loads(logged, FILMS, None, EXPECTED)
    assert not report.ok
    assert "send a `mask`" in report.reasons[0]
    assert report.tags()["gate"] == "failed"


def test_a_model_that_the_store_does_not_hand_out_was_not_tried(logged):
    report = check_model_loads("models:/nobody/1", FILMS, WHITE, EXPECTED, tries=1)
    assert report.tags()["gate"] == "not tried"
    assert re.match("not tried: .*nobody", report.reasons[0])


def test_gate_does_not_wait_for_ever(logged):
    report = check_model_loads(logged, FILMS, WHITE, EXPECTED, timeout=0.2, tries=1)
    assert report.reasons == ("not tried: not done after 0.2 seconds",)


def children() -> list[psutil.Process]:
    """Clean processes of this one's gates."""
    return [p for p in psutil.Process().children() if "gate_child" in " ".join(p.cmdline())]


def test_a_clean_process_that_was_killed_says_nothing_of_the_model(logged, monkeypatch):
    """It is in a session of its own, where a terminal's Ctrl-C does not reach it."""
    monkeypatch.setattr("cxr_mlflow.serving.gate.PAUSE_SECONDS", 0.0)
    sessions = []

    def kill(times: int) -> threading.Thread:
        def work() -> None:
            killed: list[int] = []
            deadline = time.monotonic() + 60
            while len(killed) < times and time.monotonic() < deadline:
                with suppress(psutil.Error, ProcessLookupError):
                    for child in children():
                        if child.pid not in killed:
                            sessions.append(os.getsid(child.pid))
                            child.kill()
                            killed.append(child.pid)
                time.sleep(0.02)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    killer = kill(1)
    report = check_model_loads(logged, FILMS, WHITE, EXPECTED)
    killer.join()
    assert report.ok, report.reasons
    killer = kill(2)
    report = check_model_loads(logged, FILMS, WHITE, EXPECTED, tries=2)
    killer.join()
    assert not report.ok
    assert report.reasons == ("not tried: the clean process was ended by SIGKILL",)
    assert os.getsid(0) not in sessions


GATE = """
import sys
import numpy as np
from cxr_mlflow.serving.gate import check_model_loads

check_model_loads("models:/m-1", [b"film"], None, np.array([[1.0]]))
"""


def test_a_clean_process_does_not_outlive_a_killed_trainer(tmp_path):
    """It would hang on a server that never answers, and hold a copy of the model."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        uri = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        variables = {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_REGISTRY_URI": uri,
            "TMPDIR": str(tmp_path),
        }
        with subprocess.Popen([sys.executable, "-c", GATE], env=os.environ | variables) as trainer:
            deaf.settimeout(60)
            asked = deaf.accept()[0]  # it hangs in this request now
            children = psutil.Process(trainer.pid).children()  # there were others, for an instant
            (clean,) = (child for child in children if "gate_child.py" in " ".join(child.cmdline()))
            trainer.kill()
        clean.wait(10)
        asked.close()
    assert not list(tmp_path.rglob("request.json")), "its folder is removed"


def test_gate_stops_a_model_that_needs_torch_or_the_project(run_id, brightness_model, monkeypatch):
    ship = package.ship_code

    def ship_with_imports(folder: Path) -> tuple[Path, Path]:
        code, script = ship(folder)
        script.write_text(script.read_text() + "\nimport cv2\n")
        return code, script

    monkeypatch.setattr(package, "ship_code", ship_with_imports)
    uri = package.log_model(brightness_model(), run_id=run_id)
    report = check_model_loads(uri, FILMS, None, EXPECTED)
    assert report.reasons == ("loading it imports cv2",)


class Pickled(mlflow.pyfunc.PythonModel):
    """A model the usual way: its object is pickled."""

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        return pd.DataFrame({"p_dark_film": [0.5], "p_normal": [0.5]})


def test_gate_stops_a_pickle(run_id):
    with mlflow.start_run(run_id=run_id):
        uri = mlflow.pyfunc.log_model(
            name="pickled", python_model=Pickled(), pip_requirements=["mlflow"]
        ).model_uri
    report = check_model_loads(uri, FILMS, None, EXPECTED)
    assert not report.ok
    assert "pickle" in report.reasons[0].lower()


def post(port: int, content: object) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def server(logged: str, tmp_path: Path):
    """Port of a real `mlflow models serve`, in a folder of its own."""
    port, elsewhere = free_port(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", logged]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, f"http://127.0.0.1:{port}/ping", elsewhere / "server.log"):
        yield port


def test_http_requests(server):
    rows = [
        [base64.b64encode(cell).decode() for cell in row] for row in zip(FILMS, WHITE, strict=True)
    ]
    status, answer = post(server, {"dataframe_split": {"columns": ["image", "mask"], "data": rows}})
    assert status == 200
    found = pd.DataFrame(answer["predictions"])
    assert found["label"].tolist() == ["Dark Film"] * 3 + ["Normal"] * 2
    np.testing.assert_allclose(found[["p_dark_film", "p_normal"]], EXPECTED, atol=1e-5)

    records = [{"image": image, "mask": mask} for image, mask in rows]
    assert post(server, {"dataframe_records": records}) == (200, answer)

    pairs = np.full((1, 2, 8, 8), 255).tolist()
    status, answer = post(server, {"inputs": pairs})
    assert (status, answer["predictions"][0]["label"]) == (200, "Normal")

    for record in ({"image": rows[0][0]}, {"image": rows[0][0], "mask": None}):
        status, answer = post(server, {"dataframe_records": [record]})
        assert status == 400
        assert "send a `mask` for each image" in answer["message"]
        assert "Traceback" not in json.dumps(answer)
