"""`cxr evaluate`: score a finished model on a folder of images, as a run of its own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from cxr_mlflow.cli.control import show
from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.command_config import ControlConfig, EvaluateConfig
from cxr_mlflow.config import AUTO, DataConfig, TrackingConfig, flag
from cxr_mlflow.errors import InputError

DATA = ("data_dir", "split_file", "source_file", "on_bad_file", "cache_dir")
FOR_CONTROLS = ("data_dir", "cache_dir")
"""Of the data options, those that mean something where the run's own images are used."""
HELP = {field.name: field.metadata["help"] for field in fields(EvaluateConfig)}


class ModelFirst(CxrCommand):
    """A command whose --model-uri may also be given by its place, as `cxr evaluate MODEL`."""

    allow_extra_args = True

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the place of the model in the usage line."""
        return ["[MODEL]", *super().collect_usage_pieces(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the one word that is no option for the model."""
        super().parse_args(ctx, args)
        if not ctx.args:
            return ctx.args
        model, *more = ctx.args
        given = ctx.get_parameter_source("model_uri") is ParameterSource.COMMANDLINE
        if more or given:
            extra = " ".join(more) if more else model
            raise click.UsageError(f"one model is evaluated at a time; what is {extra!r}?", ctx)
        ctx.params["model_uri"], ctx.args = model, []
        return ctx.args


@click.command(cls=ModelFirst)
@config_options(EvaluateConfig, only=["model_uri", "subset", "class_map"])
@click.option(
    "--controls",
    type=bool,
    is_flag=False,
    flag_value=True,
    default=False,
    help=HELP["controls"],
)
@config_options(EvaluateConfig, only=["control_modes", "control_epochs"])
@config_options(DataConfig, only=DATA)
@config_options(TrackingConfig, only=["experiment", "run_name", "bootstrap_samples"])
def evaluate(**options: Any) -> None:
    """Score a model on a folder of X-rays: all metrics, intervals and figures, in a new run.

    The folder may be of another hospital; images that show films the model was trained on are taken
    out first. With --controls the model's own training run is controlled instead.
    """
    asked = EvaluateConfig(**{f.name: options.pop(f.name) for f in fields(EvaluateConfig)})
    data = DataConfig(**{name: options.pop(name) for name in DATA})
    tracking = TrackingConfig(**options)
    if asked.controls:
        refuse_unused(data, DATA, but=FOR_CONTROLS)
        refuse_unused(tracking, tuple(options), but=())
        from cxr_mlflow.control_models import control_run, run_behind_model  # loads torch, mlflow

        show(
            control_run(
                ControlConfig(
                    run_id=run_behind_model(asked.model_uri),
                    modes=asked.control_modes,
                    epochs=asked.control_epochs,
                    data_dir="run" if data.data_dir == AUTO else data.data_dir,
                    cache_dir=data.cache_dir,
                )
            )
        )
        return
    from cxr_mlflow.assess import evaluate_model  # loads mlflow and onnxruntime: not for --help

    for line in evaluate_model(asked, data, tracking).lines:
        click.echo(line)


def refuse_unused(config: Any, names: tuple[str, ...], *, but: tuple[str, ...]) -> None:
    """Refuse options that were set and that --controls takes from the run itself."""
    defaults = {field.name: field.default for field in fields(config)}
    for name in names:
        if name not in but and getattr(config, name) != defaults[name]:
            raise InputError(
                f"--{flag(name)} does not go with --controls: the run's own options are used"
            )
