"""What `scorer.json` says about the network beside it, written and read. Standard library only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cxr_mlflow.errors import InputError

MODEL_FILE = "model.onnx"
CONFIG_FILE = "scorer.json"
FORMAT_VERSION = 1
PREPROCESSING = "cxr-1"
"""Name of what `data.preprocess` computes; a change of its results is a new name."""
PROMISES = ("calibration", "abstaining", "prediction_sets", "prior")
"""Parts of `scorer.json` that whoever uses a model is told as well."""
APPROXIMATE = "approximate: the validation images it was fitted on also chose the epoch"
"""What must be said beside a stated risk or coverage."""
SET_SEPARATOR = "; "
"""Between the names of a prediction set."""


@dataclass(frozen=True, kw_only=True)
class Abstaining:
    """When the model does not answer."""

    threshold: float
    """Least confidence of an answer; inf: never, as no threshold kept the stated risk."""
    risk: float
    """Stated: largest share of errors among the films answered, if films are like the validation
    ones. Near-duplicates are one film, and an error if any answer to them is one."""
    delta: float
    """Chance that the threshold does not keep it."""


@dataclass(frozen=True, kw_only=True)
class PredictionSets:
    """When a class is one of those that a film may show."""

    thresholds: tuple[float, ...]
    """Least probability of each class to be in the set; 0: it always is."""
    coverage: float
    """Stated: of how many films the sets hold the true class, if films are like the validation
    ones. Near-duplicates are one film, and held if the sets of all of them hold it."""
    per_class: bool
    """Whether that is so for each class by itself."""


@dataclass(frozen=True, kw_only=True)
class Prior:
    """How frequent the classes were in training, and what was done about it.

    Probabilities mean the classes as frequent as `shares` say. `shift` is in the logits already,
    in the bias of the last layer: logits less the shift are those that were trained.
    """

    shares: tuple[float, ...]
    """Share of each class in the training images."""
    shift: tuple[float, ...]
    """What was added to the logits for it; zeros where nothing had to be corrected."""


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """What `scorer.json` says about the network beside it."""

    classes: tuple[str, ...]
    image_size: int
    mask_mode: str
    model_sha256: str
    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    abstaining: Abstaining | None = None
    prediction_sets: PredictionSets | None = None
    prior: Prior | None = None
    """None in a model of before it was kept."""
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """Facts for whoever reads a prediction: data set, synthetic or not, first weights."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sets, prior = self.prediction_sets, self.prior
        if prior and {len(prior.shares), len(prior.shift)} != {len(self.classes)}:
            raise InputError(
                f"{len(prior.shares)} class shares and {len(prior.shift)} shifts of logits for "
                f"{len(self.classes)} classes: give one for each"
            )
        if sets and len(sets.thresholds) != len(self.classes):
            raise InputError(
                f"{len(sets.thresholds)} thresholds of prediction sets for {len(self.classes)} "
                "classes: give one for each"
            )
        if sets and (named := [name for name in self.classes if SET_SEPARATOR in name]):
            raise InputError(
                f"class {named[0]!r} holds {SET_SEPARATOR!r}, which stands between the classes of "
                "a prediction set; rename it"
            )

    def dumps(self) -> str:
        """Text of `scorer.json`."""
        values = asdict(self)
        for name in ("abstaining", "prediction_sets", "prior"):  # so older versions can read it
            if values[name] is None:
                del values[name]
        if self.abstaining and math.isinf(self.abstaining.threshold):  # JSON does not know inf
            values["abstaining"]["threshold"] = None
        content = {
            "format_version": FORMAT_VERSION,
            "preprocessing": PREPROCESSING,
            "calibration": {"temperature": values.pop("temperature")},
            **values,
        }
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> ScorerConfig:
        """Read `scorer.json`.

        Raises
        ------
        InputError
            If it is not there, damaged, or of another format or preprocessing.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            kind = values.pop("format_version"), values.pop("preprocessing")
            if kind != (FORMAT_VERSION, PREPROCESSING):
                raise InputError(
                    f"{path}: format {kind[0]} with preprocessing {kind[1]!r}; this version reads "
                    f"format {FORMAT_VERSION} with {PREPROCESSING!r}"
                )
            values["temperature"] = float(values.pop("calibration")["temperature"])
            if told := values.get("abstaining"):
                least = told["threshold"]
                told["threshold"] = math.inf if least is None else float(least)
                values["abstaining"] = Abstaining(**told)
            if told := values.get("prediction_sets"):
                told["thresholds"] = tuple(map(float, told["thresholds"]))
                values["prediction_sets"] = PredictionSets(**told)
            if told := values.get("prior"):
                values["prior"] = Prior(**{name: tuple(map(float, told[name])) for name in told})
            return cls(**{**values, "classes": tuple(values["classes"])})
        except FileNotFoundError as error:
            raise InputError(
                f"{path}: not there; a model folder holds {MODEL_FILE} and it"
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged or not a {CONFIG_FILE} ({error})") from error
