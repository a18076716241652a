"""From the body of a request to images: the formats of MLflow's scoring server, within limits.

Nothing of a request is ever taken for a path or an address: a cell is base64 of a file's content,
or it is refused.
"""

from __future__ import annotations

import base64
import binascii
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.data.preprocess import BadImage, size_of
from cxr_mlflow.serving.http_json import kind_of, read_json
from cxr_mlflow.serving.http_refusals import Refused

TABLES, ARRAYS = ("dataframe_split", "dataframe_records"), ("inputs", "instances")
COLUMNS = ("image", "mask")
_BLANKS = string.whitespace.encode()
SHAPES = "(N, H, W), or (N, 2, H, W) with a mask behind each image"


@dataclass(frozen=True)
class Films:
    """Files to score: N images, and as many masks or None."""

    images: Sequence[bytes]
    masks: Sequence[bytes | None] | None


Payload = Films | NDArray[Any]


def parse(body: bytearray, limits: ServeConfig, *, with_masks: bool) -> Payload:
    """Read the images of a request.

    Parameters
    ----------
    body : bytearray
        JSON with one of `dataframe_split`, `dataframe_records`, `inputs`, `instances`. Emptied.
    limits : ServeConfig
        How many images, and how large.
    with_masks : bool
        Whether the model looks at masks; else those that are sent are not opened.

    Returns
    -------
    Films, or array of shape (H, W), (N, H, W) or (N, 2, H, W)
        Bytes are decoded from base64, images are not yet decoded. The values of an array are not
        yet checked.

    Raises
    ------
    Refused
        If it is something else, or more than is allowed.
    """
    told = read_json(body)
    formats = [name for name in (*TABLES, *ARRAYS) if name in told]
    others = [name for name in told if name not in (*formats, "params")]
    if len(formats) != 1 or others:
        got = ", ".join(map(repr, told)) or "nothing"
        raise Refused(
            400, f"send one of {', '.join((*TABLES, *ARRAYS))} and nothing else; got {got}"
        )
    if told.get("params"):
        raise Refused(400, "this model takes no params", field="params")
    name = formats[0]
    content = told[name]
    if name == "dataframe_split":
        columns = _from_split(content)
    elif _is_rows(content) or name == "dataframe_records":
        columns = _from_records(content, name)
    elif isinstance(content, dict):
        columns = {column: _flat(cells) for column, cells in content.items()}
    else:
        return _check_array(_to_array(content, name), name, limits)
    return _to_films(columns, name, limits, with_masks)


def _from_split(content: Any) -> dict[str, list[Any]]:
    name = TABLES[0]
    if not isinstance(content, dict):
        raise Refused(400, f"{name} is {kind_of(content)}; send columns and data", field=name)
    if others := [key for key in content if key not in ("columns", "data", "index")]:
        raise Refused(400, f"{name} has {others[0]!r}; it takes columns, data, index", field=name)
    names: Any = content.get("columns")
    rows: Any = content.get("data")
    if not _is_list_of(names, str) or len(set(names)) < len(names):
        raise Refused(400, f"{name}: columns must be a list of different names", field="columns")
    if not isinstance(rows, list):
        raise Refused(400, f"{name}: data is {kind_of(rows)}; send a list of rows", field="data")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            message = f"row {number}: send a list of {len(names)} cells, one for each column"
            raise Refused(400, message, row=number)
    return {column: [row[place] for row in rows] for place, column in enumerate(names)}


def _from_records(content: Any, name: str) -> dict[str, list[Any]]:
    if not isinstance(content, list):
        raise Refused(400, f"{name} is {kind_of(content)}; send a list of objects", field=name)
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            message = f"row {number}: it is {kind_of(row)}; send an object with an `image`"
            raise Refused(400, message, row=number)
    names = dict.fromkeys(column for row in content for column in row)
    return {column: [row.get(column) for row in content] for column in names}


def _is_rows(content: Any) -> bool:
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _flat(cells: Any) -> list[Any]:
    """Cells of a column that is sent as a scalar, as a list, or as lists of one cell each."""
    cells = cells if isinstance(cells, list) else [cells]
    return [c[0] if isinstance(c, list) and len(c) == 1 else c for c in cells]


