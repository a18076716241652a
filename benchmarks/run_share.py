"""How much of a run is not training: start, data, audit, evaluation, figures, MLflow, registration.

Runs `cxr train` in a fresh process with a fresh sqlite store and its own cache, twice or more: the
first run reads and audits the data, the others find what it kept. Takes the options of `cxr train`.

    python benchmarks/run_share.py --runs 2 --data-dir DIR --model resnet18 --image-size 112
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.machine import machine, markdown, versions
from cxr_mlflow.__main__ import leave

CHILD = "CXR_RUN_SHARE_CHILD"
STAGES = {
    "data": ("prepare",),
    "first weights": ("load_model",),
    "audit": ("audit_study",),
    "record of the data": ("start_record",),
    "training and validation": ("train",),
    "test": ("score_split", "judge", "record_assessment", "source_controls"),
    "sheets": ("draw_sheets",),
    "saliency": ("explain_trained",),
    "source probe": ("probe_sources",),
    "export": ("tell_network",),
    "words": ("tell_version", "card_of", "tell_card", "record_end", "tell_note"),
}
"""Stage -> functions of `cxr_mlflow.pipeline` that make it up."""


def measure(args: list[str], result: Path) -> None:
    """Run `cxr train` in this process and write what each stage took."""
    spans = {"imports": -time.time()}
    begun = psutil.Process().create_time()
    spans["interpreter"] = -spans["imports"] - begun
    from cxr_mlflow import pipeline
    from cxr_mlflow.cli import main

    spans["imports"] += time.time()
    steps: list[float] = []

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = time.time()
            try:
                found = function(*args, **kwargs)
                if stage == "training and validation":
                    steps.extend(found.history["train/seconds"])
                return found
            finally:
                spans[stage] = spans.get(stage, 0.0) + time.time() - before

        return call

    for stage, names in STAGES.items():
        for name in names:
            setattr(pipeline, name, timed(stage, getattr(pipeline, name)))
    main(["train", *args], standalone_mode=False)
    spans["training"] = sum(steps)
    spans["validation"] = spans.pop("training and validation") - spans["training"]
    spans["epochs"] = len(steps)
    spans["ended"] = time.time()
    result.write_text(json.dumps(spans))


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--runs", default=2, help="Runs, one after the other, on one cache.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(runs: int, options: tuple[str, ...]) -> None:
    """Print what each stage of each run took."""
    with tempfile.TemporaryDirectory() as place:
        found = [run(list(options), Path(place), number) for number in range(runs)]
    names = list(dict.fromkeys(name for spans in found for name in spans))
    rows = [[name, *(f"{spans[name]:.1f}" for spans in found)] for name in names]
    click.echo(markdown(["seconds", *(f"run {number + 1}" for number in range(runs))], rows))
    for number, spans in enumerate(found):
        whole, rest = spans["whole"], spans["not training"]
        click.echo(
            f"run {number + 1}: {rest:.1f} s of {whole:.1f} s ({rest / whole:.1%}) not training"
        )
    click.echo(f"cxr train {' '.join(options)}; {machine()}; {versions('torch', 'mlflow')}")


def run(options: list[str], place: Path, number: int) -> dict[str, float]:
    """One run in a process of its own; seconds by stage."""
    result = place / f"{number}.json"
    environment = {
        **os.environ,
        CHILD: str(result),
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / f'{number}.db'}",
        "CXR_STATE_DIR": str(place / f"state-{number}"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    words = [sys.executable, __file__, *options, "--cache-dir", str(place / "cache")]
    begun = time.time()
    # MLflow puts a run's files beside the folder it is started in.
    subprocess.run(words, env=environment, cwd=place, check=True)
    ended = time.time()
    spans = json.loads(result.read_text())
    spans["exit"] = ended - spans.pop("ended")
    epochs = spans.pop("epochs")
    known = sum(spans.values())
    spans["MLflow and all else"] = ended - begun - known
    spans["whole"] = ended - begun
    spans["not training"] = spans["whole"] - spans["training"] - spans["validation"]
    spans["epochs"] = epochs
    return spans


if __name__ == "__main__":
    if CHILD in os.environ:
        atexit.register(leave)  # as `cxr` ends
        measure(sys.argv[1:], Path(os.environ[CHILD]))
    else:
        main()
