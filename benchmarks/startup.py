"""Seconds until a command that computes nothing has answered, beside Python itself and click.

    python -m benchmarks.startup

Help must not wait for torch or MLflow.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import click

from benchmarks.machine import machine, markdown, versions

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import click'": ["-c", "import click"],
    "cxr --help": ["-m", "cxr_mlflow", "--help"],
    "cxr train --help": ["-m", "cxr_mlflow", "train", "--help"],
    "cxr data check --help": ["-m", "cxr_mlflow", "data", "check", "--help"],
    "cxr train --epochs 0 (an error)": ["-m", "cxr_mlflow", "train", "--epochs", "0"],
}


@click.command()
@click.option("--rounds", default=15, help="Each command once a round, in turn.")
def main(rounds: int) -> None:
    """Print the table."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, words in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run([sys.executable, *words], capture_output=True, check=False)
            if number:  # the first warms up
                found[name].append(time.perf_counter() - begun)
    rows = [
        [name, f"{statistics.median(took):.2f}", f"{min(took):.2f}", f"{max(took):.2f}"]
        for name, took in found.items()
    ]
    click.echo(markdown(["command", "median (s)", "least", "most"], rows))
    click.echo(f"{rounds} rounds; {machine()}; {versions('click')}")


if __name__ == "__main__":
    main()
