"""Which runs are dead: by process, start, boot and pid namespace, else by silence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cxr_mlflow.tracking.processes import HEARTBEAT, HOST, PROCESS, is_dead, own_process


def of_another(pid: int, start: float) -> dict[str, str]:
    tags = own_process()
    _, *system = tags[PROCESS].split(" ")
    return {**tags, PROCESS: " ".join([f"{pid}@{start:.2f}", *system])}


def test_this_process_lives():
    assert not is_dead(own_process())


def test_a_killed_process_is_dead_at_once():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        tags = of_another(process.pid, psutil.Process(process.pid).create_time())
        assert not is_dead(tags)
        process.kill()
        deadline = time.monotonic() + 20
        while not is_dead(tags) and time.monotonic() < deadline:
            time.sleep(0.05)  # it may be a zombie now: dead all the same
        assert is_dead(tags)


def test_a_number_given_to_another_process_does_not_live_on():
    assert is_dead(of_another(os.getpid(), psutil.Process().create_time() - 3600))


def test_another_machine_is_not_judged():
    assert not is_dead({**own_process(), HOST: "elsewhere", PROCESS: "1@0.00 boot ns"})
    assert not is_dead({"kind": "training"})


@pytest.mark.parametrize(("silent", "dead"), [(30, False), (3600, True)])
def test_after_a_boot_or_in_another_container_silence_decides(silent, dead):
    now = time.time()
    told = {**own_process(), PROCESS: "1@0.00 otherboot otherns", HEARTBEAT: f"{now - silent:.0f}"}
    assert is_dead(told, now=now) is dead


def test_a_run_that_just_began_in_another_container_lives():
    elsewhere = {PROCESS: "1@0.00 otherboot otherns"}
    assert not is_dead({**own_process(), **elsewhere})
    silent = {**own_process(), **elsewhere, HEARTBEAT: ""}
    assert not is_dead(silent, started=time.time() - 30)
    assert is_dead(silent, started=time.time() - 3600)


def test_without_its_mlflow_run_a_training_ends(tmp_path):
    """A stand-in called `mlflow` starts the process as `mlflow run` does, and is killed."""
    child = tmp_path / "child.py"
    child.write_text(
        "import os, sys, time\n"
        "from cxr_mlflow.tracking.processes import end_with_parent\n"
        "end_with_parent()\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    script = tmp_path / "mlflow"
    script.write_text(f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])")
    with subprocess.Popen(
        [sys.executable, str(script), "run", "."], stdout=subprocess.PIPE, text=True
    ) as parent:
        training = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        training.wait(20)
    assert not psutil.pid_exists(training.pid)
