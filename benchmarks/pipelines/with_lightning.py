"""The plain pipeline's data in a LightningModule and a Trainer, with Lightning's defaults."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks.pipelines.plain import loaders
from benchmarks.pipelines.task import Task, Watch, labels_of, read_task


class Classifier(L.LightningModule):
    """ResNet18, cross-entropy, Adam."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network, self.lr = task.network(), task.lr

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in Lightning's own examples."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Timing(L.Callback):
    """Tells the watch of steps and epochs."""

    def __init__(self, watch: Watch, batches: dict[str, Any]) -> None:
        self.watch, self.batches = watch, batches

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """See a step."""
        self.watch.step(len(args[3][1]))

    def on_train_epoch_end(self, _: L.Trainer, module: L.LightningModule) -> None:
        """Score the validation images, as the other pipelines do."""
        self.watch.epoch(lambda split: labels_of(module.network, self.batches[split]))
        module.train()


def main(path: str) -> None:
    """Train and report."""
    task = read_task(path)
    watch, batches = Watch(task), loaders(task)
    L.seed_everything(task.seed, verbose=False)
    module = Classifier(task)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=task.epochs,
            accelerator="cpu",
            default_root_dir=folder,
            callbacks=[Timing(watch, batches)],
        )
        trainer.fit(module, batches["train"])
    watch.end(lambda split: labels_of(module.network, batches[split]))


if __name__ == "__main__":
    main(sys.argv[1])
