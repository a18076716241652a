"""What a tutorial would write: PIL, torchvision's transforms, a DataLoader, Adam, a loop."""

from __future__ import annotations

import sys

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from benchmarks.pipelines.task import MEAN, STD, Task, Watch, labels_of, masked, read_task

WORKERS = 2


class XRays(Dataset):  # type: ignore[type-arg]
    """Decodes an image and its mask each time it is asked."""

    def __init__(self, rows: pd.DataFrame, transform: T.Compose) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        row = self.rows.iloc[number]
        return self.transform(masked(row["path"], row["mask_path"])), int(row["label"])


def loaders(task: Task) -> dict[str, DataLoader]:  # type: ignore[type-arg]
    """Batches of each split."""
    side = (task.image_size, task.image_size)
    after = [T.ToTensor(), T.Normalize(MEAN, STD)]
    augment = [T.RandomHorizontalFlip(), T.RandomAffine(10, (0.05, 0.05), (0.9, 1.1))]
    train = T.Compose([T.Resize(side), *augment, *after])
    plain = T.Compose([T.Resize(side), *after])
    return {
        split: DataLoader(
            XRays(task.rows(split), train if split == "train" else plain),
            batch_size=task.batch_size,
            shuffle=split == "train",
            num_workers=WORKERS,
        )
        for split in ("train", "val", "test")
    }


def main(path: str) -> None:
    """Train and report."""
    task = read_task(path)
    watch, batches, network = Watch(task), loaders(task), task.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=task.lr)
    criterion = nn.CrossEntropyLoss()
    for _ in range(task.epochs):
        network.train()
        for images, labels in batches["train"]:
            optimizer.zero_grad()
            criterion(network(images), labels).backward()
            optimizer.step()
            watch.step(len(labels))
        watch.epoch(lambda split: labels_of(network, batches[split]))
    watch.end(lambda split: labels_of(network, batches[split]))


if __name__ == "__main__":
    main(sys.argv[1])
