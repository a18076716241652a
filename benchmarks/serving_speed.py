"""How fast a logged model answers, against the network alone and against MLflow's torch flavour.

What is compared runs in turn in one process, a round each, so that a machine whose speed drifts
slows all alike. Parts: `batches` (images/s from PNG bytes over ONNX Runtime's on arrays that are
ready), `single` (latency of one image), `start` (fresh process to first answer), `options` (graph
optimisation, spinning, batch size) and `int8` (quantised networks: speed, and what they change).

    python benchmarks/serving_speed.py --data-dir DIR --part batches --part single
    python benchmarks/serving_speed.py --data-dir DIR --part int8 --model FOLDER_OR_URI
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import click
import mlflow
import numpy as np
import pandas as pd
import psutil
from numpy.typing import NDArray

from benchmarks.machine import machine, markdown, versions
from benchmarks.serving_networks import (
    in_turn,
    int8,
    open_session,
    options,
    own_seconds,
    per_image,
    run,
    spread,
    used_by_others,
)
from cxr_mlflow.data.preprocess import (
    apply_mask,
    decode_grey,
    decode_mask,
    fit_to_size,
    network_input,
)
from cxr_mlflow.models import MODELS
from cxr_mlflow.serving.package import ship_code, write_folder
from cxr_mlflow.serving.scorer import BATCH
from cxr_mlflow.serving.scorer_config import CONFIG_FILE, MODEL_FILE, ScorerConfig

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
THREADS = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
TELL = """
import time
print(time.time(), open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""
FIRST_ANSWERS = {
    "our pyfunc, PNG bytes": """
import sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
image, mask = [open(path, "rb").read() for path in sys.argv[2:]]
model.predict(pd.DataFrame({"image": [image], "mask": [mask]}))
""",
    "mlflow.pytorch as pyfunc, a float array": """
import sys, mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
model.predict(np.zeros((1, 1, int(sys.argv[2]), int(sys.argv[2])), np.float32))
""",
    "our model folder without MLflow, PNG bytes": """
import sys, pathlib
from cxr_mlflow.serving.scorer import Scorer
folder, *files = map(pathlib.Path, sys.argv[1:])
image, mask = [file.read_bytes() for file in files]
Scorer.load(folder).score_bytes([image], [mask])
""",
}


@dataclass(frozen=True)
class Subject:
    """A model to measure: the folder MLflow loads, the plain model folder, and what it says."""

    pyfunc: Path
    folder: Path
    config: ScorerConfig

    @property
    def network(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL_FILE


@dataclass(frozen=True)
class Films:
    """Files of the data set: images, and the mask of each."""

    images: list[Path]
    masks: list[Path]

    def table(self, rows: int) -> pd.DataFrame:
        """Rows for a model, the files again and again."""
        pairs = list(islice(cycle(zip(self.images, self.masks, strict=True)), rows))
        return pd.DataFrame(
            {
                "image": [image.read_bytes() for image, _ in pairs],
                "mask": [mask.read_bytes() for _, mask in pairs],
            }
        )

    def arrays(self, subject: Subject, rows: int) -> NDArray[np.float32]:
        """What the network takes, float32 (N, 1, S, S), for the same rows."""
        mode, prepared = subject.config.mask_mode, []
        size = subject.config.image_size
        for image, mask in list(zip(self.images, self.masks, strict=True))[:rows]:
            pair = fit_to_size(decode_grey(image), decode_mask(mask), size, mode)
            prepared.append(apply_mask(*pair, mode))
        return network_input(np.stack(list(islice(cycle(prepared), rows))))[:, None]


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rows: int
    rounds: int
    calls: int
    trained: bool


def batches(subject: Subject, films: Films, effort: Effort, place: Path) -> str:
    """Images/s of a table of many rows."""
    rows, model = effort.rows, mlflow.pyfunc.load_model(str(subject.pyfunc))
    table, arrays = films.table(rows), films.arrays(subject, rows)
    joint, single = open_session(subject.network, THREADS), open_session(subject.network, 1)

    def side_by_side() -> None:
        parts = [arrays[at : at + BATCH] for at in range(0, rows, BATCH)]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda part: run(single, part), parts))

    joined = f"ONNX Runtime, its defaults, {THREADS} threads on {BATCH} arrays at a time"
    taken = in_turn(
        {
            "our pyfunc, from PNG bytes": lambda: model.predict(table),
            joined: lambda: run(joint, arrays),
            f"ONNX Runtime, {THREADS} times one thread on {BATCH} arrays": side_by_side,
        },
        effort.rounds,
    )
    ours, lines = taken["our pyfunc, from PNG bytes"], []
    for name, (seconds, _) in taken.items():
        ratios = [b / a for a, b in zip(ours.seconds, seconds, strict=True)]
        speed = spread([rows / s for s in seconds])
        lines.append([name, speed, spread(ratios, 3), per_image(taken[name], rows)])
    head = [f"{rows} rows", "images/s", "our pyfunc over it", "core ms an image"]
    return markdown(head, lines)


