"""What requests may cost a real server: its memory, the time of its workers, and its end."""

from __future__ import annotations

import base64
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from cxr_mlflow.data.preprocess import decode_grey
from cxr_mlflow.serving.http_json import MAX_TEXTS, MAX_VALUES, SHORT
from tools.costly_images import many_pieces, many_scans
from tools.cxr_server import Process, ask, film, served_process, served_thread, split

HEAD = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MB = 2**20
GOOD = split({"image": [film()]})
SLEEPS = """
import pathlib, time
from cxr_mlflow.serving.scorer import Scorer
score = Scorer.score_bytes
def slow(*arguments, **options):
    while pathlib.Path("sleep").exists():
        time.sleep(0.05)
    return score(*arguments, **options)
Scorer.score_bytes = slow
from cxr_mlflow.cli import main
main()
"""
"""A server whose decoder cannot be interrupted, as one in C: it sleeps while a file exists."""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metric(port: int, name: str) -> float:
    text = ask(port, path="/metrics", method="GET")[1]
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def request(content: object) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def resident(server: Process) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


# ---- memory


@pytest.mark.slow
def test_bodies_of_those_who_left_are_not_kept_for_a_busy_worker(brightness_model, tmp_path):
    large = request(split({"image": [film()], "note": ["x" * 20 * MB]}))
    options = ("--workers", "1", "--max-waiting", "4", "--max-buffered-mb", "64")
    log = tmp_path / "log"
    with served_process(brightness_model(), log, *options, code=SLEEPS) as server:
        assert ask(server.port, GOOD)[0] == 200
        (tmp_path / "sleep").touch()
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(ask, server.port, GOOD)
            until(lambda: metric(server.port, "cxr_scoring_requests") == 1)
            before = resident(server)
            for _ in range(15):
                with socket.create_connection(("127.0.0.1", server.port)) as connection:
                    connection.sendall(large)
                    until(lambda: metric(server.port, "cxr_scoring_requests") == 2)
                until(lambda: metric(server.port, "cxr_scoring_requests") == 1)
            assert metric(server.port, "cxr_buffered_bytes") < MB
            assert resident(server) - before < 50 * MB  # all of them are 300
            (tmp_path / "sleep").unlink()
            assert first.result()[0] == 200
        assert server.stop() == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_a_body_that_a_worker_has_counts_after_its_client_has_left(brightness_model, tmp_path):
    large = request(split({"image": [film()], "note": ["x" * MB]}))
    log = tmp_path / "log"
    with served_process(brightness_model(), log, "--workers", "1", code=SLEEPS) as server:
        (tmp_path / "sleep").touch()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(large)
            until(lambda: metric(server.port, "cxr_scoring_requests") == 1)
        refused = 'cxr_requests_total{route="/invocations",status="499"}'
        until(lambda: refused in ask(server.port, path="/metrics", method="GET")[1])
        assert metric(server.port, "cxr_buffered_bytes") > MB
        (tmp_path / "sleep").unlink()
        until(lambda: metric(server.port, "cxr_buffered_bytes") == 0)
        assert metric(server.port, "cxr_scoring_requests") == 0


def texts(body: str) -> bytes:
    cell = base64.b64encode(film()).decode()
    return b'{"dataframe_split":{"columns":["image","n"],"data":[["%b",%b]]}}' % (
        cell.encode(),
        body.encode(),
    )


COSTLY = {  # bodies of 20 MB, and megabytes that the server may take to parse one
    "letters": (texts(f'"{"x" * 20 * MB}"'), 200, 65),
    "letters behind an emoji": (texts(f'"\U0001f600{"x" * 20 * MB}"'), 200, 65),
    "an escaped emoji": (texts(f'"\\ud83d\\ude00{"x" * 20 * MB}"'), 200, 130),
    "pairs between blanks": (b'{"inputs":{"image":"' + b"AA " * (7 * MB) + b'"}}', 400, 90),
    "short texts": (b'{"inputs":["ab"' + b',"ab"' * (2 * MAX_TEXTS) + b"]}", 413, 30),
    "numbers": (b'{"inputs":[[1.5' + b",1.5" * (MAX_VALUES - 1) + b"]]}", 400, 230),
}


@pytest.mark.slow
def test_what_parsing_a_body_takes(brightness_model, tmp_path):
    with served_process(brightness_model(), tmp_path / "log", "--workers", "1") as server:
        assert ask(server.port, GOOD)[0] == 200
        process = Path(f"/proc/{server.process.pid}")
        taken = {}
        for what, (body, status, _) in COSTLY.items():
            (process / "clear_refs").write_text("5")  # the peak is the present
            before = resident(server)
            assert ask(server.port, body)[0] == status, what
            told = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
            taken[what] = (int(told[1]) * 1024 - before) / MB
        assert {w: t for w, t in taken.items() if t > COSTLY[w][2]} == {}


