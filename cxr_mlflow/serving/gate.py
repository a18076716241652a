"""The gate before the registry: a logged model must load and agree in a clean process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from numpy.typing import NDArray

BATCHES = (1, 5)
ATOL = 1e-4
"""Largest difference of a probability allowed. It is meant for float32 on both sides: of a network
evaluated in bfloat16 or TF32 on a GPU, compute the expected probabilities on the CPU."""
SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What happened in the clean process; nan where it did not come so far."""

    ok: bool
    reasons: tuple[str, ...] = ()
    """Why the model must not be registered; empty if it may."""
    seconds: float = float("nan")
    """Life of the whole process, its imports included."""
    load_seconds: float = float("nan")
    """`mlflow.pyfunc.load_model` alone."""
    first_prediction_seconds: float = float("nan")
    peak_memory_mb: float = float("nan")
    torch_imported: bool = False
    max_difference: float = float("nan")
    """Largest difference of a probability from the trained network's."""

    def tags(self) -> dict[str, str]:
        """Tags of a registered version that say what was checked."""
        return {
            "gate": "passed" if self.ok else "failed",
            "gate_load_seconds": f"{self.load_seconds:.2f}",
            "gate_first_prediction_seconds": f"{self.first_prediction_seconds:.3f}",
            "gate_peak_memory_mb": f"{self.peak_memory_mb:.0f}",
            "gate_max_difference": f"{self.max_difference:.1e}",
        }


def check_model_loads(
    model_uri: str,
    images: Sequence[bytes],
    masks: Sequence[bytes | None] | None,
    expected_probabilities: NDArray[np.floating],
    *,
    atol: float = ATOL,
    timeout: float = 180.0,
) -> GateReport:
    """Load a logged model in a clean process and compare what it predicts.

    The process has its own working directory, may not unpickle anything
    (`MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`), and must not come to import torch, OpenCV or this
    project, whose code the model carries. Tracking and registry URI are those of this process.

    Parameters
    ----------
    model_uri : str
        `models:/m-...`, `models:/NAME/VERSION` or `runs:/...`.
    images, masks : sequences of bytes
        PNG or JPEG files, of which the first five are taken; no masks for a model trained without.
    expected_probabilities : float array of shape (N, C)
        Of the trained network for these images, float32 on the CPU.
    atol : float
        Largest absolute difference of a probability.
    timeout : float
        Seconds after which the process is ended and the gate has failed.

    Returns
    -------
    GateReport
        A failure of the model is told in it, never raised.
    """
    if not images or len(expected_probabilities) != len(images):
        raise ValueError(
            "need an image or more, with one row of probabilities each; got "
            f"{len(images)} and {len(expected_probabilities)}"
        )
    batches = sorted({min(size, len(images)) for size in BATCHES})
    wanted = max(batches)
    request = {
        "model_uri": model_uri,
        "images": [_text(image) for image in images[:wanted]],
        "masks": [None if mask is None else _text(mask) for mask in (masks or ())][:wanted],
        "batches": batches,
    }
    begun = time.perf_counter()
    try:
        answer = _ask_clean_process(request, timeout)
    except subprocess.TimeoutExpired:
        return GateReport(ok=False, reasons=(f"not done after {timeout:g} seconds",))
    except subprocess.CalledProcessError as error:
        last = [line for line in error.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        return GateReport(
            ok=False,
            reasons=(f"the clean process failed with status {error.returncode}: {last[0]}",),
            seconds=time.perf_counter() - begun,
        )
    difference = _largest_difference(answer["probabilities"], expected_probabilities)
    reasons = [f"loading it imports {name}" for name in answer["imported"]]
    if not difference <= atol:  # this way round, nan is a reason too
        reasons.append(f"probabilities are off by {difference:.1e}, {atol:.0e} is allowed")
    return GateReport(
        ok=not reasons,
        reasons=tuple(reasons),
        seconds=time.perf_counter() - begun,
        load_seconds=answer["load_seconds"],
        first_prediction_seconds=answer["predict_seconds"][0],
        peak_memory_mb=answer["peak_memory_mb"],
        torch_imported="torch" in answer["imported"],
        max_difference=difference,
    )


def _ask_clean_process(request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Run `gate_child` on a request; raise `subprocess` errors if it does not answer."""
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "request.json", Path(temporary) / "answer.json"
        asked.write_text(json.dumps(request))
        script = Path(__file__).with_name("gate_child.py")
        subprocess.run(
            [
                sys.executable,
                "-P",
                str(script),
                str(asked),
                str(answered),
            ],  # -P: no cwd on the path
            cwd=temporary,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=True,
        )
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer


def _environment() -> dict[str, str]:
    left_out = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    return {
        **{name: value for name, value in os.environ.items() if name not in left_out},
        "MLFLOW_TRACKING_URI": _absolute(mlflow.get_tracking_uri()),
        "MLFLOW_REGISTRY_URI": _absolute(mlflow.get_registry_uri()),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PYTHONIOENCODING": "utf-8",
    }


def _absolute(uri: str) -> str:
    """Spell an sqlite URI so that it means the same file in another working directory."""
    path = uri.removeprefix(SQLITE)
    if path == uri or not path or path.startswith("/"):
        return uri
    return f"{SQLITE}{Path(path).resolve()}"


def _largest_difference(
    batches: Sequence[Sequence[Sequence[float]]], expected: NDArray[np.floating]
) -> float:
    differences = []
    for rows in batches:
        found = np.array(rows, np.float64)
        if found.shape != expected[: len(rows)].shape:
            return float("inf")
        differences.append(float(np.abs(found - expected[: len(rows)]).max()))
    return max(differences)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
