"""The training loop. It knows tensors and callbacks; not MLflow, not files, not figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

Measure = Callable[[NDArray[np.float64], NDArray[np.int64]], dict[str, float]]
"""Scores of logits (N, C) against labels (N,)."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch measured."""

    epoch: int  # from 1
    metrics: dict[str, float]  # "train/loss", "val/f1_macro", ...
    draws: NDArray[np.int64]  # (C,), how often each class was drawn


class Callback(Protocol):
    """Looks on; may ask for an early stop."""

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """See a finished step; `loss` is a scalar on the device, reading it waits for it."""
        ...

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """See a finished epoch and the weights it was scored with; True asks to stop."""
        ...


@dataclass
class Position:
    """How far training has come: all that the next step depends on, beside weights and data."""

    epoch: int = 1
    """The epoch under way, from 1."""
    batch: int = 0
    """Steps of it that are done."""
    loss_sum: Tensor | None = None
    draws: Tensor | None = None
    lr: float = 0.0
    """Learning rate of its first step."""
    seconds: float = 0.0
    """Time its steps took; an interruption is not counted."""
    random_states: Mapping[str, Tensor] | None = None
    """Of torch's generators, where training goes on in mid-epoch; an epoch begins by its seed."""
    history: list[EpochResult] = field(default_factory=list)
    is_over: bool = False
    """Whether a callback has asked to stop."""

    def begin(self, epoch: int) -> None:
        """Stand before the first step of an epoch."""
        self.epoch, self.batch, self.seconds = epoch, 0, 0.0
        self.loss_sum = self.draws = self.random_states = None


Save = Callable[[Position, bool], None]
"""Sees the position after every step and every epoch; told whether an epoch has just ended."""


