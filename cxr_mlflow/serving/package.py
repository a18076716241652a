"""From a trained network to a logged MLflow model that carries its own code."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image, ImageDraw

from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.names import slug
from cxr_mlflow.serving.frames import WANTED
from cxr_mlflow.serving.scorer import Scorer, sha256_of
from cxr_mlflow.serving.scorer_config import (
    APPROXIMATE,
    CONFIG_FILE,
    MODEL_FILE,
    PROMISES,
    Abstaining,
    PredictionSets,
    Prior,
    ScorerConfig,
)

if TYPE_CHECKING:  # torch is loaded where a network is exported, not to register or serve one
    from torch import nn

SHIPPED = (
    "__init__.py",
    "errors.py",
    "names.py",
    "data/__init__.py",
    "data/preprocess.py",
    "serving/__init__.py",
    "serving/scorer.py",
    "serving/scorer_config.py",
    "serving/frames.py",
)
"""Modules that a logged model carries: the scorer and all it imports."""
MODEL_SCRIPT = "serving/pyfunc_model.py"
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
"""Packages that the shipped code needs, pinned in the model to the versions it was checked with."""


def write_folder(
    folder: Path,
    network: nn.Module,
    *,
    classes: Sequence[str],
    image_size: int,
    mask_mode: str,
    trained_on: Mapping[str, str],
    temperature: float = 1.0,
    abstaining: Abstaining | None = None,
    prediction_sets: PredictionSets | None = None,
    prior: Prior | None = None,
) -> Path:
    """Write a model folder: `model.onnx` and `scorer.json`, all that scoring needs.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    network : nn.Module
        Takes float32 (B, 1, S, S) in [0, 1], returns logits (B, C). It is not changed.
    classes : sequence of C names
        In the order of the logits.
    image_size, mask_mode
        As in `cxr_mlflow.config.DataConfig`.
    trained_on : mapping of str to str
        What a reader of a prediction should know: data, synthetic, weights, ...
    temperature : float
        Divides the logits before the softmax.
    abstaining : Abstaining, optional
        When the model does not answer; without it, it always does.
    prediction_sets : PredictionSets, optional
        Makes the model return sets of classes as well.
    prior : Prior, optional
        How frequent the classes were in training, and what was added to the logits for it.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    RuntimeError
        If the exported network does not compute what the trained one does.
    InputError
        If the prediction sets do not fit the classes.
    """
    from cxr_mlflow.serving.export import export_onnx

    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(network, folder / MODEL_FILE, image_size=image_size)
    config = ScorerConfig(
        classes=tuple(classes),
        image_size=image_size,
        mask_mode=mask_mode,
        model_sha256=sha256_of(folder / MODEL_FILE),
        temperature=temperature,
        abstaining=abstaining,
        prediction_sets=prediction_sets,
        prior=prior,
        trained_on=dict(trained_on),
        versions={name: metadata.version(name) for name in ("torch", *REQUIREMENTS)},
    )
    (folder / CONFIG_FILE).write_text(config.dumps(), encoding="utf-8")
    return folder


def log_model(
    folder: Path, *, run_id: str, name: str = "model", tags: Mapping[str, str] | None = None
) -> str:
    """Log a model folder as an MLflow model of a run. Registering it is another step.

    Parameters
    ----------
    folder : Path
        Written by `write_folder`.
    run_id : str
        The run it belongs to, open or finished; its state is not changed.
    name : str
        Of the logged model.
    tags : mapping of str to str, optional
        Tags of the logged model.

    Returns
    -------
    str
        Its URI, `models:/m-...`.
    """
    config = Scorer.load(folder).config  # a damaged folder is refused here
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    logged = client.create_logged_model(  # `Model.log` would use the experiment of the moment
        run.info.experiment_id, name, run_id, tags=dict(tags or {}), params=run.data.params
    )
    with tempfile.TemporaryDirectory() as temporary:
        code, script = ship_code(Path(temporary))
        with _importable(code.parent), warnings.catch_warnings():
            # MLflow 3.17 compares an index with a range, of which pandas 3 warns
            warnings.filterwarnings("ignore", "Operation with range", DeprecationWarning)
            info = Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                model_id=logged.model_id,
                python_model=str(script),
                artifacts={"model": str(folder)},
                code_paths=[str(code)],
                pip_requirements=requirements(),
                signature=signature(config),
                input_example=example(config.mask_mode),
                metadata=describe(config),
            )
    return str(info.model_uri)


def find_logged(run_id: str, name: str = "model") -> str | None:
    """Find the whole model of a name that a run has logged already; remove torn ones.

    Returns
    -------
    str or None
        Its URI, `models:/m-...`.
    """
    client = mlflow.MlflowClient()
    home = client.get_run(run_id).info.experiment_id
    found = None
    for model in client.search_logged_models([home], f"source_run_id = '{run_id}'"):
        if model.name == name and model.status == LoggedModelStatus.READY:
            found = model.model_uri
        elif model.name == name:
            client.delete_logged_model(model.model_id)
    return found


def ship_code(folder: Path) -> tuple[Path, Path]:
    """Write the code that a model carries: a package of its own name, and the script.

    The package is called `cxr_serving_<digest of its content>`. So a process that has this project
    (perhaps a newer one) or another model loaded cannot mix their code up: equal names are equal
    code.

    Returns
    -------
    package, script : Path
    """
    root = resources.files("cxr_mlflow")
    sources = {
        path: root.joinpath(path).read_text(encoding="utf-8") for path in (*SHIPPED, MODEL_SCRIPT)
    }
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]
    package = folder / f"cxr_serving_{digest}"
    for path, text in sources.items():
        target = folder / Path(path).name if path == MODEL_SCRIPT else package / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(r"\bcxr_mlflow\b", package.name, text), encoding="utf-8")
    return package, folder / Path(MODEL_SCRIPT).name


def requirements() -> list[str]:
    """Pip requirements of a served model, without local versions: `numpy==2.4.1`."""
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in REQUIREMENTS]


def signature(config: ScorerConfig) -> ModelSignature:
    """Columns the model returns. The input has no schema, so that arrays pass; docs/serving.md."""
    columns = [ColSpec(DataType.string, "label"), ColSpec(DataType.float, "confidence")]
    columns += [ColSpec(DataType.float, f"p_{slug(name)}") for name in config.classes]
    if config.abstaining:
        columns.append(ColSpec(DataType.boolean, "abstain"))
    if config.prediction_sets:
        columns.append(ColSpec(DataType.string, "prediction_set"))
    return ModelSignature(outputs=Schema(columns))


def describe(config: ScorerConfig) -> dict[str, Any]:
    """Metadata in the MLmodel file: what to send, what the model is, and what it promises."""
    told = json.loads(config.dumps())
    promises = {name: told[name] for name in PROMISES if name in told}
    return {
        "input": WANTED,
        "classes": list(config.classes),
        "image_size": config.image_size,
        "mask_mode": config.mask_mode,
        **promises,
        "promises": APPROXIMATE,
        "trained_on": dict(config.trained_on),
    }


def example(mask_mode: str) -> pd.DataFrame:
    """One row to try a model with: a drawn chest of 64 pixels, not a picture of anybody."""
    image, mask = Image.new("L", (64, 64), 150), Image.new("L", (64, 64), 0)
    for lung in ((10, 12, 29, 54), (35, 12, 54, 54)):
        ImageDraw.Draw(image).ellipse(lung, fill=60)
        ImageDraw.Draw(mask).ellipse(lung, fill=255)
    columns = {"image": [_png(image)]}
    if needs_mask(mask_mode):
        columns["mask"] = [_png(mask)]
    return pd.DataFrame(columns)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let MLflow run the script while it logs it, and leave no trace in `sys` or the model."""
    before, without_bytecode = list(sys.path), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:] = before
        sys.dont_write_bytecode = without_bytecode
        for name in [name for name in sys.modules if name.startswith("cxr_serving_")]:
            path = getattr(sys.modules[name], "__file__", None) or ""
            if Path(path).is_relative_to(folder) or not Path(path).is_file():
                del sys.modules[name]
