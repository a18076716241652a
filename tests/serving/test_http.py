"""`cxr serve` answers as MLflow does; what is wrong, too much or too slow is refused in a line."""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import re
import signal
import socket
import struct
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from cxr_mlflow.cli import main
from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving import http_app, http_json, package
from cxr_mlflow.serving.frames import predict_table
from cxr_mlflow.serving.http_server import Server, check_address, read_token
from cxr_mlflow.serving.scorer import Scorer
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, ScorerConfig
from tools.cxr_server import ask, film, served_process, served_thread, split
from tools.mlflow_server import free_port, running

GREYS = (20, 100, 124, 130, 230)
FILMS = [film(grey) for grey in GREYS]
TOKEN = "t0ken-of-this-test"


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def promising(folder: Path) -> Path:
    """Make a model folder abstain and return sets."""
    path = folder / "scorer.json"
    config = replace(
        ScorerConfig.read(path),
        temperature=2.0,
        abstaining=Abstaining(threshold=0.9, risk=0.05, delta=0.05),
        prediction_sets=PredictionSets(thresholds=(0.3, 0.6), coverage=0.9, per_class=True),
        trained_on={"data": "greys", "warnings": "Synthetic data. Not controlled."},
    )
    path.write_text(config.dumps())
    return folder


@pytest.fixture
def model(brightness_model) -> Path:
    return promising(brightness_model())


@pytest.fixture
def port(model):
    with served_thread(model) as port:
        yield port


@pytest.fixture
def masked(brightness_model):
    with served_thread(promising(brightness_model("lungs"))) as port:
        yield port


def refused(port: int, content: object, status: int = 400, **options: object) -> dict:
    """Ask for what must be refused; return the answer after looking at its form."""
    found, told, headers = ask(port, content, **options)  # type: ignore[arg-type]
    assert found == status, told
    assert set(told) <= {"error", "row", "field", "request_id"}
    assert "\n" not in told["error"]
    assert told["request_id"] == headers["X-Request-Id"]
    assert "Traceback" not in told["error"]
    assert "/site-packages" not in told["error"]
    return told


# ---- what is answered


def test_answers_are_those_of_the_scorer_in_every_format(port, model):
    expected = predict_table(Scorer.load(model), pd.DataFrame({"image": FILMS}))
    expected = json.loads(json.dumps({"predictions": expected.to_dict(orient="records")}))
    assert {p["label"] for p in expected["predictions"]} == {"Dark Film", "Normal"}
    assert expected["predictions"][1]["abstain"] is True
    texts = [b64(content) for content in FILMS]
    wrapped = ["\n".join(re.findall(".{1,76}", text)) for text in texts]  # as `base64` wraps it
    for content in (
        split({"image": FILMS}),
        split({"patient": ["x"] * 5, "image": FILMS, "mask": [None] * 5}),
        {
            "dataframe_split": {
                "index": [9, 8, 7, 6, 5],
                **split({"image": FILMS})["dataframe_split"],
            }
        },
        {"dataframe_records": [{"image": text} for text in wrapped]},
        {
            "dataframe_records": [
                {"image": t, **({"mask": t} if i else {})} for i, t in enumerate(texts)
            ]
        },
        {"inputs": {"image": texts}},
        {"instances": [{"image": text} for text in texts], "params": None},
        {"inputs": [np.full((40, 40), grey).tolist() for grey in GREYS]},
        {"instances": [np.full((40, 40), grey).tolist() for grey in GREYS]},
    ):
        status, told, headers = ask(port, content)
        assert (status, told) == (200, expected), content
        assert headers["Content-Type"] == "application/json"
    assert ask(port, {"inputs": np.full((40, 40), 20).tolist()})[1] == {
        "predictions": expected["predictions"][:1]
    }
    assert (
        ask(port, {"inputs": {"image": texts[0]}})[1]["predictions"] == expected["predictions"][:1]
    )
    assert ask(port, split({"image": []}))[1] == {"predictions": []}


