"""Images/s of our training, end to end, over the bare network's on a batch that never changes.

Both are timed in turn in one process, a round of steps each, so that a machine whose speed drifts
slows both. The bare network does forward, backward and an AdamW step on one resident batch: same
size, precision and memory format. Ours does all a run does: reading the cache, augmenting, masking,
clipping, the schedule, the averaged weights.

    python benchmarks/training_throughput.py --data-dir DIR --image-size 112
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from itertools import islice
from typing import Any

import click
import torch
from torch import nn

from cxr_mlflow.cli.options import CxrCommand, config_options
from cxr_mlflow.config import DataConfig, ModelConfig, TrainConfig
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.models import MODELS
from cxr_mlflow.training.callbacks import pick_device
from cxr_mlflow.training.fitting import start_fit, train_loader
from cxr_mlflow.training.loop import build_optimizer, to_input, train_step


def endless(loader: Any) -> Any:
    """Batches of epoch after epoch."""
    epoch = 0
    while True:
        epoch += 1
        loader.sampler.start_at(epoch)
        yield from loader


@click.command(cls=CxrCommand)
@config_options(DataConfig, only=["data_dir", "image_size", "mask_mode", "cache_dir"])
@config_options(ModelConfig, only=["model"])
@config_options(TrainConfig, only=["batch_size", "augment", "workers", "device", "ema_decay"])
@click.option(
    "--rounds", default=7, help="Rounds of each of the two, in turn; the first is warm-up."
)
@click.option("--steps", default=12, help="Steps in a round.")
def main(
    data_dir: str,
    image_size: int,
    mask_mode: Any,
    cache_dir: str,
    model: str,
    rounds: int,
    steps: int,
    **train: Any,
) -> None:
    """Print both speeds of every round and the median of their ratio."""
    data = DataConfig(
        data_dir=data_dir, image_size=image_size, mask_mode=mask_mode, cache_dir=cache_dir
    )
    config = TrainConfig(**train)
    device = pick_device(config.device)
    study = prepare(data)
    classes = len(study.catalog.classes)
    loader = train_loader(study, config, mask_mode=mask_mode, device=device)
    ours = start_fit(
        MODELS[model](classes),
        config,
        steps=(rounds + 1) * steps,
        class_weights=None,
        device=device,
    )
    ours.network.train()
    batches = endless(loader)
    images, labels = next(batch for batch in batches if len(batch[1]) == config.batch_size)
    images, labels = to_input(images, device), labels.to(device)
    bare = MODELS[model](classes).to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(bare, lr=config.lr, weight_decay=config.weight_decay)
    criterion = nn.CrossEntropyLoss()

    def bare_round() -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(bare(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()
        return steps * len(labels) / (time.perf_counter() - begun)

    def our_round() -> float:
        begun, seen = time.perf_counter(), 0
        for batch, batch_labels in islice(batches, steps):
            loss = train_step(ours, batch, batch_labels)
            seen += len(batch_labels)
        loss.item()
        return seen / (time.perf_counter() - begun)

    ratios = []
    for number in range(rounds):
        speed, limit = our_round(), bare_round()
        if number:  # the first warms up
            ratios.append(speed / limit)
            click.echo(f"ours {speed:8.1f}  bare {limit:8.1f} images/s  ratio {ratios[-1]:.3f}")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores"
    click.echo(
        f"median ratio {statistics.median(ratios):.3f} "
        f"({min(ratios):.3f}..{max(ratios):.3f}, {len(ratios)} rounds): {model}, {image_size} px, "
        f"batch {config.batch_size}, augment {config.augment}, {name}, {platform.machine()}, "
        f"torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
