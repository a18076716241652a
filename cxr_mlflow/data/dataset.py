"""Cached pixels to batches. All randomness is a function of (seed, epoch, place in the epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import albumentations as A
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, WeightedRandomSampler

from cxr_mlflow.data.cache import PixelCache
from cxr_mlflow.data.preprocess import apply_mask, resize
from cxr_mlflow.data.transforms import augment

Rows = NDArray[np.int64]

GROWING = 2 / 3
"""Share of the epochs in which the images of a `Growth` grow; in the others they are whole."""
STEP, SMALLEST = 8, 32  # pixels


@dataclass(frozen=True)
class Growth:
    """Side of the training images by epoch: small and cheap at first, whole at the end.

    Progressive resizing, as in fastai's entry to DAWNBench (2018) and in EfficientNetV2 (Tan and
    Le, ICML 2021). The side grows evenly over the first `GROWING` of the epochs.

    Attributes
    ----------
    side : int
        Of the cached images, pixels.
    start : float
        Share of it in the first epoch; 1 for no growth.
    epochs : int
        Most epochs of the training.
    """

    side: int
    start: float
    epochs: int

    def at(self, epoch: int) -> int:
        """Side in an epoch, counted from 1: a multiple of `STEP`, or the whole."""
        growing = max(round(self.epochs * GROWING), 1)
        if epoch > growing or self.start == 1:
            return self.side
        share = self.start + (1 - self.start) * (epoch - 1) / growing
        return min(max(round(self.side * share / STEP) * STEP, SMALLEST), self.side)


class Draw(NamedTuple):
    """One place in an epoch: which image stands there, and all that seeds its augmentation."""

    epoch: int
    place: int
    row: int


def mix(*numbers: int) -> int:
    """Hash whole numbers to one seed in [0, 2**32), evenly (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class RadiographDataset(Dataset[tuple[Tensor, int]]):
    """Images of some cache rows, as the network takes them.

    Parameters
    ----------
    cache : PixelCache
        Images and masks, uint8 (N, S, S).
    rows : int64 array of shape (M,)
        The cache rows this set is made of, in order.
    labels : int64 array of shape (N,)
        Class index of every cache row.
    mask_mode : str
    transform : albumentations.Compose, optional
        Augmentation; None for validation and test.
    seed : int
        Base of the augmentation's seeds.
    growth : Growth, optional
        Makes the images of early epochs smaller.
    """

    def __init__(
        self,
        cache: PixelCache,
        rows: Rows,
        labels: NDArray[np.int64],
        *,
        mask_mode: str,
        transform: A.Compose | None = None,
        seed: int = 0,
        growth: Growth | None = None,
    ) -> None:
        self.cache, self.rows, self.labels = cache, rows, labels
        self.mask_mode, self.transform, self.seed = mask_mode, transform, seed
        self.growth = growth

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, draw: Draw) -> NDArray[np.uint8]:
        """8-bit pixels (S, S) of a draw, augmented and masked: what the network sees."""
        row = self.rows[draw.row]
        image, mask = np.asarray(self.cache.images[row]), np.asarray(self.cache.masks[row])
        if self.growth is not None:
            side = self.growth.at(draw.epoch)
            image, mask = resize(image, side), resize(mask, side, nearest=True)
        if self.transform is not None:
            image, mask = augment(
                self.transform, image, mask, mix(self.seed, draw.epoch, draw.place)
            )
        return apply_mask(image, mask, self.mask_mode)

    def __getitem__(self, draw: Draw) -> tuple[NDArray[np.uint8], int]:  # type: ignore[override]
        return self.pixels(draw), int(self.labels[self.rows[draw.row]])


class EpochSampler(Sampler[Draw]):
    """Order of an epoch; a function of (seed, epoch), so any epoch can be drawn again.

    Call `start_at` before iterating. With `draw_weights` images are drawn with replacement by
    torch's `WeightedRandomSampler`; without, each occurs once, shuffled.

    Parameters
    ----------
    size : int
        Images to draw from; an epoch draws as many.
    seed : int
    draw_weights : float64 array of shape (size,) or None
        Chance of each image to be drawn, unnormalised.
    """

    def __init__(self, size: int, *, seed: int, draw_weights: NDArray[np.float64] | None) -> None:
        self.size, self.seed, self.draw_weights = size, seed, draw_weights
        self.epoch = self.done = 0

    def start_at(self, epoch: int, done: int = 0) -> None:
        """Stand in an epoch, behind the images of it that were drawn already."""
        self.epoch, self.done = epoch, min(done, self.size)  # the last batch may be short

    def __len__(self) -> int:
        return self.size - self.done

    def order(self) -> list[int]:
        """Return the indices of the present epoch, in the order they are drawn."""
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        if self.draw_weights is None:
            return torch.randperm(self.size, generator=generator).tolist()
        weights = torch.from_numpy(self.draw_weights)
        return list(WeightedRandomSampler(weights, self.size, generator=generator))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Draw]:
        for place, index in enumerate(self.order()):
            if place >= self.done:
                yield Draw(self.epoch, place, index)


class InOrder(Sampler[Draw]):
    """Every image once, in order: validation and test."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(0, index, index) for index in range(self.size))


def collate(samples: list[tuple[NDArray[np.uint8], int]]) -> tuple[Tensor, Tensor]:
    """Stack to images uint8 (B, 1, S, S) and labels int64 (B,); the device makes floats of them."""
    images = np.stack([image for image, _ in samples])[:, None]
    return torch.from_numpy(images), torch.tensor([label for _, label in samples])


def build_loader(
    dataset: RadiographDataset, sampler: Sampler[Draw], *, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Loader whose batches do not depend on the number of workers.

    Parameters
    ----------
    dataset : RadiographDataset
    sampler : Sampler of Draw
    batch_size : int
    workers : int
        Processes that decode and augment; 0: the one that trains.

    Returns
    -------
    DataLoader
        Of images uint8 (B, 1, S, S) and labels int64 (B,).
    """
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