@dataclass
class Fit:
    """Everything a step changes, beside the data."""

    network: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    criterion: nn.Module
    device: torch.device
    clip_norm: float = 0.0
    average: AveragedModel | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are scored and kept: the averaged ones where there are any."""
        return self.network if self.average is None else self.average.module


def fit(
    state: Fit,
    train_loader: DataLoader[Any],
    val_loader: DataLoader[Any],
    *,
    epochs: int,
    seed: int,
    measure: Measure,
    num_classes: int,
    callbacks: Sequence[Callback] = (),
    position: Position | None = None,
    save: Save | None = None,
) -> list[EpochResult]:
    """Train for at most `epochs`; return what each epoch measured.

    `state.criterion` may carry class weights. The validation loss never does: it is the plain
    cross-entropy, so that it compares across strategies.

    Parameters
    ----------
    state : Fit
        Changed in place; its network is on its device.
    train_loader : DataLoader
        Batches of images uint8 (B, 1, S, S) and labels int64 (B,), with an `EpochSampler`.
    val_loader : DataLoader
        The same, each image once, in order.
    epochs : int
    seed : int
        Each epoch seeds torch with it plus its own number.
    measure : callable
        Validation scores of logits (N, C) and labels (N,).
    num_classes : int
        C.
    callbacks : sequence of Callback
        Asked in this order; training stops if one says so, after all have seen the epoch.
    position : Position, optional
        Where an interrupted training stood, with `state` as it was then; what follows is to the bit
        what would have followed. From the start by default.
    save : callable, optional
        May keep a copy of `state` and position.

    Raises
    ------
    FloatingPointError
        If the training loss is no longer finite.
    """
    at = position or Position()
    while at.epoch <= epochs and not at.is_over:
        loss = train_one_epoch(state, train_loader, at, seed, num_classes, callbacks, save)
        logits, labels = predict(state.evaluated, val_loader, state.device)
        assert at.draws is not None
        draws = at.draws.numpy()
        metrics = {
            "train/loss": loss,
            "train/lr": at.lr,
            "train/seconds": at.seconds,
            "train/images_per_second": int(draws.sum()) / at.seconds,
            **{f"val/{name}": value for name, value in measure(logits, labels).items()},
        }
        at.history.append(EpochResult(at.epoch, metrics, draws))
        wants_stop = [c.on_epoch_end(state.evaluated, at.history[-1]) for c in callbacks]
        at.begin(at.epoch + 1)
        at.is_over = any(wants_stop)  # asked after every callback has seen the epoch
        if save:
            save(at, True)
    return at.history


def train_one_epoch(
    state: Fit,
    loader: DataLoader[Any],
    at: Position,
    seed: int,
    num_classes: int,
    callbacks: Sequence[Callback] = (),
    save: Save | None = None,
) -> float:
    """Go through `loader` from where `at` stands to its end; return the mean loss per image.

    Parameters
    ----------
    state : Fit
        Changed in place.
    loader : DataLoader
        Batches of images uint8 (B, 1, S, S) and labels int64 (B,), with an `EpochSampler`.
    at : Position
        Moved on with every step.
    seed, num_classes, callbacks, save
        As of `fit`.

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    """
    state.network.train()
    if at.loss_sum is None or at.draws is None:
        at.loss_sum = torch.zeros((), device=state.device)
        at.draws = torch.zeros(num_classes, dtype=torch.int64)
        at.lr = state.optimizer.param_groups[0]["lr"]
    done = at.batch * (loader.batch_size or 1)
    loader.sampler.start_at(at.epoch, done)  # type: ignore[attr-defined]
    torch.manual_seed(seed + at.epoch)
    batches = iter(loader)  # takes a number from torch's generator: before its state is set
    if at.random_states is not None:
        set_random_states(at.random_states)
    num_batches = at.batch + len(loader)
    before = time.perf_counter() - at.seconds
    for images, labels in batches:  # uint8 (B, 1, S, S), int64 (B,)
        at.draws += torch.bincount(labels, minlength=num_classes)
        loss = train_step(state, images, labels)
        at.loss_sum += loss * len(labels)  # stays on the device: no wait per batch
        at.batch += 1
        for callback in callbacks:
            callback.on_batch_end(at.epoch, at.batch, num_batches, loss)
        at.seconds = time.perf_counter() - before
        if save:
            save(at, False)
    mean = at.loss_sum.item() / int(at.draws.sum())  # waits for the device
    at.seconds = time.perf_counter() - before
    if not math.isfinite(mean):
        raise FloatingPointError(f"training loss became {mean} in epoch {at.epoch}; lower --lr")
    return mean


def random_states() -> dict[str, Tensor]:
    """State of torch's generators: the CPU's, and that of every GPU."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put torch's generators back into a state, those of the GPUs that are there."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        if name != "cpu" and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, name)


def train_step(state: Fit, images: Tensor, labels: Tensor) -> Tensor:
    """One optimizer step; returns the loss, a scalar on the device."""
    images = to_input(images, state.device)
    labels = labels.to(state.device, non_blocking=True)
    with torch.autocast("cuda", torch.bfloat16, enabled=state.device.type == "cuda"):
        loss = state.criterion(state.network(images), labels)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if state.clip_norm:
        nn.utils.clip_grad_norm_(state.network.parameters(), state.clip_norm)
    state.optimizer.step()
    state.scheduler.step()
    if state.average is not None:
        state.average.update_parameters(state.network)
    return loss.detach()


@torch.inference_mode()
def predict(
    network: nn.Module, loader: DataLoader[Any], device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits float64 (N, C) and labels int64 (N,), in the loader's order.

    Always in float32: these scores are published, and the served model computes in float32.
    """
    network.eval()
    logits, labels = [], []
    for images, batch_labels in loader:
        logits.append(network(to_input(images, device)).cpu())
        labels.append(batch_labels)
    return torch.cat(logits).double().numpy(), torch.cat(labels).numpy()


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """8-bit pixels to float32 in [0, 1] on the device; as `preprocess.network_input` does."""
    moved = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    return moved.float() / 255.0


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """Exponential moving average of weights and buffers; None for decay 0.

    The decay of step n is at most (1 + n) / (10 + n), so that short runs do not keep their first,
    random weights.
    """
    if not decay:
        return None

    def update(averages: Any, current: Any, num_averaged: Tensor | int) -> None:
        n = float(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, num_averaged)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


def build_optimizer(network: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and norms."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)
