"""The gate before the registry: a logged model must load and agree in a clean process."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.stopping import stop_asked

BATCHES = (1, 5)
ATOL = 1e-4
"""Largest difference of a probability allowed. It is meant for float32 on both sides: of a network
evaluated in bfloat16 or TF32 on a GPU, compute the expected probabilities on the CPU."""
SQLITE = "sqlite:///"
TRIES = 3
PAUSE_SECONDS = 2.0
"""After a try that says nothing about the model, before the next."""


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What happened in the clean process; nan where it did not come so far."""

    ok: bool
    tried: bool = True
    """Whether what was found is the model's own; False where process, store or machine failed."""
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
            "gate": "passed" if self.ok else "failed" if self.tried else "not tried",
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
    tries: int = TRIES,
) -> GateReport:
    """Load a logged model in a clean process and compare what it predicts.

    The process has its own working directory, may not unpickle anything
    (`MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`), and must not come to import torch, OpenCV or this
    project, whose code the model carries. Tracking and registry URI are those of this process. It
    hears no Ctrl-C of a terminal, and ends when this process does.

    A process that was killed or took too long, a store that did not hand the model out and a full
    disk say nothing about the model: then it is tried again, unless this process was asked to stop.

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
        Seconds after which the process is ended.
    tries : int
        How often at most it is tried.

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
    for left in reversed(range(tries)):
        report = _try(request, expected_probabilities, atol, timeout)
        if report.tried or not left or stop_asked():
            break
        time.sleep(PAUSE_SECONDS)
    return report


def _try(
    request: Mapping[str, Any], expected: NDArray[np.floating], atol: float, timeout: float
) -> GateReport:
    begun = time.perf_counter()
    try:
        answer = _ask_clean_process(request, timeout)
    except subprocess.TimeoutExpired:
        answer = {"failed": f"not done after {timeout:g} seconds", "own": False}
    except subprocess.CalledProcessError as error:
        answer = {"failed": _ending(error), "own": False}
    if "failed" in answer:
        own = answer["own"]
        return GateReport(
            ok=False,
            tried=own,
            reasons=(answer["failed"] if own else f"not tried: {answer['failed']}",),
            seconds=time.perf_counter() - begun,
        )
    difference = _largest_difference(answer["probabilities"], expected)
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


def _ask_clean_process(request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
    """Run `gate_child` on a request; raise `subprocess` errors if it does not answer."""
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "request.json", Path(temporary) / "answer.json"
        asked.write_text(json.dumps(request))
        script = Path(__file__).with_name("gate_child.py")
        words = [str(script), str(asked), str(answered), str(os.getpid())]
        subprocess.run(
            [sys.executable, "-P", *words],  # -P: no cwd on the path
            cwd=temporary,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=True,
            start_new_session=True,  # Ctrl-C is for us
        )
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer


def _ending(error: subprocess.CalledProcessError) -> str:
    """Tell how the clean process ended without an answer."""
    if error.returncode < 0:
        return f"the clean process was ended by {signal.Signals(-error.returncode).name}"
    last = [line for line in error.stderr.splitlines() if line.strip()][-1:] or ["no message"]
    return f"the clean process ended with status {error.returncode}: {last[0]}"


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
