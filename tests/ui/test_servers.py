"""A server that tests start is there when the block begins, and gone with its children after."""

from __future__ import annotations

import os
import sys
import time
import urllib.request

import pytest

from tools.mlflow_server import ServerFailed, free_port, running, wait_for

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, os.environ.get("TOLD"), flush=True)
handler = http.server.SimpleHTTPRequestHandler
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to look at processes")
def test_a_server_answers_within_the_block_and_leaves_nothing_behind(tmp_path):
    port, log = free_port(), tmp_path / "log"
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, str(port)]
    with running(command, url, log, environment={"TOLD": "yes"}):
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert "log" in answer.read().decode()  # it works in the folder of its log
        _, child, told = log.read_text().splitlines()[0].split()
        assert is_alive(int(child))
    assert told == "yes"
    deadline = time.monotonic() + 60
    while is_alive(int(child)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=60)


def test_a_server_that_ends_is_told_with_its_log(tmp_path):
    command = [sys.executable, "-c", "print('no such store'); raise SystemExit(3)"]
    url = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(ServerFailed, match=r"ended before it answered; its log:\nno such store"),
        running(command, url, tmp_path / "log"),
    ):
        pytest.fail("the block ran without a server")


def test_waiting_has_an_end():
    with pytest.raises(ServerFailed, match="did not answer within 0 s"):
        wait_for(f"http://127.0.0.1:{free_port()}", seconds=0.0)
