"""The download itself cannot be tested offline; what a user sees when it fails can."""

from __future__ import annotations

import importlib.util
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxr_mlflow.data.download import FOLDER, PAGE, STAGING, _fetch, download
from cxr_mlflow.errors import InputError

HAS_KAGGLEHUB = importlib.util.find_spec("kagglehub") is not None
needs_kagglehub = pytest.mark.skipif(not HAS_KAGGLEHUB, reason="kagglehub is not installed")


@pytest.mark.skipif(HAS_KAGGLEHUB, reason="kagglehub is installed")
def test_without_kagglehub_both_ways_out_are_told(tmp_path: Path):
    with pytest.raises(InputError) as error:
        download(tmp_path / "data")
    for told in ("pip install kagglehub", PAGE, "--data-dir"):
        assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_fetched_again(tmp_path: Path):
    (tmp_path / FOLDER / "COVID" / "images").mkdir(parents=True)
    (tmp_path / FOLDER / "Normal" / "images").mkdir(parents=True)
    assert download(tmp_path) == tmp_path / FOLDER


@needs_kagglehub
@pytest.mark.slow
def test_no_connection_is_told_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")  # nobody listens there
    with pytest.raises(InputError, match=r"kaggle\.com cannot be reached.*--data-dir"):
        download(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_kagglehub
@pytest.mark.slow
def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch, silent_server: int):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent_server}")
    with pytest.raises(InputError, match=r"nothing came from kaggle\.com for 6 seconds"):
        download(tmp_path, silence=6)


def script(code: str, staging: Path) -> list[str]:
    imports = "import pathlib, sys, time; staging = pathlib.Path(sys.argv[1])\n"
    return [sys.executable, "-c", imports + code, str(staging)]


def test_a_silent_process_is_ended(tmp_path: Path):
    code = "(staging / 'pid').write_text('x'); time.sleep(3); (staging / 'late').touch()"
    with pytest.raises(InputError, match=r"nothing came .* for 1 seconds; run it again"):
        _fetch(script(code, tmp_path), tmp_path, silence=1.0)
    time.sleep(3)
    assert not (tmp_path / "late").exists(), "the process was left running"


def test_a_slow_but_steady_process_is_waited_for(tmp_path: Path):
    code = """
for k in range(15):
    (staging / f'part{k}').write_bytes(bytes(1000))
    time.sleep(0.2)
(staging / 'path').write_text(str(staging / 'versions'))
"""
    assert _fetch(script(code, tmp_path), tmp_path, silence=1.5) == tmp_path / "versions"


def test_what_the_process_says_reaches_the_user(tmp_path: Path):
    (tmp_path / "path").write_text("left by an earlier try")
    code = "(staging / 'part').touch(); (staging / 'error').write_text('403 Client Error'); exit(1)"
    with pytest.raises(InputError, match=r"403 Client Error.*--data-dir"):
        _fetch(script(code, tmp_path), tmp_path, silence=30)
    with pytest.raises(InputError, match="status 7"):
        _fetch(script("sys.exit(7)", tmp_path), tmp_path, silence=30)


def test_a_finished_download_moves_into_place(tmp_path: Path, monkeypatch):
    """As kagglehub leaves it: deep in its cache, and only then under the name that is read."""
    from cxr_mlflow.data import download as module

    code = f"""
root = staging / 'datasets' / 'x' / 'versions' / '5'
for name in ('COVID', 'Normal'):
    (root / '{FOLDER}' / name / 'images').mkdir(parents=True)
(staging / 'path').write_text(str(root))
"""
    fetch = module._fetch
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(module, "_fetch", lambda _, s, silence: fetch(script(code, s), s, silence))
    dest = tmp_path / "data"
    dest.mkdir()
    (dest / "notes.txt").write_text("mine")
    assert module.download(dest) == dest / FOLDER
    assert (dest / FOLDER / "COVID" / "images").is_dir()
    assert sorted(p.name for p in dest.iterdir()) == [FOLDER, "notes.txt"]
    assert not (dest / STAGING).exists()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Port of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[socket.socket] = []

        def take() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in held:
            connection.close()
