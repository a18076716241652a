"""A small data set in the Kaggle layout, written by each test that wants to spoil one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

URLS = {
    "COVID": "https://github.com/ml-workgroup/covid-19-image-repository/tree/master/png",
    "Normal": "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
}


def draw_texture(seed: int, side: int = 60) -> NDArray[np.uint8]:
    """Smooth noise with full contrast; another seed gives an unrelated image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def draw_lungs(side: int = 48) -> NDArray[np.uint8]:
    """Two white rectangles on black, as a mask."""
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side * 3 // 4, side // 6 : side * 5 // 12] = 255
    mask[side // 4 : side * 3 // 4, side * 7 // 12 : side * 5 // 6] = 255
    return mask


@pytest.fixture
def texture() -> Callable[..., NDArray[np.uint8]]:
    return draw_texture


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Write CLASS/images, CLASS/masks and CLASS.metadata.xlsx; return the root."""

    def make(
        name: str = "xrays", *, classes: Sequence[str] = ("COVID", "Normal"), count: int = 3
    ) -> Path:
        root = tmp_path / name
        for label, class_name in enumerate(classes):
            for kind in ("images", "masks"):
                (root / class_name / kind).mkdir(parents=True)
            for number in range(1, count + 1):
                file = f"{class_name}-{number}.png"
                image = Image.fromarray(draw_texture(100 * label + number))
                image.save(root / class_name / "images" / file)
                mask = Image.fromarray(draw_lungs()).convert("RGB")
                mask.save(root / class_name / "masks" / file)
            told = class_name.upper() if class_name == "Normal" else class_name
            rows = {
                "FILE NAME": [f"{told}-{number}" for number in range(1, count + 1)],
                "FORMAT": "PNG",
                "SIZE": "256*256",
                "URL": URLS.get(class_name, "https://example.org/"),
            }
            pd.DataFrame(rows).to_excel(root / f"{class_name}.metadata.xlsx", index=False)
        return root

    return make