def test_masks_are_used_as_the_scorer_uses_them(masked, brightness_model):
    scorer = Scorer.load(brightness_model("lungs"))
    half = np.zeros((40, 40), np.uint8)
    half[:, :20] = 255
    buffer = io.BytesIO()
    Image.fromarray(half).save(buffer, "JPEG", quality=100)
    status, told, _ = ask(masked, split({"mask": [buffer.getvalue()] * 5, "image": FILMS}))
    assert status == 200
    scorer.config = replace(scorer.config, temperature=2.0)
    expected = scorer.score_bytes(FILMS, [buffer.getvalue()] * 5)
    np.testing.assert_allclose([p["p_normal"] for p in told["predictions"]], expected[:, 1])
    pairs = [[np.full((40, 40), grey).tolist(), half.tolist()] for grey in GREYS]
    np.testing.assert_allclose(
        [p["p_normal"] for p in ask(masked, {"inputs": pairs})[1]["predictions"]],
        expected[:, 1],
        atol=0.05,  # the JPEG mask is a little larger
    )


def test_version_says_what_answers_and_what_must_be_known(port, model):
    told = ask(port, path="/version", method="GET")[1]
    config = ScorerConfig.read(model / "scorer.json")
    assert told["model"] == {"name": model.name, "version": "", "sha256": config.model_sha256}
    assert told["classes"] == ["Dark Film", "Normal"]
    assert (told["mask_mode"], told["image_size"]) == ("none", 32)
    assert told["warnings"] == ["Synthetic data. Not controlled."]
    assert told["abstaining"]["threshold"] == 0.9
    assert "Not for diagnosis" in told["not_for_diagnosis"]
    assert str(model.parent) not in json.dumps(told)


def test_alive_ready_and_counted(port):
    for path in ("/ping", "/health"):
        assert ask(port, path=path, method="GET")[:2] == (200, "\n")
    ask(port, split({"image": FILMS}))
    ask(port, {"inputs": 3})
    text = ask(port, path="/metrics", method="GET")[1]
    for line in (
        'cxr_predictions_total{label="Normal"} 2.0',
        'cxr_predictions_total{label="Dark Film"} 3.0',
        "cxr_abstentions_total 3.0",
        'cxr_requests_total{route="/invocations",status="200"} 1.0',
        'cxr_requests_total{route="/invocations",status="400"} 1.0',
        "cxr_request_images_sum 5.0",
        "cxr_buffered_bytes 0.0",
        "cxr_scoring_requests 0.0",
    ):
        assert line in text.splitlines()
    assert "process_resident_memory_bytes" in text


# ---- what is wrong


GOOD = b64(FILMS[0])


WRONG_BODIES = [
    (b"", "not JSON"),
    (b"{", "not JSON: .*line 1"),
    (b"\xff\xfe{}", "not UTF-8"),
    (b"[1]", "a list"),
    (b"null", "null"),
    (b'"dataframe_split"', "text"),
    (b"[" * 200_000, "nested"),
    (b'{"dataframe_records": [{"image": ' + b"9" * 5000 + b"}]}", "too long"),
    ({}, "send one of dataframe_split, .* got nothing"),
    ({"inputs": [[1]], "instances": [[1]]}, "send one of"),
    ({"inputs": [[1]], "surprise": 1}, "'surprise'"),
    ({"inputs": [[1]], "params": {"temperature": 2}}, "no params"),
    ({"dataframe_split": []}, "dataframe_split is a list"),
    ({"dataframe_split": {"columns": ["image"]}}, "data is null"),
    ({"dataframe_split": {"data": [[GOOD]]}}, "columns"),
    ({"dataframe_split": {"columns": ["image", "image"], "data": []}}, "different names"),
    ({"dataframe_split": {"columns": [1], "data": []}}, "names"),
    ({"dataframe_split": {"columns": ["image"], "data": [[GOOD], []]}}, "row 1: .* 1 cells"),
    ({"dataframe_split": {"columns": ["image"], "data": [{"image": GOOD}]}}, "row 0"),
    ({"dataframe_split": {"columns": ["film"], "data": [[GOOD]]}}, r"no column `image`.*film"),
    ({"dataframe_split": {"columns": [], "data": [], "x": 1}}, "'x'"),
    ({"dataframe_records": {"image": GOOD}}, "an object; send a list"),
    ({"dataframe_records": [{"image": GOOD}, 7]}, "row 1: it is a number"),
    ({"dataframe_records": []}, "no column `image`"),
    ({"inputs": {"image": [GOOD], "mask": []}}, "1 cells of `image` and 0 of `mask`"),
    ({"inputs": GOOD}, "inputs is text"),
    ({"inputs": [GOOD]}, "other things than numbers"),
    ({"inputs": [[1, 2], [3]]}, "not of equal lengths"),
    ({"inputs": []}, "shape"),
    ({"inputs": [[[[1]]]]}, r"shape \(1, 1, 1, 1\)"),
    ({"inputs": [[0.5, 1]]}, "uint8"),
    ({"inputs": [[0, 256]]}, "256"),
    ({"inputs": [[0, 10**40]]}, "other things"),
    ({"inputs": [[[], []]]}, "uint8"),
]


