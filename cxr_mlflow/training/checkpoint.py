"""Checkpoints on disk: written whole or not at all, and known to be undamaged."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cxr_mlflow.data.storage import write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.training.callbacks import BestWeights
from cxr_mlflow.training.loop import EpochResult, Fit, Position, random_states

KEPT = 2
"""Checkpoints on disk at a time: the newest, and the one before should it be damaged."""
ADVICE = "name another folder with $CXR_STATE_DIR"
SUFFIX = ".checkpoint"
Warn = Callable[[str], None]


class Checkpoints:
    """A folder of checkpoints of one training: the newest ones, each with its checksum.

    Parameters
    ----------
    folder : Path
        Made at the first save.
    seconds : float
        Least time between two checkpoints within an epoch; one at the end of each epoch in any
        case.
    warn : callable
        Takes a line when a checkpoint was damaged, or could not be written.
    """

    def __init__(self, folder: Path, *, seconds: float, warn: Warn) -> None:
        self.folder, self.seconds, self.warn = folder, seconds, warn
        self.last = time.monotonic()
        self._useless: set[Path] = set()
        """Damaged or unreadable: they do not count among those that are kept."""

    def keep(self, state: Fit, best: BestWeights, at: Position, epoch_is_over: bool) -> None:
        """Save after an epoch, and within one if it is time.

        A disk that is full does not stop the training: it is said, and the checkpoint before stays.
        """
        if not epoch_is_over and time.monotonic() - self.last < self.seconds:
            return
        try:
            self.write(pack(state, best, at))
        except (InputError, OSError) as error:
            self.warn(f"no checkpoint could be written: {error}")
        self.last = time.monotonic()

    def write(self, content: Mapping[str, Any]) -> Path:
        """Write a checkpoint beside the last one, then drop those before that.

        Raises
        ------
        InputError
            If the disk is full or the folder closed.
        """
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        payload = buffer.getbuffer()
        numbers = [int(path.stem) for path in self.paths()]
        path = self.folder / f"{max(numbers, default=0) + 1:08d}{SUFFIX}"
        with write_whole(path, ADVICE) as part, part.open("wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
        whole = [found for found in self.paths() if found not in self._useless]
        for found in self.paths():
            if found not in whole[-KEPT:]:
                found.unlink()
        return path

    def read(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole; None if there is none.

        One that is damaged, or on a broken disk, is named, and the one before is taken.
        """
        paths = self.paths()
        while paths:
            path = paths.pop()
            try:
                return read_checkpoint(path)
            except (InputError, OSError) as error:
                self._useless.add(path)
                instead = "the one before it is used" if paths else "the training begins anew"
                self.warn(f"{error}; {instead}")
        return None

    def paths(self) -> list[Path]:
        """Files of the checkpoints, the oldest first."""
        return sorted(self.folder.glob(f"*{SUFFIX}"))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint if it is what was written.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    content = path.read_bytes()
    digest, payload = content[:32], memoryview(content)[32:]
    if hashlib.sha256(payload).digest() != digest:
        raise InputError(f"{path}: a damaged checkpoint")
    told: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return told


def pack(state: Fit, best: BestWeights, at: Position) -> dict[str, Any]:
    """Gather all that the next step depends on, as plain values and tensors."""
    return {
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "average": None if state.average is None else state.average.state_dict(),
        "best": {"value": float(best.best), "epoch": best.epoch, "state": dict(best.state)},
        "position": {
            "epoch": at.epoch,
            "batch": at.batch,
            "loss_sum": at.loss_sum,
            "draws": at.draws,
            "lr": at.lr,
            "seconds": at.seconds,
            "random_states": random_states() if at.batch else None,
            "history": [
                (r.epoch, {k: float(v) for k, v in r.metrics.items()}, torch.from_numpy(r.draws))
                for r in at.history
            ],
            "is_over": at.is_over,
        },
    }


def unpack(content: Mapping[str, Any], state: Fit, best: BestWeights) -> Position:
    """Put a training back to where a checkpoint was taken; return the position.

    Parameters
    ----------
    content : mapping
        Of `pack`.
    state : Fit
    best : BestWeights
        Both are changed in place.

    Raises
    ------
    InputError
        If it is a checkpoint of another network.
    """
    try:
        state.network.load_state_dict(content["network"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.scheduler.load_state_dict(content["scheduler"])
        if state.average is not None:
            state.average.load_state_dict(content["average"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the checkpoint is of another model ({str(error).splitlines()[0]}); --fresh true "
            "starts over"
        ) from error
    told = content["best"]
    best.best, best.epoch, best.state = told["value"], told["epoch"], told["state"]
    at = Position(**{**content["position"], "history": []})
    for epoch, metrics, draws in content["position"]["history"]:
        at.history.append(EpochResult(epoch, metrics, draws.numpy()))
    if at.loss_sum is not None:
        at.loss_sum = at.loss_sum.to(state.device)
    return at