def _to_films(
    columns: Mapping[str, list[Any]], name: str, limits: ServeConfig, with_masks: bool
) -> Films:
    if "image" not in columns:
        raise Refused(
            400,
            f"no column `image` among {list(columns)}; it holds base64 of PNG or JPEG files",
            field=name,
        )
    count = len(columns["image"])
    for column, cells in columns.items():
        if len(cells) != count:
            message = f"{count} cells of `image` and {len(cells)} of `{column}`: send one for each"
            raise Refused(400, message, field=column)
    _check_count(count, name, limits)
    images = [_to_bytes(cell, row, "image") for row, cell in enumerate(columns["image"])]
    masks = None
    if "mask" in columns:
        masks = [_to_bytes(cell, row, "mask") for row, cell in enumerate(columns["mask"])]
    found = []
    for row, image in enumerate(images):
        if image is None:
            message = f"row {row}: `image` is empty; send base64 of a PNG or JPEG file"
            raise Refused(400, message, row=row, field="image")
        _check_pixels(image, row, "image", limits)
        found.append(image)
    if masks and with_masks:
        for row, mask in enumerate(masks):
            _check_pixels(mask or b"", row, "mask", limits)
    return Films(found, masks)


def _to_bytes(cell: Any, row: int, column: str) -> bytes | None:
    """Content of a file, None where a cell is empty."""
    if isinstance(cell, str):
        try:
            # Not split(): pairs of letters between blanks would take twenty times their size.
            return base64.b64decode(cell.encode("ascii").translate(None, _BLANKS), validate=True)
        except (binascii.Error, ValueError):
            message = f"row {row}: `{column}` is text, but not base64 of a PNG or JPEG file"
            raise Refused(400, message, row=row, field=column) from None
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    message = f"row {row}: `{column}` is {kind_of(cell)}; send base64 of a PNG or JPEG file"
    raise Refused(400, message, row=row, field=column)


def _check_count(count: int, field: str, limits: ServeConfig) -> None:
    if count > limits.max_images:
        message = f"{count:,} images; send at most {limits.max_images} in a request"
        raise Refused(413, message, field=field)


def _check_pixels(content: bytes, row: int, column: str, limits: ServeConfig) -> None:
    """Refuse a file whose header tells of too many pixels; what has no header is not for here."""
    try:
        width, height = size_of(content)
    except BadImage:  # the decoder tells why, in the order of the rows
        return
    if width * height > limits.max_megapixels * 1e6:
        message = (
            f"row {row}: `{column}` has {width}x{height} pixels; send at most "
            f"{limits.max_megapixels:g} million"
        )
        raise Refused(413, message, row=row, field=column)


def _to_array(content: Any, name: str) -> NDArray[Any]:
    if not isinstance(content, list):
        message = f"{name} is {kind_of(content)}; send columns, or grey values of shape {SHAPES}"
        raise Refused(400, message, field=name)
    try:
        array = np.array(content)
    except (ValueError, TypeError, OverflowError):
        message = f"{name}: the lists are not of equal lengths; send grey values of shape {SHAPES}"
        raise Refused(400, message, field=name) from None
    if array.dtype.kind not in "biuf":
        message = f"{name} holds other things than numbers; send grey values of shape {SHAPES}"
        raise Refused(400, message, field=name)
    return array


def _check_array(array: NDArray[Any], name: str, limits: ServeConfig) -> NDArray[Any]:
    pairs = array.ndim == 4 and array.shape[1] == 2
    if array.ndim not in (2, 3) and not pairs:
        message = f"{name} is of shape {array.shape}; send grey values of shape {SHAPES}"
        raise Refused(400, message, field=name)
    if array.ndim > 2:
        _check_count(len(array), name, limits)
    height, width = array.shape[-2:]
    if height * width > limits.max_megapixels * 1e6:
        most = f"{limits.max_megapixels:g} million"
        raise Refused(413, f"images of {width}x{height} pixels; send at most {most}", field=name)
    return array