def test_wrong_bodies(port):
    for content, told in WRONG_BODIES:
        assert re.search(told, refused(port, content)["error"]), content


WRONG_CELLS = [
    (None, "empty"),
    (math.nan, "empty"),
    (5, "a number"),
    (True, "a boolean"),
    ([GOOD, GOOD], "a list"),
    ({"path": "x"}, "an object"),
    ("", "the file is empty"),
    ("no base64!", "not base64"),
    ("data:image/png;base64," + GOOD, "not base64"),
    (GOOD[:-3], "not base64"),
    ("\ud800", "not base64"),
    ("абвг", "not base64"),
    (b64(b"GIF89a"), "not an image"),
    (b64(FILMS[0][:-20]), "damaged or truncated"),
    (b64(film(kind="JPEG")[:-30]), "damaged or truncated"),
]


def test_wrong_cells_are_named_by_row_and_field(port, masked):
    for cell, told in WRONG_CELLS:
        answer = refused(port, {"dataframe_records": [{"image": GOOD}, {"image": cell}]})
        assert (answer["row"], answer["field"]) == (1, "image")
        assert re.search(f"row 1: `image`.*{told}", answer["error"])
        answer = refused(masked, {"dataframe_records": [{"image": GOOD, "mask": cell}]})
        assert (answer["row"], answer["field"]) == (0, "mask")
        told = "send a `mask`" if told == "empty" else told
        assert re.search(f"row 0: `mask`.*{told}", answer["error"])


def test_rows_keep_their_numbers_behind_the_first_few(port):
    images = [GOOD] * 20
    images[17] = b64(FILMS[0][:-20])
    assert refused(port, {"inputs": {"image": images}})["row"] == 17


def test_a_mask_that_is_missing_or_empty_is_asked_for(masked):
    for content in (split({"image": FILMS}), split({"image": FILMS, "mask": [None] * 5})):
        answer = refused(masked, content)
        assert (answer["row"], answer["field"]) == (0, "mask")
        assert "mask_mode=lungs" in answer["error"]
    answer = refused(masked, split({"image": FILMS, "mask": [film(255)] * 4 + [film(0)]}))
    assert (answer["row"], answer["field"]) == (4, "mask")


def test_long_messages_are_cut(port):
    answer = refused(port, {"dataframe_records": [{"x" * 100_000: 1}]})
    assert len(answer["error"]) <= 500


def test_only_plain_json(port):
    for headers, status in (
        ({"Content-Type": "text/csv"}, 415),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": 'Application/JSON; charset="UTF-8"'}, 200),
        ({"Content-Encoding": "identity"}, 200),
    ):
        assert ask(port, split({"image": FILMS}), headers=headers)[0] == status


