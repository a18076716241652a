"""Our training beside what others would write: images/s, start-up, memory, macro F1 reached.

Same network, first weights, images, split, size, batch and epochs; each pipeline in a process of
its own, in turn. The others' packages are not the project's: `make bench-env` puts them into
`.venv-bench`.

    .venv-bench/bin/python -m benchmarks.pipelines_compared --data-dir DIR --weights FILE \
        --image-size 64 --epochs 3
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks.machine import machine, markdown, versions
from benchmarks.pipelines.task import Report, Task
from cxr_mlflow.config import DataConfig
from cxr_mlflow.data.prepare import prepare

PIPELINES = {
    "ours": "ours",
    "plain": "plain",
    "lightning": "with_lightning",
    "timm": "with_timm",
    "fastai": "with_fastai",
}
"""Name -> module of `benchmarks.pipelines`."""


def table_of(data_dir: str, image_size: int, folder: Path) -> tuple[Path, int]:
    """Write the split as a table of paths; make our cache on the way, so that it is warm."""
    study = prepare(DataConfig(data_dir=data_dir, image_size=image_size))
    table = study.catalog.table[["path", "mask_path", "label"]].copy()
    for split in ("train", "val", "test"):
        table.loc[table.index[study.split.rows(split)], "split"] = split
    path = folder / "table.csv"
    table.to_csv(path, index=False)
    return path, len(study.catalog.classes)


def run(name: str, task: Task, folder: Path, *more: str) -> Report:
    """Train with one pipeline in a process of its own."""
    module, _, _ = name.partition(" ")
    told = replace(task, report=str(folder / "report.json"))
    (folder / "task.json").write_text(json.dumps(asdict(told)))
    words = [sys.executable, "-m", f"benchmarks.pipelines.{PIPELINES[module]}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*words, str(folder / "task.json"), *more],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"{name}: {done.stderr.strip()[-2000:]}")
    return Report(**json.loads(Path(told.report).read_text()))


@click.command()
@click.option("--data-dir", required=True)
@click.option("--weights", default="", help="First weights of ResNet18; random by default.")
@click.option("--image-size", default=64)
@click.option("--epochs", default=3)
@click.option("--batch-size", default=64)
@click.option("--lr", default=0.001)
@click.option("--seed", default=0)
@click.option("--only", default=",".join(PIPELINES), help="Pipelines, by comma.")
def main(data_dir: str, weights: str, only: str, **settings: int) -> None:
    """Print the table."""
    weights = weights and str(Path(weights).resolve())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table, classes = table_of(data_dir, settings["image_size"], folder)
        task = Task(table=str(table), weights=weights, classes=classes, report="", **settings)
        rows, ours = [], 0.0
        for name in only.split(","):
            more = (str(Path(data_dir).resolve()),) if name == "ours" else ()
            found = run(name, task, folder, *more)
            speed = found.images / found.seconds
            ours = ours or speed
            rows.append(
                [
                    name,
                    f"{speed:.1f}",
                    f"{speed / ours:.2f}",
                    f"{found.first_step:.1f}",
                    f"{found.peak_mb:.0f}",
                    f"{max(score for _, score in found.validation):.3f}",
                    f"{found.test_f1:.3f}",
                    f"{found.validation[-1][0]:.1f}",
                ]
            )
            click.echo(f"{rows[-1]}", err=True)
    head = ["pipeline", "images/s", "of ours", "first step after (s)", "peak MB"]
    head += ["best val macro F1", "test macro F1", "CPU minutes"]
    click.echo(markdown(head, rows))
    click.echo(f"resnet18, {settings}, weights {Path(weights).name or 'random'}; {machine()}")
    click.echo(versions("torch", "lightning", "timm", "fastai"))


if __name__ == "__main__":
    main()
