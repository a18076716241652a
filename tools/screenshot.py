"""Pictures of the MLflow UI for the docs: a real server on loopback, a real headless Chromium.

python tools/screenshot.py --store sqlite:///mlflow.db --page experiments/1/runs/RUN_ID out.png
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
from PIL import Image

CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
]
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, seconds: float = 120.0) -> None:
    """Wait until a server answers."""
    for _ in range(int(seconds * 2)):
        try:
            urllib.request.urlopen(url, timeout=5)
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise click.ClickException(f"{url} did not answer within {seconds:.0f} s")


@click.command()
@click.option("--store", default="sqlite:///mlflow.db", show_default=True)
@click.option("--page", required=True, help="What comes after #/ in the UI's address.")
@click.option("--size", default="1600,1500", show_default=True, help="Window, pixels.")
@click.option("--wait", default=25, show_default=True, help="Seconds the page gets to draw.")
@click.option("--keep", default=1195, show_default=True, help="Pixels kept from the left.")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def main(store: str, page: str, size: str, wait: int, keep: int, out: Path) -> None:
    """Draw one page of the MLflow UI into a PNG."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        raise click.ClickException("no Chromium here: install it (Debian: apt install chromium)")
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", url.rsplit(":", 1)[1], "--backend-store-uri", store]
    server = subprocess.Popen(command, **QUIET, start_new_session=True)
    try:
        wait_for(f"{url}/health")
        with tempfile.TemporaryDirectory() as profile:
            place = [f"--user-data-dir={profile}", f"--window-size={size}"]
            draw = [f"--virtual-time-budget={wait * 1000}", f"--screenshot={out.resolve()}"]
            command = [browser, *CHROMIUM, *place, *draw, f"{url}/#/{page}"]
            subprocess.run(command, check=True, timeout=300, **QUIET)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    with Image.open(out) as picture:  # the assistant's panel takes the right side
        picture.crop((0, 0, min(keep, picture.width), picture.height)).save(out, optimize=True)
    click.echo(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
