"""What looks on while the loop runs: keeping the best weights, stopping early, showing progress."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cxr_mlflow.errors import InputError
from cxr_mlflow.training.loop import EpochResult


class BestWeights:
    """Keep the weights of the best epoch, and stop when none has come for long.

    Parameters
    ----------
    metric : str
        Key of `EpochResult.metrics`; larger is better.
    patience : int
        Epochs without a better value before it asks to stop.
    """

    def __init__(self, metric: str, patience: int) -> None:
        self.metric, self.patience = metric, patience
        self.best, self.epoch = -math.inf, 0
        self.state: Mapping[str, Tensor] = {}

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """Nothing is kept within an epoch."""

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """Copy the weights if they are the best; later steps change theirs, not the copy."""
        value = result.metrics[self.metric]
        if value > self.best:
            self.best, self.epoch = value, result.epoch
            self.state = {k: v.detach().cpu().clone() for k, v in evaluated.state_dict().items()}
        return result.epoch - self.epoch >= self.patience


class ProgressLines:
    """A bar with loss, images/s and time left on a terminal; a line per epoch everywhere.

    Parameters
    ----------
    epochs : int
        Most epochs there will be.
    batch_size : int
        Images per step, for images/s.
    best : BestWeights
        Told of each epoch before this one, marks the best.
    """

    def __init__(self, epochs: int, batch_size: int, best: BestWeights) -> None:
        self.epochs, self.batch_size, self.best = epochs, batch_size, best
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.start, self.first = 0.0, 0

    def on_batch_end(self, epoch: int, batch: int, num_batches: int, loss: Tensor) -> None:
        """Move the bar; without a terminal, do nothing."""
        if not self.console.is_terminal:
            return
        if self.bar is None:
            self.start, self.first = time.perf_counter(), batch  # not 1 where training goes on
            self.bar = Progress(
                TextColumn(f"epoch {epoch:>3}/{self.epochs}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} images/s"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=num_batches, loss=math.nan, speed=math.nan)
        seconds = time.perf_counter() - self.start
        images = (batch - self.first) * self.batch_size
        fields: dict[str, float] = {"speed": images / max(seconds, 1e-9)}
        if batch % 5 == 1 or batch in (self.first, num_batches):
            fields["loss"] = float(loss)
        assert self.task is not None
        self.bar.update(self.task, completed=batch, **fields)  # type: ignore[arg-type]

    def on_epoch_end(self, evaluated: nn.Module, result: EpochResult) -> bool:
        """Replace the bar by the epoch's line."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.task = None
        m = result.metrics
        self.console.print(
            f"epoch {result.epoch:>3}/{self.epochs}  train loss {m['train/loss']:.3f}  "
            f"val loss {m['val/loss']:.3f}  val macro F1 {m['val/f1_macro']:.4f}"
            f"{' *' if self.best.epoch == result.epoch else '  '}  "
            f"{m['train/images_per_second']:.0f} images/s  {m['train/seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
        return False


def pick_device(name: str) -> torch.device:
    """'auto' is CUDA where it is there; asking for a CUDA that is not there is an error.

    Raises
    ------
    InputError
        If 'cuda' was asked for and no GPU answers.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InputError("--device=cuda: torch finds no CUDA GPU here; use --device auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")
