"""Options as YAML, a list of words or a run's parameters give them, in their own types."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_mlflow.config import all_options, option_type
from cxr_mlflow.errors import InputError

TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def typed_options(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Take options as YAML, a list of words or a run's parameters give them, in their own types.

    Parameters
    ----------
    told : mapping
        Option name -> value.
    where : str
        What messages call the place they were read in.

    Raises
    ------
    InputError
        If there is no such option, or a value is of another type.
    """
    parts = {f.name: part for part, f in all_options()}
    for name in told:
        if name not in parts:
            raise InputError(f"{where}: no option {name!r}{near_name(str(name), list(parts))}")
    return {
        name: _typed(value, option_type(parts[name], name)[0], f"{where}: {name}")
        for name, value in told.items()
    }


def near_name(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: which was meant, or which there are."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"


def _typed(value: Any, wanted: type, where: str) -> Any:
    if wanted is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    try:
        if wanted is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if wanted is int and not isinstance(value, (bool, float)):
            return int(value)
        if wanted is float and not isinstance(value, bool):
            return float(value)  # YAML 1.1 takes 1e-3 for text
    except (TypeError, ValueError):
        pass
    raise InputError(f"{where}={value!r} is not {TYPE_NAMES[wanted]}")
