"""The `cxr` command. Everything heavy is imported inside the commands: --help takes a blink."""

from __future__ import annotations

import click

from cxr_mlflow import __version__
from cxr_mlflow.cli.compare import compare
from cxr_mlflow.cli.control import control
from cxr_mlflow.cli.data import data
from cxr_mlflow.cli.evaluate import evaluate
from cxr_mlflow.cli.experiment import experiment
from cxr_mlflow.cli.options import CONTEXT, CxrGroup
from cxr_mlflow.cli.predict import predict
from cxr_mlflow.cli.promote import promote
from cxr_mlflow.cli.serve import serve
from cxr_mlflow.cli.sync import sync
from cxr_mlflow.cli.train import train


@click.group(cls=CxrGroup, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="cxr")
def main() -> None:
    """Train, compare and serve chest X-ray classifiers, tracked in MLflow. Not for diagnosis."""


for command in (train, evaluate, predict, experiment, compare, control, data, promote, sync, serve):
    main.add_command(command)
