"""`cxr control`: train control models beside a finished run."""

from __future__ import annotations

from typing import Any

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import ControlConfig


@click.command(cls=CxrCommand)
@config_options(ControlConfig)
def control(**options: Any) -> None:
    """Train the recipe of RUN_ID on what should not be enough, and write the scores beside its own.

    All but the lungs, and the outline of the lungs: what a model scores on these, the run may have
    scored without reading the lungs. Finished controls are not trained again.
    """
    asked = ControlConfig(**options)
    from cxr_mlflow.control_models import control_run  # loads torch and mlflow

    controlled = control_run(asked)
    controlled.compared.show()
    for line in controlled.lines:
        click.echo(line)