def test_long_bodies_in_any_language_are_read_as_short_ones(brightness_model):
    with served_thread(brightness_model()) as port:
        expected = ask(port, GOOD)[1]
        for size in (10, SHORT):
            for sign in ("ü", "\u00a0", "胸", "🫁"):
                content = split({"patient": [sign * size], "image": [film()], sign: [sign]})
                body = json.dumps(content, ensure_ascii=False).encode()
                assert ask(port, body)[:2] == (200, expected)
                assert ask(port, b"\xef\xbb\xbf" + body)[:2] == (200, expected)
                damaged = body[:-60] + body[-60:].replace(sign.encode(), sign.encode()[:-1])
                status, told, _ = ask(port, damaged)
                assert (status, told["error"]) == (400, "the body is not UTF-8 text")


# ---- time


def test_costly_files_are_refused_at_once(brightness_model):
    scans, pieces = many_scans(700, side=3000), many_pieces(1_000_000)
    assert len(scans) < 200_000
    with served_thread(brightness_model("lungs")) as port:
        for costly, told in ((scans, "700 scans"), (pieces, "more pieces")):
            for field in ("image", "mask"):
                content = split({"image": [film()], "mask": [film()], field: [costly]})
                begun = time.process_time()
                status, answer, _ = ask(port, content)
                assert (status, answer["row"], answer["field"]) == (400, 0, field)
                assert told in answer["error"]
                assert time.process_time() - begun < 2


def test_the_clock_is_looked_at_before_each_image(brightness_model, monkeypatch):
    seen = []
    monkeypatch.setattr("cxr_mlflow.serving.scorer.decode_grey", _slowly(seen))
    with served_thread(brightness_model(), request_timeout=0.5) as port:
        assert ask(port, split({"image": [film()] * 8}))[0] == 504
        until(lambda: metric(port, "cxr_scoring_requests") == 0)
    assert len(seen) == 2


def _slowly(seen: list[str]) -> Callable[..., object]:
    def decode_slowly(content: bytes, *, name: str) -> object:
        seen.append(name)
        time.sleep(0.4)
        return decode_grey(content, name=name)

    return decode_slowly


@pytest.mark.slow
def test_a_worker_that_does_not_come_back_does_not_hold_the_end(brightness_model, tmp_path):
    log = tmp_path / "log"
    options = ("--workers", "1", "--stop-timeout", "1")
    with served_process(brightness_model(), log, *options, code=SLEEPS) as server:
        (tmp_path / "sleep").touch()
        with ThreadPoolExecutor(1) as clients:
            first = clients.submit(ask, server.port, GOOD)
            until(lambda: metric(server.port, "cxr_scoring_requests") == 1)
            begun = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - begun < 6
            assert first.result()[0] == 503
    assert "Traceback" not in log.read_text()


# ---- framing


@pytest.mark.parametrize(("version", "length"), [(b"1.1", b"Content-Length: 4\r\n"), (b"1.0", b"")])
def test_a_request_whose_end_is_told_twice_is_refused_and_nothing_behind_it_is_read(
    brightness_model, version, length
):
    head = HEAD.replace(b"HTTP/1.1", b"HTTP/" + version) + length
    smuggled = b"2\r\n{}\r\n0\r\n\r\nGET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        served_thread(brightness_model()) as port,
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + smuggled)
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 400")
        assert received.count(b"HTTP/1.1") == 1
        assert b"in two ways" in received


def test_chunks_are_counted_and_not_line_breaks_in_them(brightness_model):
    rows = b"[[\r\n" + b",\r\n".join([b"1"] * 30_000) + b"\r\n]]"
    body = b'{"inputs":' + rows + b"}"
    parts = [body[start : start + 8192] for start in range(0, len(body), 8192)]
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    ping = b"GET /ping HTTP/1.0\r\n\r\n"
    with (
        served_thread(brightness_model()) as port,
        socket.create_connection(("127.0.0.1", port), 30) as connection,
    ):
        crumbs = b"".join(b"1\r\n%c\r\n" % sign for sign in b"{}".ljust(1500)) + b"0\r\n\r\n"
        for sent, status in ((chunked, b"200"), (crumbs, b"400"), (chunked, b"200")):
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + sent)
            told = b""
            while b"}\n" not in told and b"}]}" not in told:
                told += connection.recv(65536)
            assert told.startswith(b"HTTP/1.1 " + status), told
            assert b"too small" not in told
        connection.sendall(ping)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
