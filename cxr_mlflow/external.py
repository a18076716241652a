"""Images that a finished model is scored on: of this or another house, none that it has seen."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.command_config import EvaluateConfig
from cxr_mlflow.config import NONE, DataConfig
from cxr_mlflow.data.catalog import Catalog, resolve_data_dir, scan_catalog
from cxr_mlflow.data.class_map import ClassMap, load_class_map, same_names
from cxr_mlflow.data.fingerprints import Copies, Fingerprints, find_copies, load_fingerprints
from cxr_mlflow.data.prepare import cache_folder, find_duplicates, source_file
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.data.splits import Split, load_split
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.predictor import Predictor
from cxr_mlflow.serving.scorer import TRAINED_ON
from cxr_mlflow.tracking.origin import FINGERPRINTS, SPLIT, Origin

_NAMED = 5


@dataclass(frozen=True)
class Films:
    """What is scored, and what was taken out before.

    Attributes
    ----------
    catalog : Catalog
        Of the whole folder.
    class_map : dict
        Folder -> class of the model, None where it is left out.
    rows : int64 array of shape (N,)
        Rows of the catalog that are scored.
    table : DataFrame of N rows
        The catalog's, with `label` as the model numbers the classes.
    groups : int64 array of shape (N,)
        Near-duplicates among the scored images.
    seen : Fingerprints or None
        What the model has been trained on; None if that is not known.
    copies : Copies or None
        What of it was found here and taken out; None if it could not be looked for.
    checked : str
        How it was made sure that the model has not seen these images; "" if it was not.
    unchecked : str
        Why it could not be; "" if it was.
    """

    catalog: Catalog
    class_map: ClassMap
    rows: NDArray[np.int64]
    table: pd.DataFrame
    groups: NDArray[np.int64]
    seen: Fingerprints | None
    copies: Copies | None
    checked: str
    unchecked: str

    def left_out(self) -> dict[str, int]:
        """Images of each folder that the class map leaves out."""
        counts = self.catalog.table["class_name"].value_counts()
        return {name: int(counts.get(name, 0)) for name, to in self.class_map.items() if to is None}


def gather(
    asked: EvaluateConfig, data: DataConfig, predictor: Predictor, origin: Origin | None
) -> Films:
    """Find the images a model is to be scored on, and take out those it was trained on.

    Parameters
    ----------
    asked : EvaluateConfig
        Which images, and what their classes are called.
    data : DataConfig
        The folder; its mask mode and image size are the model's own and not looked at.
    predictor : Predictor
    origin : Origin or None
        The training run behind the model, where it is known.

    Raises
    ------
    InputError
        If folder, class map and model do not belong together, files are damaged, masks are missing
        that the model needs, or no image is left.
    """
    cache = cache_folder(data)
    folder, _ = resolve_data_dir(data.data_dir, cache, progress=True)
    catalog = scan_catalog(
        folder,
        mask_mode=predictor.mask_mode,
        source_file=source_file(data),
        cache_dir=cache,
        progress=True,
    )
    if asked.class_map == NONE:
        class_map = same_names(catalog.classes, predictor.classes)
    else:
        path = Path(asked.class_map).expanduser()
        class_map = load_class_map(path, catalog.classes, predictor.classes)
    refuse_bad_files(catalog, class_map, predictor.mask_mode, skip=data.on_bad_file == "skip")
    with tempfile.TemporaryDirectory() as temporary:
        split = find_split(asked, data, catalog, origin, Path(temporary))
        kept = origin.fetch(FINGERPRINTS, Path(temporary)) if origin else None
        seen = load_fingerprints(kept) if kept else None
    rows = np.arange(len(catalog.table)) if split is None else split.rows("test")
    mapped = catalog.table["class_name"].iloc[rows].map(class_map)
    rows = rows[mapped.notna().to_numpy()]
    groups = find_duplicates(catalog, data).groups
    copies, checked, unchecked = None, "", ""
    if origin and split is not None and split.test_digest == origin.test_digest:
        checked = "these are the test images of the training run"
    elif seen is not None:
        copies = find_copies(catalog, groups, rows, seen)
        checked = copies_in_words(copies, len(rows), seen)
        rows = np.setdiff1d(rows, copies.rows)
    elif origin is None:
        unchecked = "the training run of the model is not in this store"
    else:
        unchecked = f"the training run {origin.run_id} keeps no fingerprints of its images"
    if not len(rows):
        why = f" ({checked})" if copies is not None and len(copies.rows) else ""
        raise InputError(f"{catalog.root}: no image is left to score{why}; name another --data-dir")
    return Films(
        catalog,
        class_map,
        rows,
        label(catalog.table.iloc[rows].reset_index(drop=True), class_map, predictor.classes),
        groups[rows],
        seen,
        copies,
        checked,
        unchecked,
    )


def copies_in_words(copies: Copies, num_asked: int, seen: Fingerprints) -> str:
    """Say how many images of those asked for were taken out, and why."""
    compared = f"of {num_asked:,} compared with {len(seen.image_ids):,} training images"
    if not len(copies.rows):
        return f"no copy among them, {compared}"
    kinds = copies.table["found"].value_counts()
    words = {"exact": "exact copies", "near": "near-copies", "through": "copies of such"}
    told = ", ".join(f"{kinds[kind]:,} {name}" for kind, name in words.items() if kind in kinds)
    return f"{len(copies.rows):,} taken out as copies ({told}), {compared}"


def label(
    table: pd.DataFrame, class_map: Mapping[str, str | None], classes: tuple[str, ...]
) -> pd.DataFrame:
    """Number the classes of a catalog's table as the model does.

    Parameters
    ----------
    table : DataFrame
        Of images that the map does not leave out.
    class_map : mapping of str to str
        Folder -> class of the model.
    classes : tuple of str
        Of the model, in index order.
    """
    place = {name: number for number, name in enumerate(classes)}
    return table.assign(label=table["class_name"].map(class_map).map(place).astype(np.int64))


def find_split(
    asked: EvaluateConfig,
    data: DataConfig,
    catalog: Catalog,
    origin: Origin | None,
    folder: Path,
) -> Split | None:
    """Read the split whose test images are scored; None for all images.

    Parameters
    ----------
    asked : EvaluateConfig
        All images, or the test images only.
    data : DataConfig
        May name the file of the split.
    catalog : Catalog
        The split must be of its images.
    origin : Origin or None
        The training run; its own split is read where no file is named.
    folder : Path
        For what is fetched from that run.

    Raises
    ------
    InputError
        If a split is named that is not asked for, or the one asked for is not to be had or does not
        fit the images.
    """
    if asked.subset == "all":
        if data.split_file != NONE:
            raise InputError("--split-file is for --subset test; with --subset all leave it out")
        return None
    if data.split_file != NONE:
        return load_split(Path(data.split_file).expanduser(), catalog)
    own = origin.fetch(SPLIT, folder) if origin else None
    if own is None or origin is None:
        raise InputError(
            "--subset test needs --split-file: the data/split.csv of the training run, which this "
            "store does not know"
        )
    try:
        return load_split(own, catalog)
    except InputError as error:
        told = str(error).replace(f"--split-file={own}", f"the split of run {origin.run_id}")
        raise InputError(f"{catalog.root}: {told}") from error


def refuse_bad_files(
    catalog: Catalog, class_map: Mapping[str, str | None], mask_mode: str, *, skip: bool
) -> None:
    """Refuse damaged files of the classes that are scored, or all that is left without them.

    Parameters
    ----------
    catalog : Catalog
    class_map : mapping of str to str or None
        Folder -> class of the model; None: not scored, so that its files do not matter.
    mask_mode : str
        That the model was trained with.
    skip : bool
        Whether to go on without such files.

    Raises
    ------
    InputError
        If there are such files and they are not to be skipped, or no image is left.
    """
    kept = [name for name, to in class_map.items() if to is not None]
    fatal = bad_files(catalog, class_map)
    fatal = fatal[fatal["fatal"]]
    usable = int(catalog.table["class_name"].isin(kept).sum())
    without = fatal.loc[fatal["problem"] == "missing_mask", "path"]
    if needs_mask(mask_mode) and len(without) and (not skip or not usable):
        total = usable + fatal["path"].nunique()
        first = str(without.iloc[0])
        name = first.split("/")[0]
        shown = TRAINED_ON.get(mask_mode, "masked images")
        raise InputError(
            f"{catalog.root}: the model was trained on {shown} (mask_mode={mask_mode}), and "
            f"{len(without):,} of {total:,} images have no lung mask, "
            f"{first} is the first. Put masks of the same names into {name}/masks and the like "
            "(PNG, the lungs white; drawn by people, or by a lung segmenter), "
            + ("leave these images out with --on-bad-file skip, " if usable else "")
            + "or evaluate a model trained with --mask-mode none"
        )
    if len(fatal) and (not skip or not usable):
        paths = list(dict.fromkeys(fatal["path"]))
        kinds = ", ".join(
            f"{count} {kind}" for kind, count in fatal["problem"].value_counts().items()
        )
        names = ", ".join(paths[:_NAMED]) + (", ..." if len(paths) > _NAMED else "")
        advice = "mend them, or go on without them: --on-bad-file skip"
        raise InputError(
            f"{catalog.root}: {len(paths):,} files cannot be used ({kinds}): {names}; "
            + (advice if usable else "no image is left without them")
        )


def bad_files(catalog: Catalog, class_map: Mapping[str, str | None]) -> pd.DataFrame:
    """Problems of a catalog, but those of classes that are left out."""
    out = {name for name, to in class_map.items() if to is None}
    return catalog.problems[~catalog.problems["path"].str.split("/").str[0].isin(out)]
