"""From the bytes of a file to the pixels the network sees: one code for training and serving.

NumPy and Pillow only. The served model imports this module, so what it computes is what the network
was trained on, and neither torch nor OpenCV is needed for it.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from cxr_mlflow.errors import InputError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, in pixels (8,000 x 8,000); a detector has about 10 million."""
MAX_SCANS = 64
"""Most scans of a JPEG. Each is a walk over the whole image, be it of 50 bytes in the file: a
megabyte may take minutes. Ordinary progressive files have about 10."""
MAX_READS = 100_000
"""Most pieces in which a file is read: some 25,000 chunks of a PNG, where one of 64 million pixels
in the usual 8 KB has 8,000. Pillow looks at each in Python, be it empty."""
MASK_THRESHOLD = 127
"""A mask pixel above it is lung. JPEG-like noise in masks stays below or above."""
CONTROLS = {
    "lungs-out": "all but the lungs",
    "box-out": "all but the box around the lungs",
    "mask-only": "the outline of the lungs",
}
"""Mask modes that show too little to tell the classes by the lungs, and what they show."""
CROP_MARGIN = 0.04
"""Border around the lungs' box, as a share of the image's side."""
_GREY_MODES = ("L", "1", "P", "RGB", "RGBA", "LA")
_OPENERS = {b"\x89PNG\r\n\x1a\n": PngImageFile, b"\xff\xd8\xff": JpegImageFile}
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class BadImage(InputError):
    """A file that cannot be used as an image: `problem` is a short kind, `reason` the words."""

    def __init__(self, label: str, problem: str, reason: str) -> None:
        super().__init__(f"{label}: {reason}")
        self.problem = problem
        self.reason = reason


def decode_grey(source: bytes | Path, *, name: str | None = None) -> Pixels:
    """Decode a PNG or JPEG to 8-bit grey.

    Parameters
    ----------
    source : bytes or Path
        The file's content, or where it is.
    name : str, optional
        What messages call it; the path by default.

    Returns
    -------
    uint8 array of shape (H, W)
        Luma (ITU-R 601) where the file has colours. Transparency is dropped.

    Raises
    ------
    BadImage
        An `InputError`: the file is not an image, truncated, larger than `MAX_PIXELS`, in too many
        parts, or not 8-bit grey or RGB (16-bit, CMYK). The message names it and the reason. Nothing
        is substituted.
    """
    label = name or (str(source) if isinstance(source, Path) else "the image")
    content = source if isinstance(source, bytes) else _read(source, label)
    with _as_bad_image(label), _open(content, label) as image:
        _check_header(image, content, label)
        image.load()
        image.info.pop("transparency", None)  # convert() would warn of it
        return np.asarray(image.convert("L"))


def size_of(content: bytes, *, name: str = "the image") -> tuple[int, int]:
    """Width and height that the header of a PNG or JPEG tells; no pixel is decoded.

    Raises
    ------
    BadImage
        As `decode_grey`, where that is seen in the header.
    """
    with _as_bad_image(name), _open(content, name) as image:
        return image.size


class _Pieces(io.BytesIO):
    """Content of a file that is read in so many pieces and no more."""

    def __init__(self, content: bytes, label: str) -> None:
        super().__init__(content)
        self._label, self._left = label, MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            reason = f"it is cut into more pieces than the {MAX_READS:,} that are read"
            raise BadImage(self._label, "too_many_parts", reason)
        return super().read(size)


def _open(content: bytes, label: str) -> Image.Image:
    """Read the header of a file, at a bounded cost."""
    if not content:
        raise BadImage(label, "not_an_image", "not an image: the file is empty")
    opener = next((o for magic, o in _OPENERS.items() if content.startswith(magic)), None)
    if opener is None:
        raise BadImage(label, "not_an_image", "not an image (PNG or JPEG is wanted)")
    # A scan begins with these two bytes, which its data cannot hold.
    if opener is JpegImageFile and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        reason = f"a JPEG of {scans:,} scans, and at most {MAX_SCANS} are decoded; save it anew"
        raise BadImage(label, "too_many_parts", reason)
    # Not Image.open: it warns of large images, and warnings cannot be caught in threads.
    return opener(_Pieces(content, label))


@contextlib.contextmanager
def _as_bad_image(label: str) -> Iterator[None]:
    """Tell what the decoder says of a damaged file."""
    try:
        yield
    except BadImage:
        raise
    except _DECODER_ERRORS as error:
        raise BadImage(label, "truncated", f"damaged or truncated ({error})") from error


