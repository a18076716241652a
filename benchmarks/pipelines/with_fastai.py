"""fastai's DataBlock, its augmentations, and a Learner that fits one cycle."""

from __future__ import annotations

import sys

import numpy as np
from fastai.callback.core import Callback
from fastai.vision.all import (
    CategoryBlock,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    ImageBlock,
    IndexSplitter,
    Learner,
    Normalize,
    PILImage,
    Resize,
    ResizeMethod,
    aug_transforms,
    set_seed,
)
from numpy.typing import NDArray

from benchmarks.pipelines.task import MEAN, STD, Task, Watch, masked, read_task

WORKERS = 2


class Timing(Callback):
    """Tells the watch of steps and epochs."""

    order = 70  # after fastai's own

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def before_train(self) -> None:
        """See an epoch begin."""
        self.watch.pause()

    def after_batch(self) -> None:
        """See a step."""
        if self.training:
            self.watch.step(len(self.yb[0]))


def data(task: Task) -> DataLoaders:
    """Training and validation batches."""
    train, val = task.rows("train"), task.rows("val")
    rows = [*train.itertuples(index=False), *val.itertuples(index=False)]

    def image(row: tuple) -> PILImage:  # type: ignore[type-arg]  # fastai looks at the type
        return PILImage(masked(row.path, row.mask_path))

    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(range(task.classes)))),
        get_x=image,
        get_y=lambda row: row.label,
        splitter=IndexSplitter(list(range(len(train), len(rows)))),
        item_tfms=Resize(task.image_size, method=ResizeMethod.Squish),
        batch_tfms=[
            *aug_transforms(max_warp=0, max_lighting=0),
            Normalize.from_stats(MEAN, STD, cuda=False),
        ],
    )
    return block.dataloaders(rows, bs=task.batch_size, num_workers=WORKERS)


def main(path: str) -> None:
    """Train and report."""
    task = read_task(path)
    watch = Watch(task)
    set_seed(task.seed)
    loaders = data(task)
    learner = Learner(
        loaders, task.network(), loss_func=CrossEntropyLossFlat(), cbs=[Timing(watch)]
    )

    def predict(split: str) -> NDArray[np.int64]:
        rows = list(task.rows(split).itertuples(index=False))
        with learner.no_bar(), learner.no_logging():
            found, _ = learner.get_preds(dl=loaders.test_dl(rows, num_workers=WORKERS))
        return found.argmax(1).numpy()

    with learner.no_bar():
        learner.fit_one_cycle(task.epochs, task.lr)
    watch.epoch(predict)
    watch.end(predict)


if __name__ == "__main__":
    main(sys.argv[1])
