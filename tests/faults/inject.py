"""Injects faults into real trainings and prints what was lost: `make faults`, or with `--times N`.

Faults are signals at chosen moments of a run (see `test_killed.py`) and at random ones, once, twice
and to the whole process group, and a world that is ill: a damaged checkpoint, a full state disk, a
tracking server that dies in the middle. The same command is typed until it ends well; then weights,
metric history, artifacts, models and versions are compared with a run that nothing happened to.
After a signal that asks, the run must be KILLED at once.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from cxr_mlflow.data.demo import write_demo
from tests.faults.test_killed import MOMENTS, artifacts
from tests.faults.world import World
from tools.mlflow_server import free_port, serve_mlflow

MOST_ATTEMPTS = 40
ASKED = {
    "SIGINT": "Ctrl-C",
    "SIGTERM": "SIGTERM",
    "SIGHUP": "closed terminal (SIGHUP)",
    "group SIGINT": "Ctrl-C to the group",
    "group SIGINT,SIGTERM,SIGINT": "Ctrl-C twice to the group, as from mlflow run",
    "group SIGTERM,SIGTERM": "SIGTERM twice to the group",
}
"""Signals that ask a run to end, in words."""
SMALL = "2M"
"""A state disk that the second checkpoint fills."""
ASKED_AT = ("in a step", "in the model's upload", "while the gate works")


def weights(world: World) -> dict[str, bytes]:
    """Weights of the only run of a store, to the bit."""
    (run,) = world.runs()
    path = world.client.download_artifacts(run.info.run_id, "weights/weights.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def losses(world: World, whole: World) -> list[str]:
    """What of a run is not as in the one that nothing happened to."""
    runs = world.runs()
    if len(runs) != 1 or runs[0].info.status != "FINISHED":
        return [f"{len(runs)} runs: {', '.join(run.info.status for run in runs)}"]
    (run,), (intact,) = runs, whole.runs()
    lost = []
    if weights(world) != weights(whole):
        lost.append("weights differ")
    if world.history(run) != whole.history(intact):
        lost.append("metric history differs")
    if artifacts(world, run.info.run_id) != artifacts(whole, intact.info.run_id):
        lost.append("artifacts differ")
    if len(world.client.search_logged_models([run.info.experiment_id])) != 1:
        lost.append("not one logged model")
    if len(world.client.search_model_versions("name = 'cxr-classifier-demo'")) != 1:
        lost.append("not one version")
    if any((world.folder / "state" / "runs").iterdir()):
        lost.append("something is left on the disk")
    return lost


def well(done: subprocess.CompletedProcess[str]) -> None:
    """Check that a command ended well."""
    if done.returncode != 0:
        raise RuntimeError(f"status {done.returncode}:\n{done.stderr[-4000:]}")


def undisturbed(world: World) -> float:
    """Type the command once; seconds it takes."""
    begin = time.monotonic()
    well(world.type())
    return time.monotonic() - begin


def killed_at_random(world: World, chance: random.Random, longest: float) -> int:
    """Type the command and kill it after a random time, until it ends well; count the kills."""
    for kills in range(MOST_ATTEMPTS):
        process = world.start()
        try:
            _, told = process.communicate(timeout=chance.uniform(0.2, longest))
            if process.returncode != 0:
                raise RuntimeError(
                    f"attempt {kills + 1} ended with {process.returncode}:\n{told[-4000:]}"
                )
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    raise RuntimeError(f"not finished after {MOST_ATTEMPTS} attempts")


def killed_at(world: World, whole: World, *, moment: str) -> list[str]:
    """Kill the command at a moment, then type it again."""
    died = world.type(moment)
    well(world.type())
    return losses(world, whole) + ["(not killed)"] * (died.returncode != -signal.SIGKILL)


def asked_at(world: World, whole: World, *, moment: str, signals: str) -> list[str]:
    """Ask the command to end at a moment, then type it again."""
    world.type(moment, signals)
    found = [run.info.status for run in world.runs()]
    well(world.type())
    wrong = [] if found == ["KILLED"] else [f"was {', '.join(found) or 'no run'} then"]
    return losses(world, whole) + wrong


def damaged_checkpoint(world: World, whole: World) -> list[str]:
    """Kill the command, change a byte of the newest checkpoint, type it again."""
    world.type(MOMENTS["behind the first epoch"])
    newest = max(world.folder.glob("state/runs/*/checkpoints/*"), key=lambda p: p.stat().st_mtime)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    well(world.type())
    return losses(world, whole)


def full_disk(world: World, whole: World) -> list[str]:
    """Let the state disk fill in the middle of the run, then make room and type it again."""
    state = world.folder / "state"
    state.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(state)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        failed = world.type()
        found = [run.info.status for run in world.runs()]
        subprocess.run(["mount", "-o", "remount,size=500M", str(state)], check=True)
        well(world.type())
        right = failed.returncode == 2 and found == ["FAILED"]
        return losses(world, whole) + [f"status {failed.returncode}, {found}"] * (not right)
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


def dead_server(world: World, whole: World) -> list[str]:
    """Let the tracking server die in the first epoch, and come back some seconds later."""
    port = free_port()
    store, world.uri = world.uri, f"http://127.0.0.1:{port}"
    with serve_mlflow(store, world.folder, port=port):
        process = world.start()
        assert process.stderr
        next(line for line in process.stderr if line.startswith("epoch"))
    time.sleep(5)
    with serve_mlflow(store, world.folder, port=port):
        _, told = process.communicate()
        if process.returncode:
            raise RuntimeError(told[-4000:])
        well(world.run(["-m", "cxr_mlflow", "sync"]))
        return losses(world, whole)


FAULTS: dict[str, Callable[[World, World], list[str]]] = {
    **{f"SIGKILL {name}": partial(killed_at, moment=at) for name, at in MOMENTS.items()},
    **{
        f"{words} {name}": partial(asked_at, moment=MOMENTS[name], signals=signals)
        for signals, words in ASKED.items()
        for name in ASKED_AT
    },
    "newest checkpoint damaged": damaged_checkpoint,
    "state disk full in the middle": full_disk,
    "tracking server dies in the middle, comes back": dead_server,
}


def main() -> None:
    """Inject faults, print the table."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # it would tear the table
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=5, help="runs killed at random moments")
    options.add_argument("--each", type=int, default=1, help="runs for each chosen fault")
    options.add_argument("--only", default="", help="regular expression for names of chosen faults")
    options.add_argument("--seed", type=int, default=0)
    told = options.parse_args()
    chance = random.Random(told.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_demo(folder / "data" / "demo", num_per_class=24)

        def world(name: str) -> World:
            (folder / name).mkdir()
            return World(folder / name, data, folder / "cache")

        whole = world("whole")
        undisturbed(whole)
        print("| fault | runs | signals | lost |")
        print("|---|---:|---:|---|")
        for number, (name, fault) in enumerate(FAULTS.items()):
            if not re.search(told.only, name):
                continue
            found: Counter[str] = Counter()
            for again in range(told.each):
                found.update(fault(world(f"chosen-{number}-{again}"), whole))
            row(name, told.each, told.each, found)
        if not told.times:
            return
        again = world("again")  # the machine may be faster now, or slower
        seconds = undisturbed(again)
        row(f"none ({seconds:.0f} s)", 1, 0, Counter(losses(again, whole)))
        found, kills = Counter(), 0
        for number in range(told.times):
            one = world(f"random-{number}")
            kills += killed_at_random(one, chance, 1.2 * seconds)
            found.update(losses(one, whole))
        row("SIGKILL at random moments, again and again", told.times, kills, found)


def row(fault: str, runs: int, signals: int, lost: Counter[str]) -> None:
    """Print a row of the table."""
    words = [f"{what} ({times} of {runs})" for what, times in lost.items()]
    print(f"| {fault} | {runs} | {signals} | {'; '.join(words) or 'nothing'} |", flush=True)


if __name__ == "__main__":
    main()