def _read(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadImage(label, "unreadable", "the file is not there") from error
    except OSError as error:
        reason = f"the file cannot be read ({error.strerror or error})"
        raise BadImage(label, "unreadable", reason) from error


def _check_header(image: Image.Image, content: bytes, label: str) -> None:
    """Refuse what cannot become 8-bit grey honestly, before a pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        reason = f"{width}x{height} is more pixels than the {MAX_PIXELS:,} that are decoded"
        raise BadImage(label, "too_large", reason)
    if image.format == "PNG" and content[24] > 8:  # bit depth, IHDR; Pillow would halve it silently
        reason = f"{content[24]} bits per channel; convert it to 8-bit grey or RGB"
        raise BadImage(label, "wrong_bit_depth", reason)
    if image.mode not in _GREY_MODES:
        reason = f"pixel format {image.mode} is not 8-bit grey or RGB; convert it"
        raise BadImage(label, "wrong_colours", reason)
    if _ENDS[str(image.format)] not in content[len(content) // 2 :]:
        raise BadImage(label, "truncated", "damaged or truncated (its end is missing)")


def decode_mask(source: bytes | Path, *, name: str | None = None) -> Pixels:
    """Decode a lung mask to 0 and 1; three-channel masks, as Kaggle has them, are fine.

    Returns
    -------
    uint8 array of shape (H, W)
        1 where the file is brighter than `MASK_THRESHOLD`.
    """
    return (decode_grey(source, name=name) > MASK_THRESHOLD).astype(np.uint8)


def resize(pixels: Pixels, size: int, *, nearest: bool = False) -> Pixels:
    """Resample to (size, size): antialiased bilinear for images, nearest for masks."""
    if pixels.shape == (size, size):
        return pixels
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(pixels).resize((size, size), how))


def lung_box(mask: Pixels) -> tuple[int, int, int, int]:
    """Box of the lungs with a margin: (top, bottom, left, right), bottom and right excluded.

    Raises
    ------
    InputError
        If the mask is empty.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise InputError("the lung mask is empty, there is nothing to crop to")
    height, width = mask.shape
    dy, dx = round(CROP_MARGIN * height), round(CROP_MARGIN * width)
    return (
        max(int(rows[0]) - dy, 0),
        min(int(rows[-1]) + 1 + dy, height),
        max(int(columns[0]) - dx, 0),
        min(int(columns[-1]) + 1 + dx, width),
    )


def crops(mask_mode: str) -> bool:
    """Whether a mask mode cuts the image to the lungs' box before it is resized."""
    return mask_mode in ("crop", "lungs-crop")


def needs_mask(mask_mode: str) -> bool:
    """Whether a mask mode cannot do without a lung mask."""
    return mask_mode != "none"


def fit_to_size(
    image: Pixels, mask: Pixels | None, size: int, mask_mode: str
) -> tuple[Pixels, Pixels]:
    """Crop if the mode crops, and resize image and mask to the network's input.

    Parameters
    ----------
    image : uint8 array of shape (H, W)
    mask : uint8 array of shape (h, w) with values 0 and 1, or None
        Its shape may differ from the image's (Kaggle: 256 against 299); both show the same field.
    size : int
        Side of the result, pixels.
    mask_mode : str
        One of `cxr_mlflow.config.MaskMode`.

    Returns
    -------
    image, mask : uint8 arrays of shape (size, size)
        The mask has 0 and 1; it is all 1 where none was given.
    """
    if mask is None:
        if needs_mask(mask_mode):
            raise InputError(f"mask mode {mask_mode!r} needs a lung mask, and none was given")
        return resize(image, size), np.ones((size, size), np.uint8)
    if crops(mask_mode):
        box = np.array(lung_box(mask), np.float64)
        scale = np.repeat(np.divide(image.shape, mask.shape), 2)  # height twice, width twice
        top, bottom, left, right = np.rint(box * scale).astype(int)
        top, left = min(top, image.shape[0] - 1), min(left, image.shape[1] - 1)
        bottom, right = max(bottom, top + 1), max(right, left + 1)  # a pixel at least
        image = np.ascontiguousarray(image[top:bottom, left:right])
        top, bottom, left, right = box.astype(int)
        mask = np.ascontiguousarray(mask[top:bottom, left:right])
    return resize(image, size), resize(mask, size, nearest=True)


def apply_mask(image: Pixels, mask: Pixels, mask_mode: str) -> Pixels:
    """Blacken what the mode hides.

    Parameters
    ----------
    image : uint8 array of shape (H, W)
    mask : uint8 array of shape (H, W) with values 0 and 1
    mask_mode : str
        The `lungs` modes keep the lungs; `lungs-out` all but the lungs, and so their outline and
        any lung that the mask misses; `box-out` all but the box around the lungs; `mask-only` a
        white silhouette on black.
    """
    if mask_mode == "lungs-out":
        return image * (1 - mask)
    if mask_mode == "box-out":
        return _without_box(image, mask)
    if mask_mode == "mask-only":
        return mask * np.uint8(255)
    return image * mask if mask_mode.startswith("lungs") else image


def _without_box(image: Pixels, mask: Pixels) -> Pixels:
    """Blacken the lungs' box; where augmentation moved the lungs out of sight there is none."""
    kept = image.copy()
    if mask.any():
        top, bottom, left, right = lung_box(mask)
        kept[top:bottom, left:right] = 0
    return kept


def network_input(images: Pixels) -> NDArray[np.float32]:
    """Scale 8-bit pixels to [0, 1], the range every network here takes.

    Parameters
    ----------
    images : uint8 array of any shape

    Returns
    -------
    float32 array of the same shape
    """
    return images.astype(np.float32) / np.float32(255.0)
