"""The common ground of the pipelines: which images, which settings, and what is reported.

The images come as a table of paths, so that each pipeline reads them in its own way.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torchvision.models import resnet18

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet."""


@dataclass(frozen=True)
class Task:
    """What every pipeline trains, in a JSON file."""

    table: str  # CSV: path, mask_path, label, split
    weights: str  # state dict of torchvision's ResNet18, "" for random weights
    classes: int
    image_size: int
    epochs: int
    batch_size: int
    lr: float
    seed: int
    report: str
    """Where the report is written."""

    def rows(self, split: str) -> pd.DataFrame:
        """Images of a split."""
        table = pd.read_csv(self.table, keep_default_na=False)
        return table[table["split"] == split].reset_index(drop=True)

    def network(self) -> nn.Module:
        """ResNet18 with three input channels, as every tutorial has it."""
        torch.manual_seed(self.seed)
        network = resnet18(weights=None)
        if self.weights:
            state = torch.load(self.weights, map_location="cpu", weights_only=True)
            kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
            network.load_state_dict(kept, strict=False)
        network.fc = nn.Linear(network.fc.in_features, self.classes)
        return network


def masked(path: str, mask_path: str) -> Image.Image:
    """The X-ray with all but the lungs black, decoded with Pillow; three equal channels."""
    image = Image.open(path).convert("L")
    mask = Image.open(mask_path).convert("L").resize(image.size, Image.Resampling.NEAREST)
    lungs = np.asarray(image) * (np.asarray(mask) > 127)
    return Image.fromarray(lungs.astype(np.uint8)).convert("RGB")


@dataclass
class Report:
    """What a pipeline took and reached."""

    first_step: float = 0.0
    """Seconds from the start of the process to the end of its first step."""
    seconds: float = 0.0
    """Of the steps but the first of each epoch, validation not counted."""
    images: int = 0
    """In those steps."""
    validation: list[tuple[float, float]] = field(default_factory=list)
    """After each epoch: CPU minutes of the process and its children since its start, macro F1."""
    test_f1: float = 0.0
    peak_mb: float = 0.0
    """Largest resident memory of the process and its children together, while training."""


class Watch:
    """Times the steps of a training that tells it of each.

    Parameters
    ----------
    task : Task
    """

    def __init__(self, task: Task) -> None:
        self.task, self.report = task, Report()
        self._me = psutil.Process()
        self._last: float | None = None

    def step(self, images: int) -> None:
        """See a finished step."""
        now = time.time()
        if not self.report.first_step:
            self.report.first_step = now - self._me.create_time()
        elif self._last is not None:
            self.report.seconds += now - self._last
            self.report.images += images
        self._last = now
        if self.report.images % (50 * self.task.batch_size) < images:
            self._look()

    def epoch(self, predict: Callable[[str], NDArray[np.int64]]) -> None:
        """See a finished epoch; `predict` returns the labels of a split."""
        truth = self.task.rows("val")["label"].to_numpy()
        self.scored(float(f1_score(truth, predict("val"), average="macro")))

    def scored(self, f1_macro: float) -> None:
        """See the validation score of a finished epoch."""
        self.report.validation.append((self.cpu_minutes(), f1_macro))
        self.pause()
        self._look()

    def pause(self) -> None:
        """See that the next step begins an epoch: what lies before it is not counted."""
        self._last = None

    def cpu_minutes(self) -> float:
        """CPU time so far, children that live or have ended counted."""
        living = 0.0
        for child in self._me.children(recursive=True):
            told = child.cpu_times()
            living += told.user + told.system
        told = self._me.cpu_times()
        spent = told.user + told.system + told.children_user + told.children_system
        return (spent + living) / 60

    def end(self, predict: Callable[[str], NDArray[np.int64]]) -> None:
        """Test the network and write the report."""
        truth = self.task.rows("test")["label"].to_numpy()
        self.report.test_f1 = float(f1_score(truth, predict("test"), average="macro"))
        Path(self.task.report).write_text(json.dumps(asdict(self.report)))

    def _look(self) -> None:
        sizes = [p.memory_info().rss for p in (self._me, *self._me.children(recursive=True))]
        self.report.peak_mb = max(self.report.peak_mb, sum(sizes) / 2**20)


@torch.inference_mode()
def labels_of(network: nn.Module, batches: Any) -> NDArray[np.int64]:
    """Labels that a network gives to the images of a loader."""
    network.eval()
    found: list[Tensor] = [network(images).argmax(1) for images, _ in batches]
    return torch.cat(found).numpy()


def read_task(path: str) -> Task:
    """Read the JSON file that the runner wrote."""
    return Task(**json.loads(Path(path).read_text()))
