"""What a served model takes and gives: a table or an array of images to a table of labels."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.errors import InputError
from cxr_mlflow.names import slug
from cxr_mlflow.serving.scorer import Scorer
from cxr_mlflow.serving.scorer_config import SET_SEPARATOR, ScorerConfig

WANTED = (
    "send a DataFrame with a column `image` (bytes of a PNG or JPEG; base64 text in JSON) and, for "
    "a model trained with masks, a column `mask`; or an array of grey values 0..255 of shape "
    "(N, H, W), with masks (N, 2, H, W)"
)


def predict_table(scorer: Scorer, data: Any) -> pd.DataFrame:
    """Label images.

    Parameters
    ----------
    scorer : Scorer
    data : DataFrame, mapping of columns, or integer array
        Column `image` holds PNG or JPEG bytes, or the same as base64 text. Column `mask` likewise;
        None, nan or no column means there is none. An array holds grey values 0..255: (H, W),
        (N, H, W), or (N, 2, H, W) with a mask behind each image.

    Returns
    -------
    DataFrame of N rows
        `label` (class name), `confidence` (its probability), and `p_<slug>` per class, calibrated
        if the model is; the index of a DataFrame is kept. Where the model has them, then `abstain`
        (bool: the label is not to be relied on) and `prediction_set` (names of the classes that the
        image may show, joined by "; ", in the order of the classes; it may be empty).

    Raises
    ------
    InputError
        If the data are not as said above; the row at fault is named.
    """
    index = None
    if isinstance(data, np.ndarray) and data.dtype != object:
        if data.ndim == 4 and data.shape[1] == 2:
            probabilities = scorer.score_arrays(data[:, 0], data[:, 1])
        elif data.ndim in (2, 3):
            probabilities = scorer.score_arrays(data)
        else:
            raise InputError(f"an array of shape {data.shape} is not images; {WANTED}")
    else:
        table = _as_table(data)
        index = table.index
        images = [_to_bytes(value, row, "image") for row, value in enumerate(table["image"])]
        masks = None
        if "mask" in table:
            masks = [_to_bytes(value, row, "mask") for row, value in enumerate(table["mask"])]
        if missing := [row for row, image in enumerate(images) if image is None]:
            raise InputError(f"row {missing[0]}: `image` is empty; {WANTED}")
        probabilities = scorer.score_bytes([image for image in images if image is not None], masks)
    return tabulate(probabilities, scorer.config, index)


def tabulate(
    probabilities: NDArray[np.float32], config: ScorerConfig, index: pd.Index | None = None
) -> pd.DataFrame:
    """Table of predictions from probabilities (N, C).

    Parameters
    ----------
    probabilities : float32 array of shape (N, C)
        Calibrated.
    config : ScorerConfig
    index : pd.Index, optional
        Of the table; 0 to N - 1 by default.

    Returns
    -------
    DataFrame of N rows
        `label`, `confidence`, `p_<class slug>` of each class, and, where the model carries
        thresholds, `abstain` and `prediction_set`.
    """
    best = probabilities.argmax(axis=1)
    confidence = probabilities[np.arange(len(best)), best]
    columns: dict[str, Any] = {
        "label": np.array(config.classes, dtype=object)[best],
        "confidence": confidence,
    }
    for column, name in enumerate(config.classes):
        columns[f"p_{slug(name)}"] = probabilities[:, column]
    wide = np.float64  # thresholds are; in float32 one near 1 would round to 1
    if config.abstaining:
        columns["abstain"] = confidence.astype(wide) < config.abstaining.threshold
    if config.prediction_sets:
        possible = probabilities.astype(wide) >= np.array(config.prediction_sets.thresholds)
        columns["prediction_set"] = np.array(
            [SET_SEPARATOR.join(np.array(config.classes)[row]) for row in possible], dtype=object
        )
    return pd.DataFrame(columns, index=index)


def _as_table(data: Any) -> pd.DataFrame:
    if isinstance(data, Mapping):  # {"inputs": {"image": [...]}} of the scoring server
        data = pd.DataFrame({name: list(np.ravel(values)) for name, values in data.items()})
    if not isinstance(data, pd.DataFrame):
        raise InputError(f"{type(data).__name__} is not images; {WANTED}")
    if "image" not in data:
        raise InputError(f"no column `image` among {[*map(str, data.columns)]}; {WANTED}")
    return data


def _to_bytes(value: Any, row: int, column: str) -> bytes | None:
    """Content of a cell, None where there is none."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(
                f"row {row}: `{column}` is text, but not base64 of a PNG or JPEG"
            ) from error
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    raise InputError(f"row {row}: `{column}` is a {type(value).__name__}; {WANTED}")
