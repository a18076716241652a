"""`cxr evaluate`: score a finished model on a folder of images, as a run of its own."""

from __future__ import annotations

from typing import Any

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import EvaluateConfig
from cxr_mlflow.config import DataConfig, TrackingConfig


@click.command(cls=CxrCommand)
@config_options(EvaluateConfig)
@config_options(DataConfig, only=["data_dir", "split_file", "on_bad_file", "cache_dir"])
@config_options(TrackingConfig, only=["experiment", "run_name", "bootstrap_samples"])
def evaluate(
    data_dir: str, split_file: str, on_bad_file: Any, cache_dir: str, **options: Any
) -> None:
    """Score a model on a folder of X-rays: all metrics, intervals and figures, in a new run."""
    names = ("model_uri", "subset")
    asked = EvaluateConfig(**{name: options.pop(name) for name in names})
    data = DataConfig(
        data_dir=data_dir, split_file=split_file, on_bad_file=on_bad_file, cache_dir=cache_dir
    )
    tracking = TrackingConfig(**options)
    from cxr_mlflow.assess import evaluate_model  # loads mlflow and onnxruntime: not for --help

    for line in evaluate_model(asked, data, tracking).lines:
        click.echo(line)
