"""Our training, without MLflow: cached pixels, augmentation, one cycle, best weights."""

from __future__ import annotations

import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.pipelines.task import Watch, read_task
from cxr_mlflow.config import AUTO, DataConfig, TrainConfig
from cxr_mlflow.data.prepare import prepare
from cxr_mlflow.evaluation.assessment import validation_scores
from cxr_mlflow.models import load_model
from cxr_mlflow.training.fitting import ordered_loader, train
from cxr_mlflow.training.loop import EpochResult, predict

MASK_MODE = "lungs"


class Timing:
    """Tells the watch of steps and epochs."""

    def __init__(self, watch: Watch, batch_size: int) -> None:
        self.watch, self.batch_size = watch, batch_size

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """See a step."""
        self.watch.step(self.batch_size)

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """See an epoch; its validation is done."""
        self.watch.scored(result.metrics["val/f1_macro"])
        return False


def main(path: str, data_dir: str, *options: str) -> None:
    """Train and report; the split is the task's because it is made with the same seed."""
    task = read_task(path)
    watch = Watch(task)
    told = dict(option.split("=") for option in options)
    data = DataConfig(
        data_dir=data_dir,
        image_size=task.image_size,
        mask_mode=MASK_MODE,
        cache_dir=told.pop("cache_dir", AUTO),
    )
    study = prepare(data)
    loaded = load_model(
        "resnet18",
        task.classes,
        weights=task.weights or "none",
        seed=task.seed,
        freeze=int(told.pop("freeze", 0)),
    )
    config = TrainConfig(
        strategy="none",
        epochs=task.epochs,
        batch_size=task.batch_size,
        lr=task.lr,
        seed=task.seed,
        patience=task.epochs,
        device="cpu",
        **{name: float(value) for name, value in told.items()},
    )
    classes = study.catalog.classes
    device = torch.device("cpu")
    trained = train(
        loaded.network,
        study,
        config,
        mask_mode=MASK_MODE,
        device=device,
        measure=lambda logits, labels: validation_scores(logits, labels, classes),
        callbacks=[Timing(watch, task.batch_size)],
    )

    def labels(split: str) -> NDArray[np.int64]:
        loader = ordered_loader(study, split, mask_mode=MASK_MODE, batch_size=128)
        return predict(trained.network, loader, device)[0].argmax(1)

    watch.end(labels)


if __name__ == "__main__":
    main(*sys.argv[1:])