def test_other_routes_and_methods(port):
    told = refused(port, None, 404, path="/../etc/passwd", method="GET")
    assert "/invocations" in told["error"]
    assert "etc" not in told["error"]
    assert refused(port, None, 405, method="GET")["error"] == "use POST"
    refused(port, None, 404, path="/docs", method="GET")
    refused(port, None, 404, path="/openapi.json", method="GET")


def test_an_unexpected_error_tells_its_number_only(port, monkeypatch, caplog):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret of /srv/models")

    monkeypatch.setattr(http_app, "answer", broken)
    told = refused(port, split({"image": FILMS}), 500)
    assert "secret" not in json.dumps(told)
    until(lambda: told["request_id"] in caplog.text)
    assert "secret of /srv/models" in caplog.text  # in the log
    monkeypatch.undo()
    assert ask(port, split({"image": FILMS}))[0] == 200


# ---- what is too much


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """Content of a black and white PNG, small as a file and large as an image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_bombs_are_refused_before_they_are_decoded(model, monkeypatch):
    small = bomb(2_000, 2_001)  # the mechanism is the same, and drawing it takes no second
    assert len(small) < 20_000
    with served_thread(model, max_megapixels=4.0) as port:
        assert ask(port, split({"image": [bomb(2_000, 2_000)]}))[0] == 200
        monkeypatch.setattr(Scorer, "score_bytes", lambda *_, **__: pytest.fail("it was decoded"))
        answer = refused(port, split({"image": [FILMS[0], small]}), 413)
        assert (answer["row"], answer["field"]) == (1, "image")
        assert "2000x2001" in answer["error"]


def test_a_real_bomb_of_20000_by_20000_pixels_does_not_grow_the_server(masked):
    from psutil import Process

    before = Process().memory_info().rss
    answer = refused(masked, split({"image": [FILMS[0]], "mask": [bomb()]}), 413)
    assert (answer["row"], answer["field"]) == (0, "mask")
    assert Process().memory_info().rss - before < 200e6  # decoded, it takes 400 MB


def test_too_many_images_or_values(model, monkeypatch):
    monkeypatch.setattr(http_json, "MAX_VALUES", 50)
    monkeypatch.setattr(http_json, "MAX_CONTAINERS", 40)
    with served_thread(model, max_images=4) as port:
        assert ask(port, split({"image": FILMS[:4]}))[0] == 200
        assert "at most 4" in refused(port, split({"image": FILMS}), 413)["error"]
        assert (
            "at most 4"
            in refused(port, {"inputs": np.zeros((5, 2, 2), int).tolist()}, 413)["error"]
        )
        assert "values" in refused(port, {"inputs": [[0] * 60]}, 413)["error"]
        assert "lists" in refused(port, b"[]" * 60, 413)["error"]


def chunks(content: bytes, size: int):
    for start in range(0, len(content), size):
        yield content[start : start + size]


def send_raw(port: int, raw: bytes, *, timeout: float = 30.0) -> bytes:
    """Send bytes as they are; return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(raw)
        return received(connection)


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def test_a_body_is_not_read_beyond_its_limit(model):
    large = b'{"a": "' + b"x" * 2**20 + b'"}'
    with served_thread(model, max_body_mb=1) as port:
        assert "1 MB" in refused(port, large, 413)["error"]
        # so large that it does not fit between the two: the rest comes in, and is thrown away
        assert "1 MB" in refused(port, large * 20, 413)["error"]
        # chunked, it does not tell its length
        status, told, _ = ask_chunked(port, chunks(large, 10_000))
        assert (status, "1 MB" in told["error"]) == (413, True)
        # a length that is a lie: refused before the body comes
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        told = send_raw(port, head + b"Content-Length: 99999999999\r\n\r\n{")
        assert told.startswith(b"HTTP/1.1 413")
        status, told, _ = ask_chunked(port, chunks(json.dumps(split({"image": FILMS})).encode(), 7))
        assert (status, len(told["predictions"])) == (200, 5)


