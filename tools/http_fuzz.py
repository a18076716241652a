"""Requests nobody should send, and what a server may answer to them.

`make fuzz` sends 10,000 of them to a real `cxr serve` and prints what came back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import hypothesis
import psutil
from hypothesis import strategies as st

from tools.costly_images import many_pieces, many_scans
from tools.cxr_server import ask, film, served_process, split

ANSWER_SECONDS = 30.0
ALLOWED = {200, 400, 401, 404, 405, 408, 413, 414, 415, 431, 503}
LEAKS = re.compile(rb"Traceback|File \"|site-packages|\.py\b|/root|/home|/tmp|0x[0-9a-f]{8}")
KINDS = [("PNG", "L"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA")]
KINDS += [("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("GIF", "L"), ("TIFF", "L")]
FILES = [film(150, 24, kind, mode) for kind, mode in KINDS]
FILES += [many_scans(60, side=24), many_scans(100), many_pieces(500), many_pieces(500, "JPEG")]
GOOD = split({"image": FILES[:2], "mask": [film(255, 24)] * 2})
RECORDS = [
    dict(zip(GOOD["dataframe_split"]["columns"], row, strict=True))
    for row in GOOD["dataframe_split"]["data"]
]
ARRAY = [[[row * 8 + column for column in range(8)] for row in range(8)] for _ in range(2)]
BODIES = [
    json.dumps(body).encode()
    for body in (
        GOOD,
        {"dataframe_records": RECORDS},
        {"instances": RECORDS},
        {"inputs": {name: [row[name] for row in RECORDS] for name in RECORDS[0]}},
        {"inputs": ARRAY},
        {"instances": [[image, image] for image in ARRAY]},
        {"inputs": ARRAY[0], "params": {}},
    )
]
NAMES = ["dataframe_split", "dataframe_records", "inputs", "instances", "columns", "data", "index"]
NAMES += ["image", "mask", "params", "", "__proto__", "\ud800", "\0", "a" * 300]
TEXTS = ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:9/x.png", "../../x", "\ud800\udfff"]
TEXTS += ["data:image/png;base64,AAAA", "=", "====", "A" * 4001, "\r\n", "null", "NaN", "🫁", "\0"]
TEXTS += [base64.b64encode(content).decode() for content in FILES]
HEADERS = ["Content-Type: text/csv", "Content-Type: application/json; charset=utf-16", "Expect: x"]
HEADERS += ["Content-Encoding: gzip", "Transfer-Encoding: gzip", "Authorization: Bearer \xff"]
HEADERS += ["Connection: upgrade\r\nUpgrade: websocket", "Expect: 100-continue", "Host: \\evil"]
HEADERS += ["Content-Type:", "X: " + "y" * 9000, "Content-Length: 3", ": x", "A B: c", "X-\xe9: 1"]
METHODS = ["POST"] * 12 + ["GET", "PUT", "HEAD", "OPTIONS", "BREW", "P" * 400]
PATHS = ["/invocations"] * 12 + [
    "/ping",
    "/version",
    "/metrics",
    "/",
    "*",
    "//",
    "/%00",
    "/%ff?a=%",
]
PATHS += ["/../../etc/passwd", "/invocations/", "http://example.org/invocations", "/" + "a" * 3000]
PARTS = 5
END = b"\r\nConnection: close\r\n\r\n"


@st.composite
def mutated(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> bytes:
    """Content with bytes changed, left out, doubled, put in, or cut off."""
    found = bytearray(draw(content))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(found) - 1, 0)))
        how = draw(st.sampled_from(["change", "insert", "delete", "double", "cut", "zero"]))
        size = draw(st.integers(1, 24))
        if how == "change" and found:
            found[place] = draw(st.integers(0, 255))
        elif how == "insert":
            found[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif how == "delete":
            del found[place : place + size]
        elif how == "double":
            found[place:place] = found[place : place + size]
        elif how == "cut":
            del found[place:]
        else:
            found[place : place + size] = bytes(len(found[place : place + size]))
    return bytes(found)


def bodies() -> st.SearchStrategy[bytes]:
    """Bodies of `/invocations`: good, nearly good, JSON of all shapes, and bytes."""
    numbers = st.one_of(
        st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 255, 256, -1, 1e308, True])
    )
    cells = st.one_of(st.none(), st.booleans(), numbers, st.sampled_from(TEXTS), st.text())
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=5))
    values = st.recursive(
        cells,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
        max_leaves=12,
    )
    formats = st.dictionaries(st.sampled_from(NAMES[:4]), values, min_size=1, max_size=2)
    files = mutated(st.sampled_from(FILES)).map(lambda content: base64.b64encode(content).decode())
    rows = st.fixed_dictionaries({"image": files | cells}, optional={"mask": files | cells})
    tables = st.lists(rows, min_size=1, max_size=4).map(lambda told: {"dataframe_records": told})
    deep = st.integers(1, 3000).map(lambda depth: b'{"inputs": ' + b"[" * depth + b"]" * depth)
    return st.one_of(
        st.sampled_from(BODIES),
        mutated(st.sampled_from(BODIES)),
        (tables | formats | values).map(lambda told: json.dumps(told).encode()),
        deep,
        st.binary(max_size=200),
    )


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """What is sent on one connection: mostly one request, at times several, or no HTTP at all."""
    sent = b""
    for _ in range(draw(st.sampled_from([1] * 9 + [2, 4]))):
        body = draw(bodies())
        lines = [f"{draw(st.sampled_from(METHODS))} {draw(st.sampled_from(PATHS))} HTTP/1.1"]
        lines += ["Host: x", "Content-Type: application/json"]
        if draw(st.integers(0, 4)) == 0:
            lines[draw(st.integers(1, 2)) :] = draw(
                st.lists(st.sampled_from(HEADERS), min_size=1, max_size=3)
            )
        length = len(body)
        framing = draw(st.sampled_from(["length"] * 8 + ["chunked", "lie", "none"]))
        if framing == "chunked":
            size = draw(st.integers(1, 500))
            parts = [body[start : start + size] for start in range(0, length, size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            body += draw(st.sampled_from([b"0\r\n\r\n", b"", b"-1\r\n", b"0\r\nX: y\r\n\r\n"]))
            lines.append("Transfer-Encoding: chunked")
        elif framing == "lie":
            length += draw(st.sampled_from([-5, 7, 10**12]))
        if framing in ("length", "lie") or draw(st.integers(0, 9)) == 0:  # chunked: told twice
            lines.append(f"Content-Length: {length}")
        sent += "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
    sent += b"GET /ping HTTP/1.1\r\nHost: x" + END  # whose answer closes the connection
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(mutated(st.just(sent)))
    return draw(st.binary(max_size=300)) if kind == 1 else sent


@dataclass
class Findings:
    """What a server answered."""

    statuses: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    unanswered: int = 0
    """Connections that the server closed, or that were left, without an answer."""

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.statuses + other.statuses,
            self.sent + other.sent,
            self.unanswered + other.unanswered,
        )


def exchange(port: int, raw: bytes, patience: float) -> bytes:
    """Send bytes, return what comes back until the server closes or has nothing more to say."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
        connection.settimeout(patience)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                received += part
        if len(raw) % 2:  # leave as rudely as it can be done
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return received


