"""CPU minutes from the start of a process to a validation macro F1, against the plain pipeline.

The plain pipeline (`pipelines/plain.py`) has a constant learning rate, as tutorials have it, and is
given several; of ours every length is a run of its own, because its schedule ends with it. Ours
starts from an empty cache: decoding, the search for duplicates and the split are in its minutes.
Validation is in the minutes of both.

    python -m benchmarks.time_to_quality --data-dir DIR --weights FILE --image-size 112
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.machine import machine, markdown, versions
from benchmarks.pipelines.task import Report, Task
from benchmarks.pipelines_compared import run, table_of


def minutes_to(report: Report, target: float) -> float:
    """CPU minutes until an epoch ended at the target or above; infinite if none did."""
    return min(
        (spent for spent, score in report.validation if score >= target), default=float("inf")
    )


@click.command()
@click.option("--data-dir", required=True)
@click.option("--weights", default="", help="First weights of ResNet18; random by default.")
@click.option("--image-size", default=112)
@click.option("--plain-lr", default="0.001,0.0003,0.0001", help="Learning rates of the plain one.")
@click.option("--plain-epochs", default=6)
@click.option("--ours", default="2:0.5,3:0.5,4:0.5,6:0.5,6:1", help="EPOCHS:START_SIZE, by comma.")
@click.option("--freeze", default=0, help="First stages that ours leaves as they are.")
@click.option("--lr", default=0.001, help="Peak learning rate of ours.")
@click.option("--targets", default="0.78,0.80,0.82,0.84,0.86")
@click.option("--seed", default=0)
def main(
    data_dir: str,
    weights: str,
    image_size: int,
    plain_lr: str,
    plain_epochs: int,
    ours: str,
    freeze: int,
    lr: float,
    targets: str,
    seed: int,
) -> None:
    """Print the table."""
    wanted = [float(target) for target in targets.split(",")]
    weights = weights and str(Path(weights).resolve())
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table, classes = table_of(data_dir, image_size, folder)
        task = Task(
            table=str(table),
            weights=weights,
            classes=classes,
            image_size=image_size,
            epochs=plain_epochs,
            batch_size=64,
            lr=lr,
            seed=seed,
            report="",
        )

        def tell(name: str, report: Report) -> None:
            reached = [f"{minutes_to(report, target):.1f}" for target in wanted]
            scores = " ".join(f"{score:.3f}" for _, score in report.validation)
            rows.append(
                [name, *reached, f"{report.validation[-1][0]:.1f}", f"{report.test_f1:.3f}"]
            )
            click.echo(f"{name}: val {scores}; {rows[-1]}", err=True)

        for row in ours.split(","):
            epochs, start = row.split(":")
            cache = folder / f"cache-{len(rows)}"
            told = (f"start_size={start}", f"freeze={freeze}", f"cache_dir={cache}")
            options = (str(Path(data_dir).resolve()), *told)
            found = run("ours", replace(task, epochs=int(epochs)), folder, *options)
            tell(f"ours, {epochs} epochs from {start} of the size", found)
        for rate in filter(None, plain_lr.split(",")):
            tell(f"plain, lr {rate}", run("plain", replace(task, lr=float(rate)), folder))
    head = ["CPU minutes to", *map(str, wanted), "in all", "test macro F1"]
    click.echo(markdown(head, rows))
    click.echo(f"resnet18, {image_size} px, weights {Path(weights).name or 'random'}, seed {seed}")
    click.echo(f"{machine()}; {versions('torch')}")


if __name__ == "__main__":
    main()
