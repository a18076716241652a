"""A real `cxr serve` in a process of its own, and one in a thread, for tests and benchmarks."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.serving.http_model import open_model
from cxr_mlflow.serving.http_server import Server, bind

START_SECONDS = 120.0
STOP_SECONDS = 60.0
RUN = "from cxr_mlflow.cli import main; main()"
ROOT = Path(__file__).parents[1]


@dataclass
class Process:
    """A server that runs: its port, its process, the file with all it says."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path
    seconds: float
    """From its start to its first answer."""

    def stop(self) -> int:
        """End it as an orchestrator does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def served_process(
    model: str | Path,
    log: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
    code: str = RUN,
) -> Iterator[Process]:
    """Run `cxr serve` on a free port of loopback until the block ends.

    Parameters
    ----------
    model : str or Path
        As the command takes it.
    log : Path
        File that gets all it says; its folder is where it works.
    *options : str
        Of the command.
    environment : mapping, optional
        Variables beside those of this process.
    code : str
        What the interpreter runs; calls the command by default.

    Raises
    ------
    RuntimeError
        If it does not answer; the message ends with the log.
    """
    command = [sys.executable, "-c", code, "serve", str(model), "--port", "0", *options]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    begun = time.monotonic()
    with log.open("w") as told:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env={**variables, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
        )
    try:
        while not (found := re.search(r"serving with.* on http://.*:(\d+) ", log.read_text())):
            if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise RuntimeError(f"the server did not start; its log:\n{log.read_text()}")
            time.sleep(0.02)
        yield Process(int(found[1]), process, log, time.monotonic() - begun)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_SECONDS)


@contextmanager
def served_thread(
    model: Path, *, token: str | None = None, send_buffer: int | None = None, **options: Any
) -> Iterator[int]:
    """Run the server in a thread of this process; yield its port.

    With a small `send_buffer` a client that does not read is noticed after a few answers.
    """
    config = ServeConfig(model_uri=str(model), port=0, **{"workers": 1, **options})
    scorer, about = open_model(config)
    with bind(config) as listening:
        if send_buffer:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        ready = threading.Event()
        server = Server(scorer, about, config, token, ready.set)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            assert ready.wait(START_SECONDS)
            yield int(listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)
            assert not thread.is_alive()


def ask(
    port: int,
    content: Any = None,
    *,
    path: str = "/invocations",
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Send a request on a connection of its own.

    Parameters
    ----------
    content : bytes, or what becomes JSON
        The body; None sends none.

    Returns
    -------
    status : int
    body
        Parsed, where it is JSON; else text.
    headers
    """
    body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    told = {"Content-Type": "application/json", **(headers or {})}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, told)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    is_json = answer.headers.get_content_type() == "application/json" and text.strip()
    return answer.status, json.loads(text) if is_json else text, answer.headers


def film(grey: int = 150, size: int = 40, kind: str = "PNG", mode: str = "L") -> bytes:
    """Content of an image file of one grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size), grey, np.uint8)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def split(columns: Mapping[str, Sequence[bytes | str | None]]) -> dict[str, Any]:
    """`dataframe_split` of columns; bytes become base64."""
    cells = {
        name: [base64.b64encode(c).decode() if isinstance(c, bytes) else c for c in column]
        for name, column in columns.items()
    }
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    return {"dataframe_split": {"columns": list(cells), "data": rows}}
