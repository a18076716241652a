"""`cxr experiment run`: train every cell of an experiment file that is not trained yet."""

from __future__ import annotations

from typing import Any

import click

from cxr_mlflow.cli.options import CxrCommand, CxrGroup, config_options
from cxr_mlflow.command_config import ExperimentConfig
from cxr_mlflow.config import TrackingConfig


@click.group(cls=CxrGroup)
def experiment() -> None:
    """Train and compare many configurations, each with several seeds."""


@experiment.command(cls=CxrCommand)
@config_options(ExperimentConfig)
@config_options(TrackingConfig, only=["experiment"])
def run(experiment: str, **options: Any) -> None:
    """Train what is missing of the experiment FILE, compare its rows, register the best model.

    Typed again, it goes on where it stopped; when all cells are finished it does nothing. The
    exit status is 1 if cells failed, 3 if cells are left though none failed (--max-time was up, a
    server that does not answer), and 130 after Ctrl-C.
    """
    asked = ExperimentConfig(**options)
    from cxr_mlflow.experiment.session import run_plan  # loads torch and mlflow

    result = run_plan(asked, experiment)
    for line in result.lines:
        click.echo(line)
    if result.status:
        raise click.exceptions.Exit(result.status)
