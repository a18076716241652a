"""`cxr predict`: a finished model labels a folder of images, into a CSV file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import PredictConfig
from cxr_mlflow.config import NONE

LISTED = 20


@click.command(cls=CxrCommand)
@config_options(PredictConfig)
def predict(**options: str) -> None:
    """Label X-rays with a finished model, one row per image. Not for diagnosis.

    Images that cannot be labelled keep a row that says why; then the exit status is 1.
    """
    config = PredictConfig(**options)
    from cxr_mlflow.serving.files import find_images, predict_files, write_table
    from cxr_mlflow.serving.predictor import is_model_folder, open_predictor

    masks = None if config.masks == NONE else Path(config.masks)
    files = find_images(Path(config.input), masks)  # before the model: a typo is told at once
    if not is_model_folder(config.model_uri):
        from cxr_mlflow.tracking.registry import use_registry  # loads mlflow

        use_registry()
    predictor = open_predictor(config.model_uri)
    with click.progressbar(length=len(files), label="labelling", file=sys.stderr) as bar:
        table = predict_files(predictor, files, on_progress=lambda done: bar.update(done - bar.pos))
    write_table(table, Path(config.output))

    bad = table[table["problem"] != ""]
    counts = table.loc[table["problem"] == "", "label"].value_counts()
    told = ", ".join(f"{count} {label}" for label, count in counts.items()) or "none"
    facts = ", ".join(f"{key}={value}" for key, value in predictor.trained_on.items())
    click.echo(f"model: {config.model_uri}" + (f" ({facts})" if facts else ""))
    click.echo(f"labelled {len(table) - len(bad)} of {len(table)} images: {told}")
    click.echo(f"written: {config.output}")
    if len(bad):
        for row in bad.head(LISTED).itertuples():
            click.echo(f"not labelled: {row.image}: {row.problem}", err=True)
        if len(bad) > LISTED:
            click.echo(f"... and {len(bad) - LISTED} more; see {config.output}", err=True)
        sys.exit(1)
