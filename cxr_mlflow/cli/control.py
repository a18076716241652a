"""`cxr control`: train control models beside a finished run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import ControlConfig

if TYPE_CHECKING:
    from cxr_mlflow.control_models import Controlled


@click.command(cls=CxrCommand)
@config_options(ControlConfig)
def control(**options: Any) -> None:
    """Train the recipe of RUN_ID on what should not be enough, and write the scores beside its own.

    All but the lungs, and the outline of the lungs: what a model scores on these, the run may have
    scored without reading the lungs. Finished controls are not trained again. The same as
    cxr evaluate RUN_ID --controls.
    """
    asked = ControlConfig(**options)
    from cxr_mlflow.control_models import control_run  # loads torch and mlflow

    show(control_run(asked))


def show(controlled: Controlled) -> None:
    """Print the table of a run and its controls, and what was found."""
    controlled.compared.show()
    for line in controlled.lines:
        click.echo(line)
