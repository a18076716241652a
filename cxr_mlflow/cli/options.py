"""What all commands share: options made from the config's fields, and errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar

import click

from cxr_mlflow.config import flag, option_type
from cxr_mlflow.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT: dict[str, Any] = {
    "show_default": True,
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": flag,  # --image_size is --image-size, as MLproject spells its names
    "max_content_width": 100,
}


class _OneLine(click.ClickException):
    """Printed as `Error: ...`, status 2."""

    exit_code = 2


class _InputErrors:
    """Print an `InputError` as one line and leave with status 2, as click does for its own."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except InputError as error:
            raise _OneLine(str(error)) from error


class CxrCommand(_InputErrors, click.Command):
    """A command whose user errors are one line; an option given twice is refused."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Look for options given twice, then parse."""
        names = _long_options(args)
        known = {opt for p in self.params if not getattr(p, "multiple", False) for opt in p.opts}
        for name in sorted(known):
            if names.count(name) > 1:
                raise click.UsageError(
                    f"{name} is given twice. Through `mlflow run -P`, write "
                    f"-P {name[2:].replace('-', '_')}=VALUE, with underscores.",
                    ctx,
                )
        return super().parse_args(ctx, args)


class CxrGroup(_InputErrors, click.Group):
    """A group of such commands, which suggests a name when one is mistyped."""

    command_class = CxrCommand

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which name is near."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.commands, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from error


CxrGroup.group_class = CxrGroup


def _long_options(args: Iterable[str]) -> list[str]:
    return [flag(arg.split("=", 1)[0]) for arg in args if arg.startswith("--")]


def config_options(*parts: type[Any], only: Iterable[str] | None = None) -> Callable[..., Any]:
    """Add one click option per field of the given config sections, in their order.

    Parameters
    ----------
    *parts : dataclass types
        Sections of `cxr_mlflow.config`.
    only : iterable of str, optional
        Field names; all by default.
    """
    wanted = None if only is None else set(only)

    def decorate(function: Function) -> Function:
        declared = [(part, f) for part in parts for f in fields(part)]
        for part, field in reversed(declared):  # decorators apply from the bottom up
            if wanted is None or field.name in wanted:
                function = _option(part, field)(function)
        return function

    return decorate


def _option(part: type[Any], field: Any) -> Callable[[Function], Function]:
    plain, choices = option_type(part, field.name)
    if field.metadata["argument"]:
        return click.argument(field.name, type=plain)
    bare: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if plain is bool else {}
    return click.option(
        f"--{flag(field.name)}",
        field.name,
        type=click.Choice(choices) if choices else plain,
        default=field.default,
        help=field.metadata["help"],
        **bare,  # --fresh alone is --fresh true
    )
