"""Runs the HTTP server of `cxr serve` until it is told to stop."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.config import NONE
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.http_app import create_app
from cxr_mlflow.serving.http_model import open_model
from cxr_mlflow.serving.http_protocol import GuardedProtocol
from cxr_mlflow.serving.http_scoring import Workers
from cxr_mlflow.serving.scorer import Scorer

TOKEN_VARIABLE = "CXR_SERVE_TOKEN"
TOKEN_LENGTH = 16
KEEP_ALIVE_SECONDS = 5
MAX_HEADER_BYTES = 16 * 1024
STOPPED_BY = (signal.SIGTERM, signal.SIGINT)


def serve(config: ServeConfig, tell: Callable[[str], None]) -> None:
    """Serve a model over HTTP until SIGTERM or SIGINT, then finish what is under way.

    Parameters
    ----------
    config : ServeConfig
        For an MLflow URI, the tracking URI must be set before.
    tell : callable
        Takes the lines for the terminal: model and warnings, and the address once it answers.

    Raises
    ------
    InputError
        If there is no such model, the address cannot be had, or a token is needed and missing.
    """
    token = read_token(config, os.environ)
    check_address(config, token)
    with bind(config) as listening:
        scorer, about = open_model(config)
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        for line in greeting(about):
            tell(line)
        ready = f"serving {'with' if token else 'without'} a token on {address_of(listening)}"
        server = Server(scorer, about, config, token, lambda: tell(f"{ready} (Ctrl+C stops)"))
        with _no_second_signal():
            server.run(sockets=[listening])
    if server.pool.working:  # its time is over, and a decoder cannot be told: Python would wait
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class Server(uvicorn.Server):
    """Uvicorn with our application, our connections and our limits.

    Parameters
    ----------
    scorer, about
        Of `open_model`.
    config : ServeConfig
    token : str, optional
    on_ready : callable
        Called when clients can connect.
    """

    def __init__(
        self,
        scorer: Scorer,
        about: Mapping[str, Any],
        config: ServeConfig,
        token: str | None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_ready = on_ready
        self.pool = Workers(config.workers or usable_cores(), config.max_waiting)
        protocol = partial(
            GuardedProtocol, seconds=config.header_timeout, max_connections=config.max_connections
        )
        super().__init__(
            uvicorn.Config(
                create_app(scorer, config, about, token=token, pool=self.pool),
                http=protocol,  # type: ignore[arg-type]
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=config.stop_timeout,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self.on_ready()


@contextlib.contextmanager
def _no_second_signal() -> Iterator[None]:
    """Keep uvicorn, which raises a signal again after it has stopped for it, from ending us."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPED_BY}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def usable_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_token(config: ServeConfig, environment: Mapping[str, str]) -> str | None:
    """Read the token from the file or the environment; None if none is wanted.

    Raises
    ------
    InputError
        If it cannot be read, is empty or too short, or is given in both places.
    """
    told, where = environment.get(TOKEN_VARIABLE), f"${TOKEN_VARIABLE}"
    if config.token_file != NONE:
        if told is not None:
            raise InputError(f"--token-file and {where} both hold a token; leave one of them out")
        where = f"--token-file={config.token_file}"
        try:
            told = Path(config.token_file).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{where}: cannot be read ({error})") from error
    if told is None:
        return None
    token = told.strip()
    plain = token.isascii() and token.isprintable() and " " not in token
    if len(token) < TOKEN_LENGTH or not plain:
        raise InputError(
            f"{where}: a token has at least {TOKEN_LENGTH} printable ASCII characters and no "
            "spaces; `openssl rand -hex 32` makes one"
        )
    return token


def check_address(config: ServeConfig, token: str | None) -> None:
    """Refuse to serve others than this machine without a token.

    Raises
    ------
    InputError
        If the host is not loopback, there is no token, and `insecure` is not set.
    """
    try:
        is_loopback = ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        is_loopback = config.host == "localhost"
    if not (is_loopback or token or config.insecure):
        raise InputError(
            f"--host={config.host}: others can reach it, and there is no token; set "
            f"${TOKEN_VARIABLE} or --token-file, or --insecure true"
        )


def bind(config: ServeConfig) -> socket.socket:
    """Take the address before the model is loaded; nobody can connect yet.

    Raises
    ------
    InputError
        If it is taken, or is no address of this machine.
    """
    where = f"--host={config.host} --port={config.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM
        )[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{where}: no such address ({error})") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise InputError(f"{where}: cannot be had ({error.strerror or error})") from error
    return listening


def greeting(about: Mapping[str, Any]) -> list[str]:
    """Lines for whoever starts the server: which model, and what must not be overlooked."""
    model = about["model"]
    name = " ".join(filter(None, (model["name"], model["version"])))
    return [
        f"model {name}, mask_mode={about['mask_mode']}, sha256 {model['sha256'][:12]}",
        *(f"! {warning}" for warning in (*about["warnings"], about["not_for_diagnosis"])),
    ]


def address_of(listening: socket.socket) -> str:
    """URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
