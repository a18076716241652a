"""Weights on disk: safetensors, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor


def save_weights(state: Mapping[str, Tensor], path: Path, *, about: Mapping[str, str]) -> None:
    """Write a state dict as safetensors; an interrupted write leaves no file of that name.

    Parameters
    ----------
    state : mapping of str to Tensor
    path : Path
        Ends in .safetensors.
    about : mapping of str to str
        What the weights are; stored in the file's header.
    """
    part = path.with_name(path.name + ".part")
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    part.write_bytes(safetensors.torch.save(contiguous, metadata=dict(about)))
    with part.open("rb") as handle:
        os.fsync(handle.fileno())
    os.replace(part, path)
