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
        "The model: an MLflow URI (models:/NAME@ALIAS, models:/NAME/VERSION), a model folder, or "
        "the id of a training run. On the command line its place is before all options.",
    )
    subset: Subset = option(
        "all",
        "Every image of the folder, or the test images: of --split-file, else of the training run.",
    )
    class_map: str = option(
        NONE,
        "YAML file for data of other classes, a line 'FOLDER: Class of the model' each; 'FOLDER: "
        "null' leaves a folder out.",
    )
    controls: bool = option(
        False,
        "Train control models of the model's training run, and show its score beside theirs, in "
        "place of scoring a folder; as cxr control.",
    )
    control_modes: str = option(AUTO, "As --modes of cxr control.")
    control_epochs: int = option(0, "As --epochs of cxr control: the budget of each control.")

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("model_uri", "class_map", "control_modes"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")
        self._require(self.control_epochs >= 0, "control_epochs", "must not be negative")
        for name, unset in (("control_modes", AUTO), ("control_epochs", 0)):
            self._require(
                self.controls or getattr(self, name) == unset, name, "is for --controls true only"
            )
        for name, unset in (("subset", "all"), ("class_map", NONE)):
            self._require(
                not self.controls or getattr(self, name) == unset,
                name,
                "does not go with --controls: controls are tested as their run was",
            )


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
        AUTO,
        "Mask modes trained as controls with the run's own recipe, seed and split. 'auto': "
        "lungs-out,box-out,mask-only; where the run itself saw more than the lungs, lungs in place "
        "of mask-only.",
    )
    epochs: int = option(0, "Most epochs of each control; 0: as many as the run was given.")
    data_dir: str = option("run", "Where the run's images are now; 'run': where they were.")
    cache_dir: str = option(
        AUTO, "Where decoded images are kept. 'auto': $CXR_CACHE_DIR, else ~/.cache/cxr_mlflow."
    )

    def __post_init__(self) -> None:
        known = get_args(MaskMode)
        self._require(
            self.modes == AUTO or set(self.modes.split(",")) <= set(known),
            "modes",
            f"must be of {', '.join(known)}",
        )
        self._require(self.epochs >= 0, "epochs", "must not be negative")
        for name in ("run_id", "data_dir", "cache_dir"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig(Checked):
    """A finished model behind HTTP, and what a request may cost."""

    model_uri: str = option(
        "models:/cxr-classifier@champion", "The model: a folder or an MLflow URI.", argument=True
    )
    host: str = option("127.0.0.1", "Address to listen on; any but loopback wants a token.")
    port: int = option(5001, "Port to listen on; 0: a free one, which is told.")
    token_file: str = option(
        NONE, "File with the token that clients must send; else $CXR_SERVE_TOKEN is taken."
    )
    insecure: bool = option(False, "Let others than this machine connect without a token.")
    open_metrics: bool = option(False, "Let /metrics be read without the token.")
    workers: int = option(0, "Requests scored at the same time; 0: one for each core.")
    threads: int = option(1, "Cores that one request may use.")
    max_waiting: int = option(32, "Requests that may wait for a worker; more are told to retry.")
    max_connections: int = option(256, "Clients connected at the same time.")
    max_body_mb: int = option(32, "Largest request, MB.")
    max_buffered_mb: int = option(256, "Requests held in memory at the same time, MB in all.")
    max_images: int = option(64, "Most images in a request.")
    max_megapixels: float = option(25.0, "Largest image, millions of pixels.")
    request_timeout: float = option(30.0, "Seconds in which a request is answered, once it is in.")
    body_timeout: float = option(30.0, "Seconds in which the body of a request must come in.")
    header_timeout: float = option(10.0, "Seconds for the headers of a request to come in.")
    stop_timeout: int = option(20, "Seconds to finish what is under way when told to stop.")

    def __post_init__(self) -> None:
        for name in ("model_uri", "host", "token_file"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")
        self._require(0 <= self.port < 2**16, "port", "must lie in 0..65535")
        for name in ("workers", "max_waiting"):
            self._require(getattr(self, name) >= 0, name, "must not be negative")
        for name in ("threads", "max_connections", "max_body_mb", "max_images", "stop_timeout"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("max_megapixels", "request_timeout", "body_timeout", "header_timeout"):
            self._require(0 < getattr(self, name) < float("inf"), name, "must be positive")
        self._require(
            self.max_buffered_mb >= self.max_body_mb,
            "max_buffered_mb",
            f"must be at least --max-body-mb={self.max_body_mb}",
        )