def ask_chunked(port: int, parts):
    """Send a body of unknown length."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            "POST", "/invocations", parts, {"Content-Type": "application/json"}, encode_chunked=True
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers
    finally:
        connection.close()


def test_a_client_that_asks_first_is_told_before_it_sends(model):
    with served_thread(model, max_body_mb=1) as port:
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Expect: 100-continue\r\nContent-Length: 5000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            connection.sendall(head)
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")  # no 100 Continue before


def test_a_connection_goes_on_after_a_refusal(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps(split({"image": FILMS}))
    for kind, status in (("text/csv", 415), ("application/json", 200), ("text/csv", 415)):
        connection.request("POST", "/invocations", body, {"Content-Type": kind})
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
    connection.close()


class Gate:
    """Holds scoring until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.opened = threading.Semaphore(0), threading.Event()
        score = Scorer.score_bytes

        def held(scorer: Scorer, *arguments: object, **options: object):
            self.entered.release()
            assert self.opened.wait(30)
            return score(scorer, *arguments, **options)

        monkeypatch.setattr(Scorer, "score_bytes", held)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(port: int, name: str) -> float:
    text = ask(port, path="/metrics", method="GET")[1]
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_a_full_queue_says_when_to_come_back_and_the_loop_is_never_blocked(model, gate):
    content = split({"image": FILMS[:1]})
    with served_thread(model, max_waiting=2) as port, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask, port, content) for _ in range(3)]
        until(lambda: metric(port, "cxr_scoring_requests") == 3)
        status, told, headers = ask(port, content)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "2 requests are waiting" in told["error"]
        assert ask(port, path="/ping", method="GET")[0] == 200  # alive
        assert ask(port, path="/health", method="GET")[0] == 503  # but not ready
        gate.opened.set()
        assert [task.result()[0] for task in asked] == [200] * 3
        assert ask(port, path="/health", method="GET")[0] == 200
        assert ask(port, content)[0] == 200
        assert metric(port, "cxr_scoring_requests") == 0


def test_bodies_that_wait_are_bounded_in_bytes(model, gate):
    content = json.dumps(split({"image": [FILMS[0]], "note": ["x" * 700_000]})).encode()
    with (
        served_thread(model, max_body_mb=1, max_buffered_mb=1) as port,
        ThreadPoolExecutor(1) as clients,
    ):
        first = clients.submit(ask, port, content)
        assert gate.entered.acquire(timeout=20)
        status, _, headers = ask(port, content)
        assert (status, headers["Retry-After"]) == (503, "1")
        gate.opened.set()
        assert first.result()[0] == 200
        assert ask(port, content)[0] == 200
        assert metric(port, "cxr_buffered_bytes") == 0


# ---- what is too slow


def test_an_answer_that_takes_too_long_is_given_up(model, gate):
    with (
        served_thread(model, request_timeout=1.0, max_waiting=1) as port,
        ThreadPoolExecutor(1) as clients,
    ):
        first = clients.submit(refused, port, split({"image": FILMS * 3}), 504)
        assert gate.entered.acquire(timeout=20)  # its first images are under way
        assert "1 seconds" in first.result()["error"]
        refused(port, split({"image": FILMS}), 504)  # waited in vain, and left the queue
        gate.opened.set()
        until(lambda: metric(port, "cxr_scoring_requests") == 0)
        assert not gate.entered.acquire(blocking=False)  # no more images of the first, nor others
        until(lambda: ask(port, split({"image": FILMS[:1]}))[0] == 200)


def test_nobody_is_computed_for_who_has_left(model, gate):
    raw = json.dumps(split({"image": FILMS})).encode()
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    raw = head + b"Content-Length: %d\r\n\r\n" % len(raw) + raw
    with served_thread(model) as port:
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        for connection in connections:
            connection.sendall(raw)
        until(lambda: metric(port, "cxr_scoring_requests") == 3)
        for connection in connections:
            connection.close()
        until(lambda: metric(port, "cxr_scoring_requests") == 1)  # the one that has begun
        gate.opened.set()
        until(lambda: metric(port, "cxr_scoring_requests") == 0)


