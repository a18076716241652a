"""What tells rows of a table apart: labels made of the options that differ between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cxr_mlflow.config import RunConfig, all_options, flag, option_type

ALWAYS = ("model", "strategy")
"""Options a label names even where all rows share them."""
FEW_ROWS = 8
"""So many rows are told one by one."""
NO_RESULT = frozenset(
    {
        *(
            "data_dir",
            "source_file",
            "cache_dir",
            "workers",
            "device",
            "checkpoint_minutes",
            "fresh",
        ),
        *("experiment", "run_name", "register", "registered_model", "bootstrap_samples"),
    }
)
"""Options that do not change what is trained and tested; the data are told by their digest."""


def recipe(params: Mapping[str, str]) -> dict[str, str]:
    """Pick the options that decide what comes out of a run, its seed among them.

    Parameters
    ----------
    params : mapping
        Option name -> text, as `RunConfig.to_params` writes them; an option that is not there has
        its default, as in runs made before the option was.
    """
    defaults = RunConfig().to_params()
    names = [f.name for _, f in all_options() if f.name not in NO_RESULT]
    return {name: params.get(name, defaults[name]) for name in names}


def label_rows(recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """Name each recipe by what tells it from the others.

    Model and strategy are always named, then the choices that differ ("crop"); numbers and texts
    that differ ("lr=0.003") only where rows would be called alike without them.

    Parameters
    ----------
    recipes : sequence of mappings
        As `recipe` returns them, without the seed; equal recipes get equal labels.

    Returns
    -------
    list of str
        "resnet18, oversample", in the order given.
    """
    differing = [name for name in _names(recipes) if len({r[name] for r in recipes}) > 1]
    choices = {f.name for part, f in all_options() if option_type(part, f.name)[1]}
    short = [*ALWAYS, *(n for n in differing if n in choices and n not in ALWAYS)]
    names = short
    if _count(recipes, short) < _count(recipes, _names(recipes)):
        names = [*short, *(n for n in differing if n not in short)]
    return [_label(each, names, choices) for each in recipes]


def tell_differences(recipes: Sequence[Mapping[str, str]]) -> str:
    """Tell the options that differ between rows, beside those every label names.

    Parameters
    ----------
    recipes : sequence of mappings
        One per row, in the order of the table.

    Returns
    -------
    str
        "epochs 12 / 5 / 5, lr 0.003 / 0.001 / 0.001"; of many rows the different values alone.
        Empty where nothing differs.
    """
    told = []
    for name in _names(recipes):
        values = [each[name] for each in recipes]
        if name in (*ALWAYS, "seed") or len(set(values)) == 1:
            continue
        few = len(values) <= FEW_ROWS
        told.append(f"{name} {' / '.join(values) if few else ' or '.join(sorted(set(values)))}")
    return ", ".join(told)


def _names(recipes: Sequence[Mapping[str, str]]) -> list[str]:
    return list(recipes[0]) if recipes else []


def _count(recipes: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    return len({tuple(each[name] for name in names) for each in recipes})


def _label(each: Mapping[str, str], names: Sequence[str], choices: set[str]) -> str:
    parts = []
    for name in names:
        plain = name in choices and (name in ALWAYS or each[name] != "none")
        parts.append(each[name] if plain else f"{flag(name)}={each[name]}")
    return ", ".join(parts)