def single(subject: Subject, films: Films, effort: Effort, place: Path) -> str:
    """Milliseconds of one image."""
    calls, model = effort.calls, mlflow.pyfunc.load_model(str(subject.pyfunc))
    tables, arrays = films.table(calls), films.arrays(subject, calls)
    spins = open_session(subject.network, THREADS)
    sleeps = open_session(subject.network, THREADS, spinning=False)
    rows = cycle(range(calls))
    taken = in_turn(
        {
            "our pyfunc, from PNG bytes": lambda: model.predict(tables.iloc[[next(rows)]]),
            "ONNX Runtime, its defaults": lambda: run(spins, arrays[[next(rows)]]),
            "ONNX Runtime without spinning": lambda: run(sleeps, arrays[[next(rows)]]),
        },
        calls,
    )
    lines = [
        [
            name,
            *(f"{1000 * np.percentile(times.seconds, share):.1f}" for share in (50, 99)),
            per_image(times, 1),
        ]
        for name, times in taken.items()
    ]
    return markdown([f"one image, {calls} calls", "p50 ms", "p99 ms", "core ms"], lines)


def start(subject: Subject, films: Films, effort: Effort, place: Path) -> str:
    """Seconds from the start of a process to its first answer, and its memory."""
    torch_model, size = place / "torch", subject.config.image_size
    mlflow.pytorch.save_model(
        MODELS["resnet18"](len(CLASSES)).eval(),
        str(torch_model),
        pip_requirements=["torch"],
        input_example=np.zeros((1, 1, size, size), np.float32),
    )
    files = [str(films.images[0]), str(films.masks[0])]
    arguments = ([subject.pyfunc, *files], [torch_model, size], [subject.folder, *files])
    peaks: dict[str, list[float]] = {name: [] for name in FIRST_ANSWERS}
    seconds: dict[str, list[float]] = {name: [] for name in FIRST_ANSWERS}
    for _ in range(effort.rounds):
        for name, words in zip(FIRST_ANSWERS, arguments, strict=True):
            begun = time.time()
            done = subprocess.run(
                [sys.executable, "-c", FIRST_ANSWERS[name] + TELL, *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            ended, peak = map(float, done.stdout.split()[-2:])
            seconds[name].append(ended - begun)
            peaks[name].append(peak / 1000)
    lines = [[name, spread(seconds[name], 2), spread(peaks[name], 0)] for name in FIRST_ANSWERS]
    return markdown(["a fresh process", "s to the first answer", "peak MB"], lines)


MEASURES: dict[str, Callable[[Subject, Films, Effort, Path], str]] = {
    "batches": batches,
    "single": single,
    "start": start,
    "options": lambda subject, films, effort, place: options(
        subject.network, films.arrays(subject, 64), effort.rounds, place
    ),
    "int8": lambda subject, films, effort, place: int8(
        subject.network,
        films.arrays(subject, len(films.images)),
        effort.rounds,
        place,
        subject.config.temperature if effort.trained else None,
    ),
}


@click.command()
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--model", help="Folder or URI of a logged model; else resnet18, random weights.")
@click.option("--image-size", "sizes", multiple=True, default=(112, 224), help="Without --model.")
@click.option("--part", "parts", multiple=True, type=click.Choice(list(MEASURES)))
@click.option("--rows", default=256, help="Rows of the table in `batches`.")
@click.option("--rounds", default=5, help="Rounds of each contender.")
@click.option("--calls", default=200, help="Calls of each contender in `single`.")
@click.option("--films", "count", default=240, help="Most images that are read.")
def main(
    data_dir: Path,
    model: str | None,
    sizes: Sequence[int],
    parts: Sequence[str],
    rows: int,
    rounds: int,
    calls: int,
    count: int,
) -> None:
    """Print a table for each part (all of them without --part)."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    films, effort = find_films(data_dir, count), Effort(rows, rounds, calls, bool(model))
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if model:
            subjects = [find_subject(model, place)]
        else:
            click.echo("RANDOM WEIGHTS: resnet18 as initialised; speed does not depend on weights")
            subjects = [make_subject(place / str(size), size) for size in sizes]
        for part in parts or MEASURES:
            for subject in subjects:
                before = psutil.cpu_times(), own_seconds(), time.time()
                table = MEASURES[part](subject, films, effort, Path(tempfile.mkdtemp(dir=place)))
                others = used_by_others(*before)
                name = f"{subject.config.image_size} px, {subject.config.mask_mode}"
                click.echo(f"\n{part}, {name}, others used {others:.2f} cores\n\n{table}")
    packages = versions("onnxruntime", "pillow", "numpy", "mlflow", "torch")
    click.echo(f"\n{THREADS} threads, {machine()}, {packages}")


def find_films(data_dir: Path, count: int) -> Films:
    """Images that have a mask, spread evenly over the classes' folders."""
    found = [path for path in sorted(data_dir.rglob("images/*.*")) if mask_of(path).is_file()]
    if not found:
        raise click.BadParameter(f"{data_dir}: no CLASS/images with CLASS/masks beside it")
    found = found[:: max(1, len(found) // count)][:count]
    return Films(found, [mask_of(path) for path in found])


def mask_of(image: Path) -> Path:
    """Where the data set has the mask of an image."""
    return image.parents[1] / "masks" / f"{image.stem}.png"


def make_subject(place: Path, size: int) -> Subject:
    """A resnet18 of random weights, logged as `package.log_model` does, but to a folder."""
    told = {"classes": CLASSES, "image_size": size, "mask_mode": "lungs", "trained_on": {}}
    folder = write_folder(place / "model", MODELS["resnet18"](len(CLASSES)), **told)
    return as_pyfunc(folder, place)


def as_pyfunc(folder: Path, place: Path) -> Subject:
    """Save a plain model folder as the MLflow model that `package.log_model` would log."""
    code, script = ship_code(place)
    sys.path.insert(0, str(place))
    mlflow.pyfunc.save_model(
        str(place / "logged"),
        python_model=str(script),
        artifacts={"model": str(folder)},
        code_paths=[str(code)],
        pip_requirements=["mlflow"],
    )
    sys.path.remove(str(place))
    return Subject(place / "logged", folder, ScorerConfig.read(folder / CONFIG_FILE))


def find_subject(model: str, place: Path) -> Subject:
    """A model that is there: a plain model folder, or what MLflow finds."""
    if (Path(model) / CONFIG_FILE).is_file():
        return as_pyfunc(Path(model), place)
    logged = Path(mlflow.artifacts.download_artifacts(model))
    configs = sorted(logged.glob(f"artifacts/*/{CONFIG_FILE}"))
    if not configs:
        raise click.BadParameter(f"--model={model}: not a model that this project logged")
    return Subject(logged, configs[0].parent, ScorerConfig.read(configs[0]))


if __name__ == "__main__":
    main()
