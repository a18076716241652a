"""Options of the commands beside `cxr train`, in the same form. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from cxr_mlflow.config import AUTO, FILE, NONE, Checked, MaskMode, option

Subset = Literal["all", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(Checked):
    """Which finished model is scored, and on which images of a folder."""

    model_uri: str = option(
        "models:/cxr-classifier@champion",
        "The model: an MLflow URI (models:/NAME@ALIAS, models:/NAME/VERSION) or a model folder.",
    )
    subset: Subset = option(
        "all", "Every image of the folder, or the test images that --split-file names."
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._require(bool(self.model_uri.strip()), "model_uri", "must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig(Checked):
    """Which images a finished model labels."""

    model_uri: str = option(
        "models:/cxr-classifier@champion",
        "The model: an MLflow URI (models:/NAME@ALIAS, models:/NAME/VERSION) or a model folder.",
    )
    input: str = option("data", "An image, a flat folder of images, or a folder CLASS/images.")
    masks: str = option(
        NONE, "Folder of lung masks named as the images are; a CLASS/images folder has its own."
    )
    output: str = option("predictions.csv", "CSV file to write, one row per image.")

    def __post_init__(self) -> None:
        for name in ("model_uri", "input", "masks", "output"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentConfig(Checked):
    """A file of cells to train and compare, and how to go about it."""

    file: str = option(
        "experiments/smoke.yaml", "The cells, as a small diff over the defaults.", argument=True
    )
    data_dir: str = option(
        FILE, "As --data-dir of cxr train. 'file': what the file says, else 'auto'."
    )
    weights: str = option(
        FILE,
        "As --weights of cxr train, for all but the cnn, which begins from scratch. 'file': what "
        "the file says, else 'auto'.",
    )
    seeds: str = option(FILE, "Seeds of every row, as '0,1,2' or '0-4'. 'file': those of the file.")
    overrides: str = option(
        NONE, "Options set over the file in every cell, as 'epochs=3,image_size=64'."
    )
    jobs: int = option(1, "Cells trained at the same time, each in a process of its own.")
    max_time: float = option(0.0, "Minutes after which no new cell is begun; 0: no limit.")
    fresh: bool = option(False, "Begin a new parent run, whatever cells are finished already.")

    def __post_init__(self) -> None:
        self._check_choices()
        self._require(self.jobs >= 1, "jobs", "must be at least 1")
        self._require(self.max_time >= 0, "max_time", "must not be negative")
        for name in ("file", "data_dir", "weights", "seeds", "overrides"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlConfig(Checked):
    """A finished run, and which control models are trained beside it."""

    run_id: str = option(NONE, "The finished training run that is controlled.", argument=True)
    modes: str = option(
        "lungs-out,mask-only",
        "Mask modes that are trained as controls with the run's own recipe, seed and split.",
    )
    epochs: int = option(0, "Most epochs of each control; 0: as many as the run was given.")
    data_dir: str = option("run", "Where the run's images are now; 'run': where they were.")
    cache_dir: str = option(
        AUTO, "Where decoded images are kept. 'auto': $CXR_CACHE_DIR, else ~/.cache/cxr_mlflow."
    )

    def __post_init__(self) -> None:
        known = get_args(MaskMode)
        self._require(
            set(self.modes.split(",")) <= set(known), "modes", f"must be of {', '.join(known)}"
        )
        self._require(self.epochs >= 0, "epochs", "must not be negative")
        for name in ("run_id", "data_dir", "cache_dir"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")
