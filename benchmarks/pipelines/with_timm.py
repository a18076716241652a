"""timm's parts wired as in its training script: loader, transforms, AdamW, cosine schedule."""

from __future__ import annotations

import sys

import pandas as pd
import timm
import torch
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.pipelines.task import MEAN, STD, Task, Watch, labels_of, masked, read_task

WORKERS = 2


class Images(Dataset):  # type: ignore[type-arg]
    """PIL images; timm's loader sets the transform."""

    transform = None

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        row = self.rows.iloc[number]
        image = masked(row["path"], row["mask_path"])
        return self.transform(image) if self.transform else image, int(row["label"])


def loader(task: Task, split: str) -> DataLoader:  # type: ignore[type-arg]
    """Batches of a split."""
    return create_loader(
        Images(task.rows(split)),
        input_size=(3, task.image_size, task.image_size),
        batch_size=task.batch_size,
        is_training=split == "train",
        use_prefetcher=False,
        scale=(0.8, 1.0),
        ratio=(0.95, 1.05),
        color_jitter=None,
        mean=MEAN,
        std=STD,
        crop_pct=1.0,
        num_workers=WORKERS,
        persistent_workers=True,
        device=torch.device("cpu"),
    )


def main(path: str) -> None:
    """Train and report."""
    task = read_task(path)
    watch = Watch(task)
    torch.manual_seed(task.seed)
    batches = {split: loader(task, split) for split in ("train", "val", "test")}
    network = timm.create_model("resnet18", num_classes=task.classes)
    network.load_state_dict(task.network().state_dict())
    optimizer = create_optimizer_v2(network, opt="adamw", lr=task.lr, weight_decay=0.05)
    steps = len(batches["train"])
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=task.epochs,
        warmup_epochs=max(1, task.epochs // 5),
        warmup_lr=task.lr / 25,
        updates_per_epoch=steps,
        step_on_epochs=False,
    )
    criterion = nn.CrossEntropyLoss()
    for epoch in range(task.epochs):
        network.train()
        for number, (images, labels) in enumerate(batches["train"]):
            optimizer.zero_grad()
            criterion(network(images), labels).backward()
            optimizer.step()
            schedule.step_update(epoch * steps + number + 1)
            watch.step(len(labels))
        watch.epoch(lambda split: labels_of(network, batches[split]))
    watch.end(lambda split: labels_of(network, batches[split]))


if __name__ == "__main__":
    main(sys.argv[1])
