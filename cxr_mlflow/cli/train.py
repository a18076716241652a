"""`cxr train`: options to a config, the pipeline, the lines a user reads at the end."""

from __future__ import annotations

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.config import SECTIONS, RunConfig


@click.command(cls=CxrCommand)
@config_options(*SECTIONS.values())
def train(**options: object) -> None:
    """Train one model under one imbalance strategy, log everything about it, register it."""
    config = RunConfig.from_options(options)
    from cxr_mlflow.pipeline import run_experiment  # loads torch and mlflow: not for --help

    for line in run_experiment(config).lines:
        click.echo(line)
