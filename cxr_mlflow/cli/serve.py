"""`cxr serve`: a finished model behind HTTP, with limits on what a request may cost."""

from __future__ import annotations

from typing import Any

import click

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import ServeConfig


@click.command(cls=CxrCommand)
@config_options(ServeConfig)
def serve(**options: Any) -> None:
    """Serve a finished model over HTTP until Ctrl+C or SIGTERM. Not for diagnosis.

    MODEL_URI is a model folder or an MLflow URI (models:/NAME@ALIAS, models:/NAME/VERSION).
    Requests are as for `mlflow models serve`. The token that clients must send is read from
    $CXR_SERVE_TOKEN or --token-file.
    """
    config = ServeConfig(**options)
    if ":/" in config.model_uri:
        from cxr_mlflow.tracking.registry import use_registry  # loads mlflow

        use_registry()
    from cxr_mlflow.serving.http_server import serve as serve_model  # loads onnxruntime

    serve_model(config, click.echo)
