"""Finds images and their masks in a folder, and labels them file by file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.names import IMAGE_SUFFIXES
from cxr_mlflow.serving.predictor import Predictor

FILES_AT_ONCE = 64
IMAGES, MASKS = "images", "masks"


@dataclass(frozen=True)
class ImageFile:
    """An image, what it is called in the output, and where its mask should be."""

    path: Path
    name: str
    mask_stem: Path | None
    """Path of the mask without its suffix; None where no place for masks is known."""


def find_images(source: Path, masks: Path | None) -> list[ImageFile]:
    """List the images of a folder, at any depth, or the one that is named.

    Parameters
    ----------
    source : Path
        A file, or a folder. Files in folders called `masks` are not images.
    masks : Path, optional
        A file or folder of masks: the mask of `source/a/1.png` is `masks/a/1.png` (or .jpg, .jpeg).
        Without it, the mask of `CLASS/images/1.png` is `CLASS/masks/1.png`.

    Raises
    ------
    InputError
        If there is no image, or the paths do not exist.
    """
    for option, path in (("input", source), ("masks", masks)):
        if path is not None and not path.exists():
            raise InputError(f"--{option}={path}: not there")
    if source.is_file():
        files, root = [source], source.parent
    else:
        files, root = sorted(_walk(source)), source
    if not files:
        raise InputError(f"--input={source}: holds no {', '.join(IMAGE_SUFFIXES)} file")
    if masks is not None and masks.is_file() and not source.is_file():
        raise InputError(f"--masks={masks}: one mask for a folder of images; name a folder")
    return [
        ImageFile(path, path.relative_to(root).as_posix(), _mask_stem(path, root, masks))
        for path in files
    ]


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts[:-1]
        hidden = any(part.startswith(".") for part in (*inside, path.name))
        if path.suffix.lower() in IMAGE_SUFFIXES and MASKS not in inside and not hidden:
            yield path


def _mask_stem(path: Path, root: Path, masks: Path | None) -> Path | None:
    if masks is None:
        return path.parent.with_name(MASKS) / path.stem if path.parent.name == IMAGES else None
    if masks.is_file():
        return masks.with_suffix("")
    return masks / path.relative_to(root).with_suffix("")


def predict_files(
    predictor: Predictor,
    files: Sequence[ImageFile],
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Label files; one that cannot be labelled says why in its row, and stops no other.

    Parameters
    ----------
    predictor : Predictor
    files : sequence of N ImageFile
    on_progress : callable, optional
        Told how many files are done.

    Returns
    -------
    DataFrame of N rows
        `image`, `label`, `confidence`, `p_<slug>` per class, and `problem`: empty where all is
        well; where it is not, the other cells of the row are empty.
    """
    parts = []
    for start in range(0, len(files), FILES_AT_ONCE):
        batch = files[start : start + FILES_AT_ONCE]
        rows = [_read(file, needs_mask(predictor.mask_mode)) for file in batch]
        parts.append(_predict_rows(predictor, [r for r in rows if isinstance(r, dict)]))
        problems = [row for row in rows if isinstance(row, tuple)]
        parts.append(pd.DataFrame(problems, columns=["image", "problem"]))
        on_progress(start + len(batch))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    columns = predictor.predict(pd.DataFrame({"image": []})).columns
    order = {file.name: position for position, file in enumerate(files)}
    table = table.reindex(columns=["image", *columns, "problem"])
    return table.sort_values("image", key=lambda names: names.map(order), ignore_index=True)


def _read(file: ImageFile, with_mask: bool) -> dict[str, object] | tuple[str, str]:
    """Row for the model, or (name, what is wrong)."""
    try:
        row: dict[str, object] = {"name": file.name, "image": file.path.read_bytes()}
        if with_mask:
            row["mask"] = _find_mask(file).read_bytes()
        return row
    except InputError as error:
        return file.name, str(error)
    except OSError as error:
        return file.name, f"{file.path}: cannot be read ({error.strerror})"


def _find_mask(file: ImageFile) -> Path:
    if file.mask_stem is None:
        raise InputError("this model needs lung masks: name their folder with --masks")
    stem = file.mask_stem
    found = [path for path in sorted(stem.parent.glob("*")) if path.stem == stem.name]
    found = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise InputError(f"no lung mask {stem}{IMAGE_SUFFIXES[0]}, and this model needs one")
    if len(found) > 1:
        raise InputError(f"two masks for one image: {found[0]} and {found[1]}")
    return found[0]


def _predict_rows(predictor: Predictor, rows: list[dict[str, object]]) -> pd.DataFrame:
    """Label rows together; where that fails, one by one, to find out which are at fault."""
    if not rows:
        return pd.DataFrame()
    table = pd.DataFrame(rows)
    try:
        found = predictor.predict(table.drop(columns="name"))
    except InputError as error:
        if len(rows) > 1:
            return pd.concat([_predict_rows(predictor, [row]) for row in rows])
        problem = str(error).replace("mask of image 0", "its mask").removeprefix("image 0: ")
        return pd.DataFrame({"image": table["name"], "problem": [problem]})
    return found.assign(image=table["name"].to_numpy(), problem="")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV whole or not at all.

    Raises
    ------
    InputError
        If it cannot be written there.
    """
    if path.is_dir():
        raise InputError(
            f"--output={path}: cannot be written (a folder has that name); name a file"
        )
    with write_whole(path, "name another --output") as part:
        table.to_csv(part, index=False)