def check(received: bytes, findings: Findings) -> None:
    """Assert that all the answers in a stream are ones that a server may give."""
    assert not LEAKS.search(received), received
    findings.sent += 1
    findings.unanswered += not received
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 100:
            continue
        assert status in ALLOWED, (head, received[:500])
        findings.statuses[status] += 1
        told = re.search(rb"(?i)^content-length: (\d+)", head, re.MULTILINE)
        length = 0 if received.startswith(b"HTTP/") else int(told[1]) if told else 0  # of HEAD
        body, received = received[:length], received[length:]
        if body and status != 200:
            assert set(json.loads(body)) <= {"error", "row", "field", "request_id"}, body
            assert body.count(b"\n") == 1


def fuzz(port: int, examples: int, seed: int = 0, *, patience: float = 0.5) -> Findings:
    """Send so many random and mutated requests; the same ones for a seed.

    Parameters
    ----------
    port : int
        Of the server, on loopback.
    examples, seed : int
    patience : float
        Seconds without a byte after which a connection is left.

    Raises
    ------
    AssertionError
        With the request, made as small as it can be, if an answer is none that may be given.
    """
    findings = Findings()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(requests())
    def send(raw: bytes) -> None:
        check(exchange(port, raw, patience), findings)

    send()
    return findings


@click.command()
@click.option("--model", help="What `cxr serve` takes; else resnet18 with random weights.")
@click.option("--image-size", default=112, help="Without --model.")
@click.option("--requests", "count", default=10_000, help="Connections.")
@click.option("--seed", default=0, help="Of the requests.")
def main(model: str | None, image_size: int, count: int, seed: int) -> None:
    """Send random and mutated requests to a real server; print what came back."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        log, served = place / "log", model or _some_model(place / "model", image_size)
        with served_process(served, log) as server:
            process = psutil.Process(server.process.pid)
            good = split({"image": FILES[:1], "mask": [film(255)]})
            expected = ask(server.port, good)[:2]
            memory, begun = [process.memory_info().rss], time.monotonic()
            findings = Findings()
            for part in range(PARTS):
                findings += fuzz(server.port, count // PARTS, seed * PARTS + part, patience=0.1)
                memory.append(process.memory_info().rss)
            same = ask(server.port, good)[:2] == expected
            seconds, status = time.monotonic() - begun, server.stop()
        told = log.read_text()
    lines = [
        ("connections", f"{findings.sent:,} in {seconds:.0f} s, seed {seed}"),
        ("answers", f"{findings.statuses.total():,}"),
        *((str(code), f"{number:,}") for code, number in sorted(findings.statuses.items())),
        ("closed or left without an answer", f"{findings.unanswered:,}"),
        ("500, stack traces in answers or log", str(len(LEAKS.findall(told.encode())))),
        ("crashes (exit status at the end)", f"{int(status != 0)} ({status})"),
        ("a good request gets the answer it got before", "yes" if same else "NO"),
        ("memory before / after each fifth", " / ".join(f"{m / 1e6:.0f}" for m in memory) + " MB"),
    ]
    click.echo("| what | found |\n|---|---:|")
    for line in lines:
        click.echo(f"| {line[0]} | {line[1]} |")
    if status or not same or b"Traceback" in told.encode():
        raise SystemExit(f"NOT WELL; the log ends:\n{told[-2000:]}")


def _some_model(folder: Path, image_size: int) -> str:
    from cxr_mlflow.models import MODELS  # loads torch
    from cxr_mlflow.serving.package import write_folder

    classes = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    told = {"classes": classes, "image_size": image_size, "mask_mode": "lungs", "trained_on": {}}
    return str(write_folder(folder, MODELS["resnet18"](len(classes)), **told))


if __name__ == "__main__":
    main()
