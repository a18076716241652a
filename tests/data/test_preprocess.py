"""What decoding refuses, what it lets through, and that crops keep image and mask together."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from cxr_mlflow.data.preprocess import (
    MASK_THRESHOLD,
    MAX_PIXELS,
    MAX_SCANS,
    BadImage,
    apply_mask,
    decode_grey,
    decode_mask,
    fit_to_size,
    lung_box,
    resize,
    size_of,
)
from cxr_mlflow.errors import InputError
from tools.costly_images import many_pieces, many_scans

GREY = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)


def encoded(
    pixels: NDArray[np.generic] | Image.Image, kind: str = "PNG", **options: object
) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_by_hand(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def problem_of(content: bytes | Path) -> str:
    with pytest.raises(BadImage) as caught:
        decode_grey(content, name="film.png")
    assert "film.png" in str(caught.value)
    return caught.value.problem


def test_grey_png_comes_back_as_it_is():
    np.testing.assert_array_equal(decode_grey(encoded(GREY)), GREY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_grey_stored_in_other_modes_has_the_same_pixels(mode):
    palette = Image.fromarray(GREY)
    palette.putpalette([value for value in range(256) for _ in range(3)])  # grey ramp
    image = palette if mode == "P" else Image.fromarray(GREY).convert(mode)
    np.testing.assert_array_equal(decode_grey(encoded(image)), GREY)


def test_transparency_is_dropped_without_a_warning():
    clear = np.dstack([GREY] * 3 + [np.zeros_like(GREY)])
    np.testing.assert_array_equal(decode_grey(encoded(clear)), GREY)
    palette = Image.fromarray(GREY)
    palette.putpalette([value for value in range(256) for _ in range(3)])
    holed = encoded(palette, transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode_grey(holed), GREY)


def test_colours_become_luma():
    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    assert (decode_grey(encoded(green)) == 150).all()  # 0.587 * 255


@pytest.mark.parametrize("options", [{"kind": "PNG"}, {"kind": "JPEG"}])
def test_a_file_cut_anywhere_is_refused(options):
    whole = encoded(GREY, **options)
    for length in range(3 if options["kind"] == "JPEG" else 8, len(whole) - 4, 7):
        assert problem_of(whole[:length]) == "truncated", length


@pytest.mark.parametrize(
    "content",
    [b"", b"this is text", b"GIF89a" + bytes(100), b"DICM" * 50, b"BM" + bytes(60)],
)
def test_what_is_not_png_or_jpeg_is_not_an_image(content):
    assert problem_of(content) == "not_an_image"


def test_text_renamed_to_png_is_named(tmp_path):
    path = tmp_path / "film.png"
    path.write_text("patient: unknown")
    assert problem_of(path) == "not_an_image"
    with pytest.raises(InputError, match=r"film\.png"):
        decode_grey(path)


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_16_bit_is_refused_in_every_colour_type(colour):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = (b"\0" + bytes(range(2 * channels)) * 3) * 2
    content = png_by_hand(3, 2, 16, colour, rows)
    Image.open(io.BytesIO(content)).load()  # the file itself is sound
    assert problem_of(content) == "wrong_bit_depth"


def test_bits_below_8_are_scaled_to_the_full_range():
    content = png_by_hand(8, 1, 1, 0, b"\0\xaa")
    assert decode_grey(content).tolist() == [[255, 0] * 4]


def test_cmyk_jpeg_is_refused():
    assert problem_of(encoded(Image.new("CMYK", (8, 8)), "JPEG")) == "wrong_colours"


@pytest.mark.parametrize("side", [8_001, 30_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    assert side * side > MAX_PIXELS
    assert problem_of(png_by_hand(side, side, 8, 0, b"")) == "too_large"


@pytest.mark.parametrize("progressive", [False, True])
def test_ordinary_progressive_files_are_decoded(progressive):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8))
    content = encoded(image, "JPEG", progressive=progressive)
    assert decode_grey(content).shape == (90, 80)
    assert decode_grey(many_scans(MAX_SCANS)).shape == (16, 16)
    assert size_of(content) == (80, 90)


def test_a_jpeg_of_very_many_scans_is_refused_before_the_first():
    content = many_scans(1500, side=4000)
    assert len(content) < 1e6
    for look in (decode_grey, size_of):
        begun = time.process_time()
        with pytest.raises(BadImage, match="1,500 scans, and at most 64 are") as caught:
            look(content)
        assert caught.value.problem == "too_many_parts"
        assert time.process_time() - begun < 0.5  # decoded, it takes some 30 s


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_in_very_many_pieces_is_refused_soon(kind):
    assert decode_grey(many_pieces(20_000, kind)).shape == (16, 16)
    for look in (decode_grey, size_of):
        begun = time.process_time()
        with pytest.raises(BadImage, match="more pieces than the 100,000") as caught:
            look(many_pieces(1_000_000, kind))
        assert caught.value.problem == "too_many_parts"
        assert time.process_time() - begun < 1.5  # read to its end, it takes some 5 s


def test_missing_file_folder_and_closed_file_are_unreadable(tmp_path):
    assert problem_of(tmp_path / "none.png") == "unreadable"
    assert problem_of(tmp_path) == "unreadable"


@pytest.mark.parametrize("name", ["röntgen 🩻.png", "胸部.jpg", "with space, comma.PNG"])
def test_any_name_can_be_read(tmp_path, name):
    path = tmp_path / "Å b" / name
    path.parent.mkdir()
    path.write_bytes(encoded(GREY))
    np.testing.assert_array_equal(decode_grey(path), GREY)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_never_raises_anything_but_input_error(data):
    whole = bytearray(encoded(GREY, data.draw(st.sampled_from(["PNG", "JPEG"]))))
    places = st.integers(0, len(whole) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        whole[place] = value
    try:
        pixels = decode_grey(bytes(whole))
    except InputError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 2


def test_threads_leave_the_warning_filters_alone():
    bomb, good = png_by_hand(9_000, 10_000, 8, 0, b""), encoded(GREY)
    before = list(warnings.filters)

    def decode(content):
        with contextlib.suppress(InputError):
            decode_grey(content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [bomb, good] * 100))
    assert list(warnings.filters) == before


def test_mask_in_three_channels_is_the_mask_in_one():
    grey = np.array([[0, MASK_THRESHOLD], [MASK_THRESHOLD + 1, 255]], np.uint8)
    rgb = np.dstack([grey] * 3)
    assert decode_mask(encoded(grey)).tolist() == [[0, 0], [1, 1]]
    np.testing.assert_array_equal(decode_mask(encoded(rgb)), decode_mask(encoded(grey)))


def test_lung_box_holds_all_of_the_lungs_and_stays_inside():
    mask = np.zeros((100, 200), np.uint8)
    mask[30:60, 50:150] = 1
    assert lung_box(mask) == (26, 64, 42, 158)  # 4 % of 100 rows and of 200 columns around it
    mask[0, 0] = mask[-1, -1] = 1
    assert lung_box(mask) == (0, 100, 0, 200)
    with pytest.raises(InputError, match="empty"):
        lung_box(np.zeros((5, 5), np.uint8))


@pytest.mark.parametrize("mode", ["lungs", "none", "crop", "lungs-crop"])
@pytest.mark.parametrize("image_shape", [(299, 299), (224, 224), (512, 400), (128, 160)])
def test_image_and_mask_stay_on_each_other(mode, image_shape):
    height, width = image_shape
    rows, columns = np.mgrid[0:1:256j, 0:1:256j]
    mask = (np.hypot((rows - 0.55) / 0.2, (columns - 0.4) / 0.25) < 1).astype(np.uint8)
    image = np.asarray(Image.fromarray(mask * 255).resize((width, height)))
    fitted, fitted_mask = fit_to_size(image, mask, 96, mode)
    assert fitted.shape == fitted_mask.shape == (96, 96)
    assert fitted.dtype == fitted_mask.dtype == np.uint8
    seen = fitted > 127
    overlap = (seen & (fitted_mask == 1)).sum() / (seen | (fitted_mask == 1)).sum()
    assert overlap > 0.95
    if mode in ("crop", "lungs-crop"):  # the box of an ellipse is filled to about pi / 4
        assert fitted_mask.mean() > 0.5
    else:
        assert fitted_mask.mean() < 0.2


@pytest.mark.parametrize("corner", [(0, 0), (9, 9), (4, 9)])
def test_a_speck_of_lung_in_a_coarser_image_still_crops(corner):
    mask = np.zeros((10, 10), np.uint8)
    mask[corner] = 1
    image = GREY[:4, :4] | 1
    fitted, fitted_mask = fit_to_size(image, mask, 32, "crop")
    assert set(np.unique(fitted)) <= set(np.unique(image))  # one pixel of it, enlarged
    assert (fitted_mask == 1).all()


def test_without_a_mask_only_mode_none_works():
    fitted, mask = fit_to_size(GREY, None, 32, "none")
    assert fitted.shape == (32, 32)
    assert (mask == 1).all()
    with pytest.raises(InputError, match="mask"):
        fit_to_size(GREY, None, 32, "lungs")


def test_resize_averages_images_and_keeps_masks_binary():
    board = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    assert abs(int(resize(board, 16).mean()) - 127) < 8  # antialiased: no all-black, no all-white
    assert resize(board, 16).std() < 20
    assert set(np.unique(resize(board // 255, 16, nearest=True))) <= {0, 1}


def test_path_and_bytes_decode_alike(tmp_path):
    path = tmp_path / "film.jpeg"
    path.write_bytes(encoded(GREY, "JPEG"))
    np.testing.assert_array_equal(decode_grey(path), decode_grey(path.read_bytes()))


def test_controls_hide_the_lungs_or_show_their_shape_alone():
    image = np.full((8, 8), 90, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:5] = 1
    kept, left = (apply_mask(image, mask, mode) for mode in ("lungs", "lungs-out"))
    assert (kept + left == image).all(), "each pixel is in one of the two"
    assert not left[mask == 1].any()
    shape = apply_mask(image, mask, "mask-only")
    assert (shape == 255 * mask).all()
    assert shape.dtype == left.dtype == np.uint8
    boxed = apply_mask(image, mask, "box-out")
    assert not boxed[2:6, 3:5].any()
    assert (boxed[apply_mask(np.ones_like(image), mask, "lungs-out") == 0] == 0).all()
    notched = mask.copy()
    notched[3, 3] = 0
    assert (boxed == apply_mask(image, notched, "box-out")).all(), "the outline does not show"
    assert (apply_mask(image, 0 * mask, "box-out") == image).all(), "no lungs, no box"
    assert (image == 90).all(), "what was given is not written on"
    with pytest.raises(InputError, match="lungs-out"):
        fit_to_size(image, None, 8, "lungs-out")
