"""Sets up the loop for one configuration and runs it: loaders, loss, schedule, best weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from cxr_mlflow.config import TrainConfig
from cxr_mlflow.data.dataset import EpochSampler, Growth, InOrder, RadiographDataset, build_loader
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.data.transforms import AUGMENTATIONS
from cxr_mlflow.strategies import balance
from cxr_mlflow.training.callbacks import BestWeights, ProgressLines
from cxr_mlflow.training.checkpoint import Checkpoints, unpack
from cxr_mlflow.training.loop import (
    Callback,
    EpochResult,
    Fit,
    Measure,
    Position,
    averaged,
    build_optimizer,
    fit,
    predict,
)

MAX_GPU_WORKERS = 12


@dataclass(frozen=True)
class Trained:
    """A fitted network, at its best epoch, and how it got there."""

    network: nn.Module
    state: Mapping[str, Tensor]
    best_epoch: int
    history: pd.DataFrame  # column epoch and one per metric key
    draws: pd.DataFrame  # column epoch and one per class name
    shares: NDArray[np.float64]  # (C,), of the classes in the training images
    prior_shift: NDArray[np.float64]  # (C,), added to the logits for them; see `Balancing`


def training_set(
    study: Study, config: TrainConfig, mask_mode: str, growth: Growth | None = None
) -> RadiographDataset:
    """Training images with their augmentation.

    Parameters
    ----------
    study : Study
    config : TrainConfig
        Names the augmentation, and the seed of what it does to each image.
    mask_mode : str
    growth : Growth, optional
        Sides of the images by epoch; whole in every epoch by default.
    """
    transform = AUGMENTATIONS[config.augment](study.cache.images.shape[-1])
    rows = study.split.rows("train")
    return RadiographDataset(
        study.cache,
        rows,
        study.labels,
        mask_mode=mask_mode,
        transform=None if config.augment == "none" else transform,
        seed=config.seed,
        growth=growth,
    )


def train_loader(
    study: Study, config: TrainConfig, *, mask_mode: str, device: torch.device
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of augmented training images, drawn as the strategy says."""
    growth = Growth(study.cache.images.shape[-1], config.start_size, config.epochs)
    dataset = training_set(study, config, mask_mode, growth)
    labels = study.labels[dataset.rows]
    balancing = balance(config.strategy, labels, study.catalog.classes)
    sampler = EpochSampler(len(dataset), seed=config.seed, draw_weights=balancing.draw_weights)
    workers = num_workers(config.workers, device)
    return build_loader(dataset, sampler, batch_size=config.batch_size, workers=workers)


def num_workers(asked: int, device: torch.device) -> int:
    """Loader processes: beside a GPU several; a CPU is better spent on the network itself."""
    if asked >= 0:
        return asked
    return min(MAX_GPU_WORKERS, torch.get_num_threads()) if device.type == "cuda" else 0


def ordered_loader(
    study: Study, split: str, *, mask_mode: str, batch_size: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Every image of a split once, as it is."""
    rows = study.split.rows(split)
    dataset = RadiographDataset(study.cache, rows, study.labels, mask_mode=mask_mode)
    return build_loader(dataset, InOrder(len(rows)), batch_size=batch_size, workers=0)


def start_fit(
    network: nn.Module,
    config: TrainConfig,
    *,
    steps: int,
    class_weights: NDArray[np.float64] | None,
    device: torch.device,
) -> Fit:
    """Optimizer, schedule, loss and averaged weights for a network about to be trained.

    Parameters
    ----------
    network : nn.Module
        Moved to `device` in place.
    config : TrainConfig
    steps : int
        Of the whole training, all epochs: the schedule ends with them.
    class_weights : float64 array of shape (C,) or None
        Of the classes in the loss; None: all weigh the same.
    device : torch.device
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # scores are float32, as the served model computes
    torch.use_deterministic_algorithms(True, warn_only=True)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, lr=config.lr, weight_decay=config.weight_decay)
    # OneCycleLR divides by the length of each of its two phases less one step.
    rise = max(config.warmup, 2 / steps) if steps > 4 else 0.5
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=max(steps, 4), pct_start=rise)
    weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
    criterion = nn.CrossEntropyLoss(weight, label_smoothing=config.label_smoothing).to(device)
    return Fit(
        network,
        optimizer,
        scheduler,
        criterion,
        device,
        clip_norm=config.clip_norm,
        average=averaged(network, config.ema_decay),
    )


