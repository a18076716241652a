"""From a trained network to an ONNX file that computes the same, so that serving needs no torch."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of logits allowed between ONNX Runtime and torch, relative to the largest
logit (or to 1 where all are smaller). Reordered float32 sums differ by some 1e-6."""
CHECKED_BATCHES = (1, 5)


def export_onnx(model: nn.Module, path: Path, *, image_size: int) -> None:
    """Write a network as ONNX and check that the file gives the same logits.

    The network that is passed stays as it is: a copy on the CPU in float32, eval mode and plain
    memory layout is exported, by torch's `torch.export`-based exporter.

    Parameters
    ----------
    model : nn.Module
        Takes float32 (B, 1, S, S) in [0, 1] and returns logits (B, C).
    path : Path
        The file to write. One file: the weights are inside.
    image_size : int
        S, the side of the square input, pixels. The batch axis stays free.

    Raises
    ------
    RuntimeError
        If the file is not valid ONNX or its logits are off by more than `TOLERANCE`; it is removed.
    """
    network = copy.deepcopy(model).to("cpu", torch.float32)
    network = network.to(memory_format=torch.contiguous_format)
    network.eval().requires_grad_(False)
    try:
        with _quiet():
            torch.onnx.export(
                network,
                (torch.rand(2, 1, image_size, image_size),),
                path,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=OPSET,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
        onnx.checker.check_model(str(path), full_check=True)
        _compare(network, path, image_size)
    except Exception:
        path.unlink(missing_ok=True)
        raise


@torch.inference_mode()
def _compare(network: nn.Module, path: Path, image_size: int) -> None:
    """Hold the file's logits against the network's on some batches of noise."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for size in CHECKED_BATCHES:
        images = torch.rand(size, 1, image_size, image_size, generator=generator)
        expected = network(images).numpy()
        (logits,) = session.run([OUTPUT_NAME], {INPUT_NAME: images.numpy()})
        allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
        off = float(np.abs(logits - expected).max())
        if logits.shape != expected.shape or not off <= allowed:  # this way round for nan
            raise RuntimeError(
                f"the ONNX file is not the trained network: at batch {size} its logits are off by "
                f"{off:.2e}, and {allowed:.2e} is allowed"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines, log records and warnings off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
