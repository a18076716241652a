"""Every knob of a run, in one place. Standard library only: `cxr --help` stays instant.

The fields below are the single source of names, defaults and help texts. `cxr_mlflow.cli` makes its
options from them, `tools/write_mlproject.py` writes `MLproject` from them, and a test holds the
three together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from cxr_mlflow.errors import InputError

ModelName = Literal["cnn", "resnet18"]
StrategyName = Literal["none", "weighted", "oversample"]
MaskMode = Literal["lungs", "none", "crop", "lungs-crop", "lungs-out", "box-out", "mask-only"]
AugmentLevel = Literal["none", "mild", "strong"]
OnBadFile = Literal["fail", "skip"]
DeviceName = Literal["auto", "cpu", "cuda"]

AUTO = "auto"
NONE = "none"
FILE = "file"
FROM_SCRATCH = ("cnn",)
"""Models for which no first weights exist."""


def option(default: Any, help: str, *, argument: bool = False) -> Any:
    """Declare a field together with its help text, which every front end shows as it is.

    An `argument` is given to the command by its place, not by a flag.
    """
    return field(default=default, metadata={"help": help, "argument": argument})


class Checked:
    """Refuse a value that is not one of the choices of a Literal field."""

    def __post_init__(self) -> None:
        self._check_choices()

    def _check_choices(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if (choices := get_args(hint)) and value not in choices:
                raise InputError(f"--{flag(name)}={value!r} is not one of {', '.join(choices)}")

    def _require(self, condition: bool, name: str, rule: str) -> None:
        if not condition:
            raise InputError(f"--{flag(name)}={getattr(self, name)} {rule}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(Checked):
    """Which images, how they are prepared, and who is tested on what."""

    data_dir: str = option(
        AUTO,
        "Folder (or the Kaggle zip) in the layout CLASS/images, CLASS/masks. 'auto': $CXR_DATA_DIR,"
        " else data/ here, else the synthetic demo data, said loudly. 'demo': the demo data.",
    )
    mask_mode: MaskMode = option(
        "lungs",
        "What the network sees: the lungs alone, the whole image, the box around the lungs, the "
        "lungs alone enlarged to their box; or, as controls, all but the lungs, all but their box, "
        "or their shape.",
    )
    image_size: int = option(224, "Side of the square network input, in pixels.")
    on_bad_file: OnBadFile = option(
        "fail", "At a damaged file: stop, or go on without it and list every file left out."
    )
    source_file: str = option(NONE, "A CSV (image_id, source) to correct the listed sources.")
    split_seed: int = option(0, "Seeds the train/val/test split, and nothing else.")
    val_fraction: float = option(0.1, "Share of the images for validation.")
    test_fraction: float = option(0.2, "Share of the images for the test.")
    split_file: str = option(
        NONE, "A split.csv of an earlier run, to train and test on exactly its images."
    )
    cache_dir: str = option(
        AUTO, "Where decoded images are kept. 'auto': $CXR_CACHE_DIR, else ~/.cache/cxr_mlflow."
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._require(32 <= self.image_size <= 1024, "image_size", "must lie in 32..1024")
        for name in ("val_fraction", "test_fraction"):
            self._require(0 < getattr(self, name) < 1, name, "must lie between 0 and 1")
        self._require(
            self.val_fraction + self.test_fraction < 0.9,
            "test_fraction",
            f"and --val-fraction={self.val_fraction} leave too little to train on",
        )
        self._require(0 <= self.split_seed < 2**31, "split_seed", "must lie in 0..2147483647")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Checked):
    """The network and its first weights."""

    model: ModelName = option("resnet18", "Network: a small CNN from scratch, or ResNet18.")
    weights: str = option(
        AUTO,
        "First weights: 'imagenet' (torchvision's, downloaded once), 'none' (random), a .pth or "
        ".safetensors file, or 'auto': imagenet, else random, said loudly.",
    )
    freeze: int = option(
        0,
        "How many of ResNet18's first stages, 0 to 3, keep their first weights (which must be "
        "trained ones); batch normalisation in them still follows the images.",
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._require(0 <= self.freeze <= 3, "freeze", "must lie in 0..3")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(Checked):
    """How the weights are fitted."""

    strategy: StrategyName = option("oversample", "Remedy for class imbalance.")
    prior_correction: bool = option(
        True,
        "Give predictions the class frequencies of the training images back, which weighted and "
        "oversample train without.",
    )
    epochs: int = option(10, "Most passes over the training images.")
    batch_size: int = option(64, "Images per step.")
    lr: float = option(0.001, "Peak AdamW learning rate.")
    weight_decay: float = option(0.05, "AdamW weight decay, on matrices and kernels only.")
    warmup: float = option(0.2, "Share of all steps in which the learning rate rises.")
    label_smoothing: float = option(0.0, "Label smoothing of the training loss.")
    ema_decay: float = option(
        0.0, "Decay per step of averaged weights, evaluated and kept in place of the last; 0: none."
    )
    clip_norm: float = option(5.0, "Largest norm of a gradient; 0: no clipping.")
    patience: int = option(5, "Stop after so many epochs without a better validation macro F1.")
    start_size: float = option(
        1.0, "Share of --image-size in the first epoch, growing to the whole; 1: whole throughout."
    )
    augment: AugmentLevel = option("mild", "Strength of the albumentations pipeline.")
    seed: int = option(0, "Seeds weights, order, sampling and augmentation; never the split.")
    checkpoint_minutes: float = option(
        3.0, "Minutes between checkpoints within an epoch; one at the end of each in any case."
    )
    workers: int = option(-1, "Loader processes; -1: none on a CPU, up to 12 beside a GPU.")
    device: DeviceName = option("auto", "Where to train; 'auto' takes CUDA if it is there.")

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("epochs", "batch_size", "patience"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        self._require(self.lr > 0, "lr", "must be positive")  # this way round, nan is refused too
        self._require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self._require(self.clip_norm >= 0, "clip_norm", "must not be negative")
        self._require(0.2 <= self.start_size <= 1, "start_size", "must lie in 0.2..1")
        for name in ("warmup", "label_smoothing", "ema_decay"):
            self._require(0 <= getattr(self, name) < 1, name, "must lie in [0, 1)")
        self._require(self.checkpoint_minutes >= 0, "checkpoint_minutes", "must not be negative")
        self._require(self.workers >= -1, "workers", "must be -1 or more")
        self._require(0 <= self.seed < 2**31, "seed", "must lie in 0..2147483647")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationConfig(Checked):
    """What is promised of the probabilities, and fitted on the validation images."""

    temperature_scaling: bool = option(
        True, "Divide the logits by a temperature that makes validation probabilities honest."
    )
    risk: float = option(
        0.05, "Largest share of errors among the answers; below a confidence the model abstains."
    )
    coverage: float = option(
        0.9, "How often a prediction set holds the true class, for each class."
    )

    def __post_init__(self) -> None:
        for name in ("risk", "coverage"):
            self._require(0 < getattr(self, name) < 1, name, "must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig(Checked):
    """Where the run is told and the model registered."""

    experiment: str = option("chest-xray", "MLflow experiment of the run.")
    run_name: str = option(AUTO, "Name of the run; 'auto': model, strategy, size, seed, data.")
    register: bool = option(True, "Register the model after it has loaded in a clean process.")
    registered_model: str = option(
        AUTO, "Name in the registry; 'auto': cxr-classifier, or cxr-classifier-demo for demo data."
    )
    fresh: bool = option(
        False, "Start over where the same command was interrupted, instead of going on."
    )
    bootstrap_samples: int = option(2000, "Resamples behind each 95 % interval.")

    def __post_init__(self) -> None:
        self._require(self.bootstrap_samples >= 100, "bootstrap_samples", "must be at least 100")
        for name in ("experiment", "run_name", "registered_model"):
            self._require(bool(getattr(self, name).strip()), name, "must not be empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run, complete: equal configs on equal data are the same experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> RunConfig:
        """Build from flat option values, as click hands them over.

        Raises
        ------
        InputError
            If a value is out of range or an option does not exist; the flag is named.
        """
        known = {f.name for _, f in all_options()}
        if unknown := sorted(set(options) - known):
            raise InputError(f"unknown option --{flag(unknown[0])}; see cxr train --help")
        parts = {
            section: part(**{f.name: options[f.name] for f in fields(part) if f.name in options})
            for section, part in SECTIONS.items()
        }
        return cls(**parts)

    def to_params(self) -> dict[str, str]:
        """Flat name -> text, as MLflow params and MLproject spell them (true, 0.001)."""
        params: dict[str, str] = {}
        for section in asdict(self).values():
            for name, value in section.items():
                if name in params:
                    raise ValueError(f"two config fields are called {name!r}; rename one")
                params[name] = value if isinstance(value, str) else json.dumps(value)
        return params


SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "calibration": CalibrationConfig,
    "tracking": TrackingConfig,
}


def flag(name: str) -> str:
    """Field name as the command line spells it: `image_size` -> `image-size`."""
    return name.replace("_", "-")


def all_options() -> Iterator[tuple[type[Any], Field[Any]]]:
    """Yield (section class, field) of every option, in the order help shows them."""
    for part in SECTIONS.values():
        for declared in fields(part):
            yield part, declared


def option_type(part: type[Any], name: str) -> tuple[type, tuple[str, ...]]:
    """Return the plain type of an option and its choices, empty where any value goes."""
    hint = get_type_hints(part)[name]
    choices = get_args(hint)
    return (str, choices) if choices else (hint, ())