def train(
    network: nn.Module,
    study: Study,
    config: TrainConfig,
    *,
    mask_mode: str,
    device: torch.device,
    measure: Measure,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Train a network and bring it to the weights of its best validation macro F1.

    The prior correction is scored with in every epoch and in the end added to the bias of the last
    layer, so that every form the network is kept in has it.

    Parameters
    ----------
    network : nn.Module
        Changed in place; ends on `device` with the best weights, in eval mode.
    study : Study
        Trained on its training images, scored on its validation images.
    config : TrainConfig
    mask_mode : str
        What the network sees of the images.
    device : torch.device
    measure : callable
        Validation scores of logits and labels; must give `f1_macro` and `loss`.
    callbacks : sequence of Callback
        Called after the best weights of the epoch are kept.
    checkpoints : Checkpoints, optional
        Where the training is kept while it goes on; if it holds one, training goes on from there.

    Raises
    ------
    FloatingPointError
        If the training loss is no longer finite.
    InputError
        If the checkpoint is of another network.
    """
    classes = study.catalog.classes
    loader = train_loader(study, config, mask_mode=mask_mode, device=device)
    labels = study.labels[study.split.rows("train")]
    balancing = balance(config.strategy, labels, classes)
    counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
    shift = balancing.prior_shift(counts) * config.prior_correction
    state = start_fit(
        network,
        config,
        steps=config.epochs * len(loader),
        class_weights=balancing.class_weights,
        device=device,
    )
    best = BestWeights("val/f1_macro", config.patience)
    position, save = None, None
    if checkpoints:
        if content := checkpoints.read():
            position = unpack(content, state, best)
            tell_position(position, len(loader), config.epochs)
        save = partial(checkpoints.keep, state, best)
    history = fit(
        state,
        loader,
        ordered_loader(study, "val", mask_mode=mask_mode, batch_size=2 * config.batch_size),
        epochs=config.epochs,
        seed=config.seed,
        measure=lambda logits, truth: measure(logits + shift, truth),
        num_classes=len(classes),
        callbacks=[best, ProgressLines(config.epochs, config.batch_size, best), *callbacks],
        position=position,
        save=save,
    )
    network.load_state_dict(best.state)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.add_(torch.tensor(shift, dtype=last.bias.dtype, device=last.bias.device))
    final = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    shares = counts / counts.sum()
    return Trained(network.eval(), final, best.epoch, *tables(history, classes), shares, shift)


def tell_position(at: Position, num_batches: int, epochs: int) -> None:
    """Say where an interrupted training goes on."""
    if at.is_over or at.epoch > epochs:
        told = f"all {len(at.history)} epochs are trained"
    else:
        told = f"goes on in epoch {at.epoch} of {epochs}, after step {at.batch} of {num_batches}"
    print(f"training {told}", file=sys.stderr)


def tables(
    history: Sequence[EpochResult], classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """History of metrics and of draws, one row per epoch."""
    metrics = pd.DataFrame([{"epoch": r.epoch, **r.metrics} for r in history])
    draws = pd.DataFrame(
        [{"epoch": r.epoch, **dict(zip(classes, r.draws.tolist(), strict=True))} for r in history]
    )
    return metrics, draws


def score_split(
    trained: Trained, study: Study, split: str, *, mask_mode: str, device: torch.device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits (N, C) and labels (N,) of a split, in the order of `study.split.rows`.

    Parameters
    ----------
    trained : Trained
    study : Study
    split : str
        "train", "val" or "test".
    mask_mode : str
        That the network was trained with.
    device : torch.device
        Where the network is.
    """
    loader = ordered_loader(study, split, mask_mode=mask_mode, batch_size=128)
    return predict(trained.network, loader, device)
