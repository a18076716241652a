"""`cxr promote`: make a registered version the champion, by comparison or by hand."""

from __future__ import annotations

import click

from cxr_mlflow.cli.options import CxrCommand


@click.command(cls=CxrCommand)
@click.argument("name")
@click.argument("version")
@click.option("--force", is_flag=True, help="Move the alias whatever the comparison says.")
@click.option("--bootstrap-samples", default=2000, help="Resamples behind the interval.")
def promote(name: str, version: str, force: bool, bootstrap_samples: int) -> None:
    """Make VERSION of the registered model NAME the champion, if it beats the present one.

    Both must have been tested on the same images; the 95 % interval of their difference in macro
    F1 must lie above 0. The exit status is 1 where the champion stays.
    """
    from cxr_mlflow.tracking import registry  # loads mlflow

    registry.use_registry()
    verdict = registry.promote(name, version, samples=bootstrap_samples, force=force)
    if verdict.promoted:
        click.echo(f"{name} version {version} is the champion: {verdict.reason}")
        return
    click.echo(f"not promoted: {verdict.reason}")
    if verdict.champion != version:
        click.echo("To move the alias all the same: --force")
        raise click.exceptions.Exit(1)