SLOW = {
    "nothing": b"",
    "half a header": b"POST /invocations HTTP/1.1\r\nHost:",
    "headers that do not end": b"GET /ping HTTP/1.1\r\nHost: x\r\n",
    "a body that was refused": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    "the second request": b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET /pi",
}


@pytest.mark.parametrize("kind", sorted(SLOW))
def test_headers_that_do_not_come_close_the_connection(model, kind):
    with served_thread(model, header_timeout=0.2) as port:
        answer = send_raw(port, SLOW[kind], timeout=20)
        assert answer.count(b"HTTP/1.1 200") == (kind == "the second request")


def test_headers_byte_by_byte_do_not_hold_a_connection(model):
    with (
        served_thread(model, header_timeout=0.5) as port,
        socket.create_connection(("127.0.0.1", port), 20) as connection,
    ):
        connection.sendall(b"GET /ping HTTP/1.1\r\n")

        def trickle() -> None:
            for number in range(200):
                connection.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.05)

        with pytest.raises(OSError, match=r"reset|pipe"):
            trickle()


def test_a_body_that_does_not_come_is_given_up(model):
    with served_thread(model, body_timeout=0.3) as port:
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        answer = send_raw(port, head + b"Content-Length: 100\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"0.3 seconds" in answer


def test_a_client_that_does_not_read_is_let_go(model):
    with (
        served_thread(model, header_timeout=0.5, send_buffer=4096) as port,
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def ask_for_ever() -> None:
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 50)

        with pytest.raises(OSError, match=r"reset|pipe"):
            ask_for_ever()
        until(lambda: ask(port, path="/ping", method="GET")[0] == 200)


CRUMBS = (
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 6000
)  # a thousand are free, and what comes with the headers


def test_a_body_in_crumbs_is_refused(port):
    told = send_raw(port, CRUMBS)
    assert told.startswith(b"HTTP/1.1 400")
    assert b"too small" in told
    assert ask(port, path="/ping", method="GET")[0] == 200


@pytest.mark.parametrize("bad", [CRUMBS, b"\0\r\n\r\n"])
def test_who_is_refused_while_sending_may_read_why(port, bad):
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(bad)
        connection.recv(1, socket.MSG_PEEK)  # the answer is here
        for _ in range(20):
            connection.sendall(b"1\r\n \r\n" * 1000)
            time.sleep(0.01)  # a reset has time to come
        told = received(connection)
    assert told.startswith(b"HTTP/1.1 400")
    assert told.endswith(b"}\n")


def test_who_is_refused_and_sends_on_is_cut_off(model):
    with (
        served_thread(model, header_timeout=0.3) as port,
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.sendall(CRUMBS)

        def send_for_ever() -> None:
            while True:
                connection.sendall(b"1\r\n \r\n")
                time.sleep(0.01)

        with pytest.raises(OSError, match=r"reset|pipe"):
            send_for_ever()
        assert ask(port, path="/ping", method="GET")[0] == 200


def test_connections_are_counted(model):
    with served_thread(model, max_connections=2) as port:
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        assert send_raw(port, b"").startswith(b"HTTP/1.1 503")
        for connection in idle:
            connection.close()
        until(lambda: send_raw(port, b"GET /ping HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"))


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\r\n\r\n\0\0\0\0\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\n" + b"X: " + b"y" * 20_000,
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]


def test_what_is_not_http_is_answered_in_json(port):
    for raw in NO_HTTP:
        head, _, body = send_raw(port, raw).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4")
        assert "error" in json.loads(body.splitlines()[0])
    assert ask(port, path="/ping", method="GET")[0] == 200


# ---- who may ask


def test_only_those_with_the_token(model):
    content = split({"image": FILMS})
    with served_thread(model, token=TOKEN) as port:
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer \xff\xfe"},
        ):
            for path in ("/invocations", "/metrics", "/version", "/else"):
                status, told, answered = ask(port, content, path=path, headers=headers)
                assert status == 401
                assert answered["WWW-Authenticate"] == "Bearer"
                assert TOKEN not in json.dumps(told)
        assert ask(port, path="/ping", method="GET")[0] == 200
        assert ask(port, path="/health", method="GET")[0] == 200
        mine = {"Authorization": f"bearer {TOKEN}"}
        assert ask(port, content, headers=mine)[0] == 200
        assert ask(port, path="/metrics", method="GET", headers=mine)[0] == 200


