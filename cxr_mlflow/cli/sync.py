"""`cxr sync`: send what the tracking server missed."""

from __future__ import annotations

import sys

import click

from cxr_mlflow.cli.options import CxrCommand


@click.command(cls=CxrCommand)
def sync() -> None:
    """Send what runs on this machine told while their tracking server was away.

    Each run goes to the server it was made for. What has arrived is not sent twice; what a living
    process still writes is left to it. Leaves with status 1 if something could not be sent.
    """
    from cxr_mlflow.sync import sync_runs  # loads mlflow

    lines, all_sent = sync_runs()
    for line in lines:
        click.echo(line)
    if not all_sent:
        sys.exit(1)
