"""Weights in files: written whole, read without running anything, known to be what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError

DIGEST = "weights_sha256"
"""Name in the header of a file of ours."""


def save_weights(state: Mapping[str, Tensor], path: Path, *, about: Mapping[str, str]) -> None:
    """Write a state dict as safetensors; an interrupted write leaves no file of that name.

    Parameters
    ----------
    state : mapping of str to Tensor
    path : Path
        Ends in .safetensors.
    about : mapping of str to str
        What the weights are; stored in the file's header, with their digest.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    told = {**about, DIGEST: _digest_by_name(contiguous)}
    with write_whole(path) as part:
        part.write_bytes(safetensors.torch.save(contiguous, metadata=told))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running anything that is in the file.

    Raises
    ------
    InputError
        If the file is missing, of another kind, damaged, tampered with, or more than plain tensors.
    """
    if not path.is_file():
        raise InputError(f"--weights={path}: no such file; also allowed: auto, imagenet, none")
    try:
        if path.suffix == ".safetensors":
            return _checked(path)
        if path.suffix in (".pth", ".pt"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise InputError(f"--weights={path}: a .pth or .safetensors file is wanted")
    except InputError:
        raise
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"--weights={path}: damaged file ({_first_line(error)})") from error
    except Exception as error:  # pickle's own errors share no base class
        raise InputError(
            f"--weights={path}: holds more than tensors, or is no state dict ({_first_line(error)})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"--weights={path}: not a state dict (names to tensors)")
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _checked(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; where its header tells a digest, the weights must have it."""
    state = safetensors.torch.load_file(path)
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get(DIGEST)
    if told is not None and told != _digest_by_name(state):
        raise InputError(
            f"--weights={path}: not the weights that were written into it (their digest differs)"
        )
    return state


def _digest_by_name(state: Mapping[str, Tensor]) -> str:
    """Digest that does not depend on the order: safetensors has one of its own."""
    return digest_of(dict(sorted(state.items())))


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights, their names and order."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()
