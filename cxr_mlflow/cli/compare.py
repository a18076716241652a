"""`cxr compare`: runs, experiments or versions on one table, with intervals and verdicts."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_mlflow.cli.options import CxrCommand


@click.command(cls=CxrCommand)
@click.argument("what", nargs=-1, required=True)
@click.option("--baseline", help="Label of the row all others are compared with; else every pair.")
@click.option(
    "--output",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Report file to write, .html, .md or .csv; may be given several times.",
)
@click.option("--log", is_flag=True, help="Log the report on the experiment's parent run.")
@click.option("--bootstrap-samples", default=2000, show_default=True, help="Resamples.")
@click.option("--experiment", default="chest-xray", help="MLflow experiment of a FILE's runs.")
def compare(
    what: tuple[str, ...],
    baseline: str | None,
    output: tuple[Path, ...],
    log: bool,
    bootstrap_samples: int,
    experiment: str,
) -> None:
    """Compare what was tested on the same images, and say what differs beyond chance.

    WHAT is an experiment file or the id of its parent run, ids of training runs, models:/NAME for
    all versions of a registered model, or models:/NAME/VERSION. Runs that differ in nothing but
    the seed are one row.
    """
    from cxr_mlflow import compare as comparing  # loads mlflow

    for path in output:
        comparing.check_output(path)
    compared = comparing.compare_runs(
        what, experiment=experiment, baseline=baseline, samples=bootstrap_samples
    )
    compared.show()
    for path in output:
        compared.write(path)
        click.echo(f"report    {path}")
    if log:
        click.echo(f"logged on {comparing.log_on_parent(compared, what, experiment)}")
