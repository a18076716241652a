"""`cxr compare`: runs, experiments or versions on one table, with intervals and verdicts."""

from __future__ import annotations

from pathlib import Path

import click

from cxr_mlflow.cli.options import CxrCommand


@click.command(cls=CxrCommand)
@click.argument("what", nargs=-1, required=True)
@click.option(
    "--baseline",
    help="Row all others are compared with, or words that only its label has: oversample, v1, "
    "@champion. Else every pair.",
)
@click.option(
    "--output",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Report file to write, .html, .md or .csv; may be given several times.",
)
@click.option("--log", is_flag=True, help="Log the report on the experiment's parent run.")
@click.option(
    "--bootstrap-samples",
    type=int,
    help="Resamples; by default as many as an experiment's runs were told, else 2000.",
)
@click.option("--experiment", default="chest-xray", help="MLflow experiment of a FILE's runs.")
def compare(
    what: tuple[str, ...],
    baseline: str | None,
    output: tuple[Path, ...],
    log: bool,
    bootstrap_samples: int | None,
    experiment: str,
) -> None:
    """Compare what was tested on the same images, and say what differs beyond chance.

    WHAT is an experiment file, its name or the id of its parent run, ids of training runs (the
    first digits are enough), models:/NAME for all versions of a registered model, or
    models:/NAME/VERSION. Runs that differ in nothing but the seed are one row.
    """
    from cxr_mlflow import compare as comparing  # loads mlflow
    from cxr_mlflow.compared import check_output

    for path in output:
        check_output(path)
    named = comparing.find_runs(what, experiment)
    parent = comparing.parent_to_log_on(named) if log else None
    for remark in named.remarks:
        click.echo(f"! {remark}")
    compared = comparing.compare_runs(named, what, baseline=baseline, samples=bootstrap_samples)
    compared.show()
    for path in output:
        compared.write(path)
        click.echo(f"report    {path}")
    if parent:
        compared.log_to(parent.run_id, parent.experiment_id)
        click.echo(f"logged on {parent.run_id}")
