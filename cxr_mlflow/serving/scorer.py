"""Images to probabilities by ONNX Runtime, from a plain folder. Knows neither torch nor MLflow.

A model folder holds `model.onnx` and `scorer.json`. This module, `frames` and what they import are
shipped inside every logged model (see `package`), so they import nothing else of the project.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cxr_mlflow.data.preprocess import (
    MASK_THRESHOLD,
    Pixels,
    apply_mask,
    decode_grey,
    decode_mask,
    fit_to_size,
    needs_mask,
    network_input,
)
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.scorer_config import CONFIG_FILE, MODEL_FILE, ScorerConfig

BATCH = 8
"""Most images that a thread has in the network at a time. ResNet18 at 112 px then needs a tenth
less of a core for an image than one by one, at 64 px a third; with 16 hardly less."""
MOST_AT_ONCE = 32
"""Most images in the network at a time, over all threads; with more threads than that, one each.
It bounds the memory: some 12 MB an image with ResNet18 at 224 px."""
TRAINED_ON = {
    "lungs": "lungs cut out by their mask",
    "crop": "the box around the lungs, found by their mask",
    "lungs-crop": "lungs cut out by their mask and enlarged to their box",
}

Probabilities = NDArray[np.float32]
Mask = TypeVar("Mask", bytes, Pixels)


class Scorer:
    """A model that is loaded; made by `Scorer.load`. Threads may share it."""

    def __init__(self, config: ScorerConfig, path: Path, threads: int) -> None:
        self.config = config
        self._path = path
        self._threads = threads
        self._joint = _open_session(path, threads)
        self._input = self._joint.get_inputs()[0].name
        self._single: ort.InferenceSession | None = None
        self._opening = threading.Lock()

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None) -> Scorer:
        """Load a model folder.

        Parameters
        ----------
        folder : Path
            Holds `model.onnx` and `scorer.json`.
        threads : int, optional
            That decode and compute; by default `OMP_NUM_THREADS`, else the cores this process may
            use. Where there are fewer images than threads, these share an image; else each takes
            images for itself, and none waits for another.

        Raises
        ------
        InputError
            If a file is missing, damaged, or is not the one the folder was written with.
        """
        config = ScorerConfig.read(folder / CONFIG_FILE)
        path = folder / MODEL_FILE
        if not path.is_file():
            raise InputError(f"{path}: not there; a model folder holds it and {CONFIG_FILE}")
        if sha256_of(path) != config.model_sha256:
            raise InputError(f"{path}: not the file {CONFIG_FILE} was written for (sha256 differs)")
        return cls(config, path, threads or _usable_cores())

    def score_bytes(
        self,
        images: Sequence[bytes],
        masks: Sequence[bytes | None] | None = None,
        *,
        names: Sequence[str] | None = None,
        before_each: Callable[[], None] = lambda: None,
    ) -> Probabilities:
        """Score PNG or JPEG files.

        Parameters
        ----------
        images : sequence of N bytes
            Content of the files.
        masks : sequence of N bytes or None, optional
            Lung masks, PNG or JPEG. A model trained without masks does not look at them.
        names : sequence of N str, optional
            What messages call the images; "image 0", "image 1", ... by default.
        before_each : callable
            Called before an image is decoded; what it raises ends the scoring.

        Returns
        -------
        float32 array of shape (N, C)
            Probabilities, classes in the order of `config.classes`.

        Raises
        ------
        InputError
            If a file cannot be decoded, or a mask that the model needs is missing or empty.
        """
        called = self._names(len(images), masks, names)

        def prepare(row: int) -> Pixels:
            before_each()
            image = decode_grey(images[row], name=called[row])
            given = self._mask_or_none(called[row], None if masks is None else masks[row])
            mask = None if given is None else decode_mask(given, name=f"mask of {called[row]}")
            return self._prepare(image, mask, called[row])

        return self._score(len(images), prepare)

    def score_arrays(
        self,
        images: NDArray[np.integer],
        masks: NDArray[np.integer] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> Probabilities:
        """Score decoded images.

        Parameters
        ----------
        images : integer array of shape (N, H, W), or (H, W) for one image
            Grey values 0..255.
        masks : integer array of shape (N, h, w), or (h, w), optional
            Lung masks, either 0 and 1 or 0 to 255.
        names : sequence of N str, optional
            As in `score_bytes`.

        Returns
        -------
        float32 array of shape (N, C)

        Raises
        ------
        InputError
            If shape or values do not fit, or a mask that the model needs is missing or empty.
        """
        images = _as_batch(images, "images")
        masks = None if masks is None else _as_batch(masks, "masks")
        called = self._names(len(images), masks, names)

        def prepare(row: int) -> Pixels:
            mask = self._mask_or_none(called[row], None if masks is None else masks[row])
            if mask is not None:
                mask = (mask > (MASK_THRESHOLD if mask.max() > 1 else 0)).astype(np.uint8)
            return self._prepare(images[row], mask, called[row])

        return self._score(len(images), prepare)

    def _names(self, count: int, masks: Any, names: Sequence[str] | None) -> Sequence[str]:
        for what, values in (("masks", masks), ("names", names)):
            if values is not None and len(values) != count:
                raise InputError(f"{count} images and {len(values)} {what}: give one for each")
        return [f"image {row}" for row in range(count)] if names is None else names

    def _mask_or_none(self, name: str, mask: Mask | None) -> Mask | None:
        """Return the mask where the model looks at masks; then it must have been given."""
        mode = self.config.mask_mode
        if needs_mask(mode) and mask is None:
            raise InputError(
                f"{name}: this model was trained on {TRAINED_ON.get(mode, 'masked images')} "
                f"(mask_mode={mode}); send a `mask` for each image, a PNG or JPEG with the lungs "
                "white"
            )
        return mask if needs_mask(mode) else None

    def _prepare(self, image: Pixels, mask: Pixels | None, name: str) -> Pixels:
        """One image as the network was trained on: uint8 (S, S)."""
        if mask is not None and not mask.any():
            raise InputError(f"mask of {name}: it is empty, nothing of the image would be seen")
        config = self.config
        return apply_mask(
            *fit_to_size(image, mask, config.image_size, config.mask_mode), config.mask_mode
        )

    def _score(self, count: int, prepare: Callable[[int], Pixels]) -> Probabilities:
        def run(session: ort.InferenceSession, rows: range) -> Probabilities:
            images = network_input(np.stack([prepare(row) for row in rows]))[:, None]
            (logits,) = session.run(None, {self._input: images})  # float32 (B, C)
            return softmax(logits, self.config.temperature)

        each_its_own = 1 < self._threads <= count
        size = BATCH
        if each_its_own:
            size = min(size, -(-count // self._threads), max(1, MOST_AT_ONCE // self._threads))
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        found = [np.empty((0, len(self.config.classes)), np.float32)]
        if not each_its_own:
            found += [run(self._joint, part) for part in parts]
        else:
            session = self._single_session()
            with ThreadPoolExecutor(min(self._threads, len(parts))) as pool:
                tasks = [pool.submit(run, session, part) for part in parts]
                try:
                    found += [task.result() for task in tasks]  # the first bad image is told
                finally:
                    pool.shutdown(cancel_futures=True)
        return np.concatenate(found)

    def _single_session(self) -> ort.InferenceSession:
        """Session that computes on its caller's thread only, opened when first needed.

        Where the file has gone or changed since, the session that was loaded does the work, slower.
        """
        with self._opening:
            if self._single is None:
                same = self._path.is_file() and sha256_of(self._path) == self.config.model_sha256
                self._single = _open_session(self._path, 1) if same else self._joint
            return self._single


def _open_session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A thread that waits for another sleeps: spinning takes the core from whoever has work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Probabilities:
    """Probabilities float32 (N, C) of logits (N, C) that are divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_batch(values: NDArray[np.integer], what: str) -> Pixels:
    """Check pixels and return them as uint8 (N, H, W)."""
    values = np.asarray(values)
    if not (np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_):
        raise InputError(f"{what} of type {values.dtype}: give grey values 0..255 as uint8")
    if values.ndim not in (2, 3) or 0 in values.shape[-2:]:
        raise InputError(f"{what} of shape {values.shape}: give (N, H, W), or (H, W) for one")
    if values.dtype != np.uint8 and values.size and not 0 <= values.min() <= values.max() <= 255:
        raise InputError(f"{what} with values {values.min()}..{values.max()}: give 0..255")
    return values.astype(np.uint8, copy=False).reshape(-1, *values.shape[-2:])


def _usable_cores() -> int:
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
