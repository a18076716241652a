"""Real MLflow servers on loopback, for as long as a test or a screenshot needs one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

LOG_TAIL = 4000  # characters of a server's log that an error shows
POLL_SECONDS = 0.3
STOP_SECONDS = 20.0
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
SQLITE = "sqlite:///"


class ServerFailed(RuntimeError):
    """The server ended or did not answer; the message has the end of its log."""


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, *, seconds: float = 180.0, alive: Callable[[], bool] = lambda: True) -> None:
    """Wait until a server answers.

    Parameters
    ----------
    url : str
        Address that answers 200 when the server is ready.
    seconds : float
        Longest wait.
    alive : callable
        Tells whether it is still worth waiting.

    Raises
    ------
    ServerFailed
        If `alive` says no, or the time is over.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            if not alive():
                raise ServerFailed(f"{url}: the server ended before it answered") from None
            if time.monotonic() > deadline:
                raise ServerFailed(f"{url} did not answer within {seconds:.0f} s") from None
            time.sleep(POLL_SECONDS)
        else:
            return


@contextmanager
def running(
    command: Sequence[str], url: str, log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server until the block ends, then end all processes it started.

    Parameters
    ----------
    command : sequence of str
        What to run, in the folder of `log`. Programs of this interpreter's environment are found
        by name.
    url : str
        Address that answers 200 when the server is ready.
    log : Path
        File that gets all the server says.
    environment : mapping, optional
        Its variables; those of this process by default.

    Raises
    ------
    ServerFailed
        If it does not get ready; the message ends with the log.
    """
    variables = dict(os.environ if environment is None else environment)
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("w") as told:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        try:
            wait_for(url, alive=lambda: process.poll() is None)
        except ServerFailed as error:
            raise ServerFailed(f"{error}; its log:\n{log.read_text()[-LOG_TAIL:]}") from error
        yield
    finally:
        _end_group(process)


@contextmanager
def serve_mlflow(
    store: str, folder: Path, *, artifacts: Path | None = None, port: int | None = None
) -> Iterator[str]:
    """Run `mlflow server` on loopback: one worker, no background jobs, no telemetry.

    Parameters
    ----------
    store : str
        Backend store; a relative sqlite path is one of the present folder, not of `folder`.
    folder : Path
        Where the server works and keeps its log, `mlflow_server.log`.
    artifacts : Path, optional
        Where clients of the server put their files; `folder`/mlartifacts by default. Runs that
        were made without a server have theirs where they are.
    port : int, optional
        A free one by default.

    Yields
    ------
    str
        Address of the server, http://127.0.0.1:PORT.

    Raises
    ------
    ServerFailed
        If it does not get ready.
    """
    if store.startswith(SQLITE):
        store = f"{SQLITE}{Path(store.removeprefix(SQLITE)).resolve()}"
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", store]
    command += ["--artifacts-destination", str(artifacts or folder / "mlartifacts")]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    log = folder / "mlflow_server.log"
    with running(command, f"{url}/health", log, environment=plain | QUIET):
        yield url


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children, which are a process group of their own."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:  # all of them are gone
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait(STOP_SECONDS)