def test_metrics_may_be_open(model):
    with served_thread(model, token=TOKEN, open_metrics=True) as port:
        assert ask(port, path="/metrics", method="GET")[0] == 200
        assert ask(port, path="/version", method="GET")[0] == 401


def test_where_the_token_comes_from(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    plain, filed = ServeConfig(), ServeConfig(token_file=str(file))
    assert read_token(plain, {}) is None
    assert read_token(plain, {"CXR_SERVE_TOKEN": TOKEN}) == TOKEN
    assert read_token(filed, {}) == TOKEN
    for config, environment, told in (
        (filed, {"CXR_SERVE_TOKEN": TOKEN}, "both"),
        (plain, {"CXR_SERVE_TOKEN": ""}, "at least 16"),
        (plain, {"CXR_SERVE_TOKEN": "short"}, "at least 16"),
        (plain, {"CXR_SERVE_TOKEN": "two words of enough length"}, "no spaces"),
        (ServeConfig(token_file=str(tmp_path / "no")), {}, "--token-file=.*cannot be read"),
    ):
        with pytest.raises(InputError, match=told) as caught:
            read_token(config, environment)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_served_without_a_token(host):
    config = ServeConfig(host=host)
    with pytest.raises(InputError, match=r"--host=.*CXR_SERVE_TOKEN.*--insecure true"):
        check_address(config, None)
    check_address(config, TOKEN)
    check_address(replace(config, insecure=True), None)
    for loopback in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_address(ServeConfig(host=loopback), None)


def test_user_errors_are_one_line(model, monkeypatch):
    monkeypatch.delenv("CXR_SERVE_TOKEN", raising=False)
    monkeypatch.setattr(Server, "run", lambda *_, **__: pytest.fail("it would serve"))

    def told(*options: str) -> str:
        done = CliRunner().invoke(main, ["serve", *options])
        assert done.exit_code == 2
        assert not isinstance(done.exception, InputError)
        return done.output

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert re.search(f"--port={port}: .*in use", told(str(model), "--port", port))
    assert "no such folder" in told("nowhere", "--port", "0")
    assert "not a model that this project logged" in told(str(model.parent), "--port", "0")
    assert "no token" in told(str(model), "--host", "0.0.0.0", "--port", "0")
    assert "--max-buffered-mb" in told(str(model), "--max-buffered-mb", "8")
    assert "--max-images" in told(str(model), "--max-images", "0")
    assert "no such address" in told(
        str(model), "--host", "no.such.host.invalid", "--insecure", "1"
    )


# ---- the process


WATCHED = """
import sys, atexit
opened = []
def hook(event, args):
    if event in ("open", "socket.connect", "socket.getaddrinfo", "os.listdir", "os.scandir"):
        opened.append((event, str(args[0] if event == "open" else args)))
        if "marker" in opened[-1][1] or "/etc/passwd" in opened[-1][1]:
            print("OPENED", opened[-1], flush=True)
def leave():
    heavy = {"torch", "mlflow", "cv2", "sklearn", "scipy", "matplotlib"} & set(sys.modules)
    print("HEAVY", sorted(heavy), flush=True)
    print("CONNECTED", [o for o in opened if o[0] == "socket.connect"], flush=True)
atexit.register(leave)
sys.addaudithook(hook)
from cxr_mlflow.cli import main
main()
"""


@pytest.mark.slow
def test_a_server_opens_nothing_it_is_told_of_stays_light_and_stops_in_order(model, tmp_path):
    marker = tmp_path / "marker.png"
    marker.write_bytes(film(200))
    names = [str(marker), f"file://{marker}", marker.name, "/etc/passwd", "../../etc/passwd"]
    names += ["http://127.0.0.1:9/marker.png", "\\\\host\\marker", "~/marker", "C:/marker.png"]
    log = tmp_path / "server.log"
    with served_process(model, log, "--stop-timeout", "3", code=WATCHED) as server:
        ask(server.port, split({"image": FILMS}))  # all that is imported late is
        for name in names:
            for text in (name, b64(name.encode())):
                for content in (
                    {"dataframe_records": [{"image": text}]},
                    {"inputs": {"image": [text]}},
                    {"inputs": [[text]]},
                    {"inputs": text},
                    {"dataframe_split": text},
                    {text: [[1]]},
                ):
                    told = refused(server.port, content)
                    assert not told["error"].endswith(marker.read_bytes().hex())
        raw = json.dumps(split({"image": FILMS})).encode()
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n\r\n" % len(raw)
        finishes, hangs = (socket.create_connection(("127.0.0.1", server.port), 30) for _ in "ab")
        with finishes, hangs:
            for connection in (finishes, hangs):
                connection.sendall(head + raw[:9])
            until(lambda: metric(server.port, "cxr_buffered_bytes") == 18)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not connects(server.port))  # nobody new comes in
            finishes.sendall(raw[9:])
            told = received(finishes)
            assert told.startswith(b"HTTP/1.1 200")
            assert len(json.loads(told.partition(b"\r\n\r\n")[2])["predictions"]) == 5
            assert received(hangs).startswith(b"HTTP/1.1 503")  # its time is over
        assert server.process.wait(30) == 0
    text = log.read_text()
    assert "HEAVY []" in text
    assert "CONNECTED []" in text
    assert "OPENED" not in text
    assert "Traceback" not in text


