"""Augmentation pipelines: albumentations, image and mask together, seeded by the caller."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network otherwise

import albumentations as A
import cv2

Pixels = NDArray[np.uint8]

cv2.setNumThreads(0)  # one image is too small to share; loader processes must not fight


def no_augmentation(image_size: int) -> A.Compose:
    """Leave the image as it is."""
    return A.Compose([])


def mild(image_size: int) -> A.Compose:
    """Rotate, shift and zoom a little, flip sideways: the original project's, in one resampling.

    The mirror image of a chest is anatomically wrong (the heart changes sides), but none of the
    four classes is told by the side.
    """
    return A.Compose([*_geometry(rotate=10, shift=0.05, zoom=0.1)])


def strong(image_size: int) -> A.Compose:
    """Move more, and vary exposure and contrast as detectors and their software do."""
    return A.Compose(
        [
            *_geometry(rotate=15, shift=0.06, zoom=0.15),
            A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.2, p=0.7),
            A.RandomGamma(gamma_limit=(75, 130), p=0.5),
        ]
    )


def _geometry(*, rotate: float, shift: float, zoom: float) -> list[A.BasicTransform]:
    return [
        A.HorizontalFlip(p=0.5),
        A.Affine(
            rotate=(-rotate, rotate),
            translate_percent=(-shift, shift),
            scale=(1 - zoom, 1 + zoom),
            balanced_scale=False,
            border_mode=cv2.BORDER_CONSTANT,
            p=1.0,
        ),
    ]


AUGMENTATIONS: dict[str, Callable[[int], A.Compose]] = {
    "none": no_augmentation,
    "mild": mild,
    "strong": strong,
}


def augment(transform: A.Compose, image: Pixels, mask: Pixels, seed: int) -> tuple[Pixels, Pixels]:
    """Apply a pipeline whose every draw follows from `seed` alone.

    Parameters
    ----------
    transform : albumentations.Compose
    image, mask : uint8 arrays of shape (S, S)
        The mask has values 0 and 1.
    seed : int
        In [0, 2**32). Equal seeds give equal pixels, in any process.

    Returns
    -------
    image, mask : uint8 arrays of shape (S, S)
    """
    transform.set_random_seed(seed)
    moved = transform(image=image, mask=mask)
    return moved["image"], moved["mask"]
