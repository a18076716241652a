"""Which class of a model each class folder of another hospital stands for: a small YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from cxr_mlflow.errors import InputError
from cxr_mlflow.names import slug
from cxr_mlflow.typed_options import near_name

ClassMap = dict[str, str | None]
"""Name of a class folder -> class of the model; None: its images are left out."""
_NULL = "tag:yaml.org,2002:null"
_FORM = "one line for each class folder, 'FOLDER: Class of the model' or 'FOLDER: null'"


def load_class_map(path: Path, folders: Sequence[str], classes: Sequence[str]) -> ClassMap:
    """Read a class map and hold it against the data and the model.

    Names are compared as slugs, so `lung opacity` is `Lung_Opacity`. YAML is read as text: a folder
    called `no` or `1` is just that.

    Parameters
    ----------
    path : Path
        A YAML mapping. Several folders may stand for one class; `null` leaves a folder out.
    folders : sequence of str
        Class folders of the data.
    classes : sequence of C str
        Of the model.

    Returns
    -------
    dict
        One item for each of `folders`, in their order.

    Raises
    ------
    InputError
        If the file cannot be read, a name in it is no folder or no class, a folder stands in it
        twice or not at all, or it leaves nothing. File, line and name are told.
    """
    there, known = ({slug(name): name for name in names} for names in (folders, classes))
    found: dict[str, tuple[str | None, int]] = {}
    for line, name, target in _lines(path):
        here = f"--class-map={path}, line {line}"
        if (folder := there.get(slug(name))) is None:
            raise InputError(f"{here}: the data have no class {name!r}{near_name(name, folders)}")
        if folder in found:
            raise InputError(
                f"{here}: {name!r} stands on line {found[folder][1]} already; remove one of them"
            )
        if target is not None and slug(target) not in known:
            wrong = f"{here}: the model has no class {target!r}{near_name(target, classes)}"
            raise InputError(f"{wrong}; null leaves {name!r} out")
        found[folder] = None if target is None else known[slug(target)], line
    if missing := [name for name in folders if name not in found]:
        raise InputError(
            f"--class-map={path}: nothing is said about {', '.join(map(repr, missing))}; add a "
            f"line '{missing[0]}: ' with one of {', '.join(classes)}, or null to leave it out"
        )
    class_map = {name: found[name][0] for name in folders}
    if not any(class_map.values()):
        raise InputError(f"--class-map={path}: every class is null, so nothing is left to score")
    return class_map


def same_names(folders: Sequence[str], classes: Sequence[str]) -> ClassMap:
    """Match folders to classes that are called alike, where there is no class map.

    Raises
    ------
    InputError
        If the model does not know a folder's class.
    """
    known = {slug(name): name for name in classes}
    if strange := [name for name in folders if slug(name) not in known]:
        raise InputError(
            f"the model knows {', '.join(classes)}; the data have {', '.join(strange)} as well: "
            "say with --class-map FILE which class each stands for (FILE: a line "
            f"'{strange[0]}: {classes[0]}', or '{strange[0]}: null' to leave it out)"
        )
    return {name: known[slug(name)] for name in folders}


def _lines(path: Path) -> list[tuple[int, str, str | None]]:
    """Line, key and value of each item, as text; doubled keys are kept, to be refused."""
    try:
        told = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--class-map={path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise InputError(f"--class-map={path}: not YAML ({place}); write {_FORM}") from error
    if not isinstance(told, yaml.MappingNode):
        raise InputError(f"--class-map={path}: holds no class map; write {_FORM}")
    found = []
    for key, value in told.value:
        line = key.start_mark.line + 1
        if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
            raise InputError(
                f"--class-map={path}, line {line}: one name for one name is wanted; write {_FORM}"
            )
        found.append((line, key.value, None if value.tag == _NULL else value.value))
    return found