def connects(port: int) -> bool:
    """Whether somebody listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.slow
def test_answers_are_those_of_the_logged_model_and_of_mlflow_models_serve(
    tracking, brightness_model, tmp_path
):
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("films", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    logged = package.log_model(promising(brightness_model("lungs")), run_id=run_id)
    client.create_registered_model("films")
    client.create_model_version("films", logged, run_id)
    client.set_registered_model_alias("films", "champion", "1")
    table = pd.DataFrame({"image": FILMS, "mask": [film(255)] * 5})
    expected = mlflow.pyfunc.load_model("models:/films@champion").predict(table)
    pairs = np.stack([np.stack([np.full((8, 8), g), np.full((8, 8), 255)]) for g in GREYS])

    theirs_port, elsewhere = free_port(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs = [sys.executable, "-P", "-m", "mlflow", "models", "serve", "-m", logged]
    theirs += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(theirs_port)]
    url = f"http://127.0.0.1:{theirs_port}/ping"
    with (
        served_process("models:/films@champion", tmp_path / "server.log", code=WATCHED) as server,
        running(theirs, url, elsewhere / "server.log"),
    ):
        contents = [split(dict(table)), {"inputs": pairs.tolist()}, {"instances": pairs.tolist()}]
        contents.append({"inputs": {k: [b64(cell) for cell in table[k]] for k in table}})
        for content in contents:
            ours = ask(server.port, content)
            assert ours[0] == 200
            assert ours[:2] == ask(theirs_port, content)[:2]
            pd.testing.assert_frame_equal(
                pd.DataFrame(ours[1]["predictions"]), expected, check_dtype=False
            )
        told = ask(server.port, path="/version", method="GET")[1]["model"]
        assert (told["name"], told["version"]) == ("films", "1")
        assert server.stop() == 0
    assert "'torch'" not in (tmp_path / "server.log").read_text()

    with (
        pytest.raises(RuntimeError, match=r"Error: models:/films@nobody: .*alias"),
        served_process("models:/films@nobody", tmp_path / "no.log"),
    ):
        pass
