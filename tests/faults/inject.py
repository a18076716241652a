"""Injects faults into real trainings and prints what was lost: `make faults`, or with `--times N`.

Every fault is a SIGKILL: at a random moment of a run's whole life, or at a chosen one (see
`test_killed.py`). The same command is typed until it ends well; then weights, metric history,
artifacts, models and versions are compared with a run that nothing happened to.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.torch import load_file

from cxr_mlflow.data.demo import write_demo
from tests.faults.test_killed import MOMENTS, artifacts
from tests.faults.world import World

MOST_ATTEMPTS = 40


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


def undisturbed(world: World) -> float:
    """Type the command once; seconds it takes."""
    begin = time.monotonic()
    if (done := world.type()).returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
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


def killed_at(world: World, moment: str) -> int:
    """Kill the command at a moment, then type it again; count the kills."""
    died = world.type(moment)
    done = world.type()
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return int(died.returncode == -signal.SIGKILL)


def main() -> None:
    """Inject faults, print the table."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # it would tear the table
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--times", type=int, default=5, help="runs killed at random moments")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only-random", action="store_true", help="no chosen moments")
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
        print("| fault | runs | kills | lost |")
        print("|---|---:|---:|---|")
        for name, moment in ({} if told.only_random else MOMENTS).items():
            one = world(name.replace(" ", "-"))
            kills = killed_at(one, moment)
            print(f"| SIGKILL {name} | 1 | {kills} | {told_of(losses(one, whole))} |", flush=True)
        again = world("again")  # the machine may be faster now, or slower
        seconds = undisturbed(again)
        print(f"| none ({seconds:.0f} s) | 1 | 0 | {told_of(losses(again, whole))} |", flush=True)
        found: Counter[str] = Counter()
        kills = 0
        for number in range(told.times):
            one = world(f"random-{number}")
            kills += killed_at_random(one, chance, 1.2 * seconds)
            found.update(losses(one, whole))
        rest = told_of([f"{what} ({times} of {told.times})" for what, times in found.items()])
        print(f"| SIGKILL at random moments, again and again | {told.times} | {kills} | {rest} |")


def told_of(lost: list[str]) -> str:
    """What was lost, in words."""
    return "; ".join(lost) or "nothing"


if __name__ == "__main__":
    main()
