"""Draws one synthetic radiograph: a chest as a sum of smooth attenuation maps.

Nothing medical can be learnt from it. The class shows inside the lungs only: outline, exposure,
markers and noise come from a random stream that does not know the class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Map = NDArray[np.floating]  # float32 (IMAGE_SIDE, IMAGE_SIDE); attenuation: 0, air, to about 1
Pixels = NDArray[np.uint8]
Generator = np.random.Generator

IMAGE_SIDE = 299
MASK_SIDE = 256


@dataclass(frozen=True)
class Chest:
    """Coordinates that follow the anatomy, and the large organs in them."""

    u: Map  # across, about -1..1 over the film, the spine at 0
    v: Map  # down, about -1..1 over the film
    half: float  # of the width of both lungs, in u
    lungs: Map  # 0..1, soft at the border
    core: Map  # 0 at the lungs' border to 1 well inside
    heart: Map  # 0..1
    belly: Map  # 0..1, all that lies below the diaphragm
    pixel: Callable[[Any, Any], tuple[Any, Any]]  # (u, v) -> (x, y) on the film


def draw_film(class_name: str, seed: tuple[int, ...]) -> tuple[Pixels, Pixels]:
    """Draw a film of a class; a function of its arguments alone.

    Parameters
    ----------
    class_name : str
        A key of `FINDINGS`.
    seed : tuple of int
        Makes two streams: one for chest and exposure, the other for findings in the lungs.

    Returns
    -------
    image : uint8 array of shape (IMAGE_SIDE, IMAGE_SIDE)
    mask : uint8 array of shape (MASK_SIDE, MASK_SIDE) with values 0 and 255
    """
    rng = np.random.default_rng(seed)
    chest = _place(rng)
    total = _draw_chest(chest, rng)
    found = FINDINGS[class_name](chest, np.random.default_rng((*seed, 1)))
    mask = Image.fromarray(chest.lungs).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR)
    inside = np.clip(2 * chest.lungs - 1, 0, 1)  # of what the mask shows, not of the soft border
    image = _expose(total, found * inside, rng)
    return image, np.where(np.asarray(mask) > 0.5, 255, 0).astype(np.uint8)


def _edge(distance: Map, softness: float) -> Map:
    """Step from 0 to 1 around distance 0, `softness` to each side."""
    return np.clip(distance / (2 * softness) + 0.5, 0, 1)


def _bump(distance: Map, width: Map | float, power: int = 2) -> Map:
    """Fall from 1 at distance 0, below 0.4 beyond `width`."""
    return np.exp(-(np.abs(distance / width) ** power))


def _field(rng: Generator, cells: int) -> Map:
    """Smooth noise with about `cells` bumps across the film; mean 0, deviation about 1."""
    grid = rng.standard_normal((cells + 2, cells + 2)).astype(np.float32)
    size = (IMAGE_SIDE, IMAGE_SIDE)
    return 1.4 * np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC))


def _smooth(shape: Map, cells: int) -> Map:
    """Blur by way of a thumbnail of `cells` a side: fast where the blur is wide."""
    small = Image.fromarray(shape).resize((cells, cells), Image.Resampling.BOX)
    return np.asarray(small.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC))


def _place(rng: Generator) -> Chest:
    """Turn, stretch, bend and shift a chest onto the film, and find its organs."""
    line = np.linspace(-1, 1, IMAGE_SIDE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    angle, shift = rng.normal(0, 0.06), rng.normal(0, (0.05, 0.05))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    to_chest = np.diag(1 / rng.uniform((0.85, 0.84), (1.10, 1.08))) @ turn
    from_chest = np.linalg.inv(to_chest)
    half_side = (IMAGE_SIDE - 1) / 2
    (xu, xv), (yu, yv) = (half_side * from_chest).tolist()
    x0, y0 = (half_side * (shift + 1)).tolist()

    def pixel(u: Any, v: Any) -> tuple[Any, Any]:
        return x0 + xu * u + xv * v, y0 + yu * u + yv * v

    (a, b), (c, d) = to_chest.astype(np.float32)
    x, y = x - np.float32(shift[0]), y - np.float32(shift[1])
    u = a * x + b * y + 0.02 * _field(rng, 3)  # nobody is symmetric
    v = c * x + d * y + 0.02 * _field(rng, 3)

    # python floats from here on: a numpy double would turn every map into doubles
    half, apex, base = rng.uniform((0.62, -0.80, 0.42), (0.78, -0.66, 0.64)).tolist()
    across, middle = np.abs(u), 0.30
    rise = np.clip((0.3 - v) / (0.3 - apex), 0, 1)  # 1 at the apex
    outer = middle + (half - middle) * np.sqrt(1 - rise ** rng.uniform(2.0, 2.8))
    outer += rng.uniform(-0.02, 0.07) * np.clip(v, 0, None)
    inner = middle - 0.18 * np.sqrt(1 - rise**5)
    sag = np.where(u < 0, *rng.uniform(0.8, 1.5, 2).astype(np.float32))
    dome = base + np.float32(0.05) * (u > 0) + sag * np.square(across - 0.28)
    lean, tip = rng.uniform((0.15, 0.05), (0.35, 0.11)).tolist()
    right, down = u - tip, v - (base - rng.uniform(0.08, 0.18))
    wide, high = rng.uniform((0.27, 0.36), (0.38, 0.42)).tolist()
    beat = np.sqrt(((right - lean * down) / wide) ** 2 + (np.clip(down, -9, 0.1) / high) ** 2)
    heart = _edge(1 - beat, 0.06)
    inside = np.minimum(np.minimum(outer - across, across - inner), np.minimum(dome - v, v - apex))
    lungs = _edge(np.minimum(inside, 0.3 * (beat - 1)), 0.008).astype(np.float32)
    core = np.clip(1.6 * _smooth(lungs, 14) - 0.6, 0, 1)
    belly = _edge(v - dome, 0.012) * _edge(outer + 0.02 - across, 0.05)
    return Chest(u, v, half, lungs, core, heart, belly, pixel)


def _draw_chest(chest: Chest, rng: Generator) -> Map:
    """Attenuation of the whole chest, vessels included, findings not."""
    u, v, across = chest.u, chest.v, np.abs(chest.u)
    trunk = chest.half + rng.uniform(0.09, 0.16) + 0.04 * v
    neck, fall = rng.uniform((0.22, 0.16), (0.28, 0.34)).tolist()
    skin = v + 0.90 - fall * np.clip(across - 0.22, 0, None)  # of the shoulders
    shoulder = _edge(skin - 0.03, 0.06)
    edge = neck + (trunk + 0.05 - neck) * shoulder
    body = np.sqrt(np.clip(1.02 - (across / edge) ** 4, 0, 1))
    out = trunk + 0.10 + rng.uniform(0.0, 0.25) * np.clip(v + 0.55, 0, None) ** 1.5
    arm = np.sqrt(np.clip(1 - ((across - out) / 0.25) ** 2, 0, 1))
    arm *= np.sqrt(_edge(skin - 0.05 - np.clip(across - out, 0, None) ** 2, 0.08))
    bone = _bump(across - out - 0.02, 0.055, 6) * _edge(v + 0.58, 0.02)
    total = np.maximum(body * 0.56, arm * (0.46 + 0.13 * bone))

    middle = 0.12 * _bump(across, 0.21 + 0.04 * v, 4)
    total += body * np.maximum(middle, 0.13 * chest.heart * (1 - chest.belly))
    total += 0.05 * chest.belly + 0.06 * body * _edge(v - 0.5, 0.5)
    total += 0.05 * _bump(np.sqrt((u - 0.12) ** 2 + (v + 0.26) ** 2), 0.11, 4)  # arch of the aorta
    deep = 0.22 + 0.13 * _smooth(chest.lungs, 40) + 0.09 * chest.core
    total -= rng.uniform(0.75, 1.0) * deep * chest.lungs
    total -= 0.10 * _bump(u - 0.01, 0.045, 4) * _edge(-0.28 - v, 0.04) * body  # windpipe
    total += _draw_bones(chest, rng) * (1 - 0.75 * chest.belly)
    total += rng.uniform(0.09, 0.15) * _draw_vessels(chest, rng) * chest.lungs
    if rng.random() < 0.5:  # breasts
        lower, size = rng.uniform(0.25, 0.4), rng.uniform(0.02, 0.06)
        at = np.sqrt(((across - 0.4) / 0.32) ** 2 + ((v - lower) / 0.3) ** 2)
        total += size * _edge(1 - at, 0.12)
    if rng.random() < 0.5:  # air in the stomach
        at = np.sqrt(((u - 0.36) / 0.17) ** 2 + ((v - rng.uniform(0.70, 0.80)) / 0.06) ** 2)
        total -= 0.16 * _edge(1 - at, 0.3) * chest.belly
    return total + 0.02 * _field(rng, 5) * body  # folds of skin and cloth


def _draw_bones(chest: Chest, rng: Generator) -> Map:
    """Spine, ribs in front and behind, collar bones, shoulder blades."""
    v, across = chest.v, np.abs(chest.u)
    cage = _edge(chest.half + 0.045 - across, 0.02) * _edge(0.85 - v, 0.2)
    gap, start = rng.uniform(0.135, 0.18), rng.uniform(-0.08, 0.08)
    side = np.clip(across - 0.12, 0, None)
    behind = v + rng.uniform(0.0, 0.2) * side - rng.uniform(0.4, 0.9) * side**2.4 - start
    behind -= gap * np.round(behind / gap)  # one curve, repeated: all ribs at once
    front = (v + rng.uniform(0.3, 0.8) * side - rng.uniform(0.1, 0.3)) / 1.1
    front -= gap * np.round(front / gap)
    tangent = 0.5 + 0.9 * (across / chest.half) ** 3  # where the ray runs along the rib
    total = rng.uniform(0.08, 0.14) * _bone(behind, 0.032) * tangent * _edge(side, 0.02)
    total += rng.uniform(0.03, 0.07) * _bone(front, 0.033) * _edge(side - 0.22, 0.12)
    total *= cage * _edge(v + 0.74 - 0.3 * side, 0.05)
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * (v - start) / (gap * 0.8))
    total += (0.03 + 0.04 * disc) * _bump(across, 0.085, 6)
    rise = rng.uniform(0.08, 0.2)
    collar = v + 0.60 + rise * across - 0.05 * np.sin(across * 9)
    ends = _edge(across - 0.07, 0.02) * _edge(chest.half + 0.12 - across, 0.03)
    total += 0.13 * _bone(collar, 0.032) * ends
    blade = _edge(across - chest.half + 0.08 - 0.25 * (v + 0.2), 0.012) * _edge(-v - 0.02, 0.05)
    total += 0.05 * blade * _edge(v + 0.70, 0.05) * _edge(chest.half + 0.24 - across, 0.05)
    joint = np.sqrt(((across - chest.half - 0.23) / 0.10) ** 2 + ((v + 0.57) / 0.11) ** 2)
    return total + 0.10 * _edge(1 - joint, 0.12)


def _bone(distance: Map, half_width: float) -> Map:
    """Draw a long bone seen from the side, its rims (the cortex) brighter than its middle."""
    return _edge(half_width - np.abs(distance), 0.008) * (
        0.65 + 0.35 * (distance / half_width) ** 2
    )


def _draw_vessels(chest: Chest, rng: Generator) -> Map:
    """Branching vessels from both hila, thinner and fainter outwards; 0 to about 1."""
    canvas = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    draw = ImageDraw.Draw(canvas)
    branches = [
        (0.19 * side, -0.08, side * math.cos(angle), math.sin(angle), 4.5)
        for side in (-1, 1)
        for angle in (np.linspace(-1.3, 1.45, 10) + rng.normal(0, 0.12, 10)).tolist()
    ]
    while branches:
        u, v, du, dv, width = branches.pop()
        step, turn = rng.uniform(0.05, 0.11), rng.normal(0, 0.2)
        end_u, end_v = u + step * du, v + step * dv
        ends = (*chest.pixel(u, v), *chest.pixel(end_u, end_v))
        draw.line(ends, fill=int(40 + 34 * width), width=max(1, round(width * 0.8)))
        if (width := width * rng.uniform(0.72, 0.90)) < 0.9:
            continue
        branches.append((end_u, end_v, du - turn * dv, dv + turn * du, width))
        if (fork := rng.random()) < 0.4:
            turn = 0.8 if fork < 0.2 else -0.8
            branches.append((end_u, end_v, du - turn * dv, dv + turn * du, width * 0.72))
    hila = _bump(np.abs(chest.u) - 0.17, 0.07) * _bump(chest.v + 0.07, 0.1)
    return ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, 0.9) + 0.5 * hila


def _expose(total: Map, found: Map, rng: Generator) -> Pixels:
    """Turn attenuation into the grey of a film: window, gamma, scatter, grain, marker, frame."""
    low, high = rng.uniform((0.02, 0.80), (0.12, 0.95)).tolist()
    grain = rng.standard_normal((IMAGE_SIDE, IMAGE_SIDE), np.float32)
    grain = ndimage.gaussian_filter(grain, rng.uniform(0.5, 0.9)) * rng.uniform(0.01, 0.03)
    tilt = 0.03 * _field(rng, 1)
    seen = total + tilt * (total > 0.05) + found + grain
    shown = np.clip((seen - low) / (high - low), 0, 1) ** rng.uniform(0.85, 1.25)
    film = Image.fromarray((shown * 255).round().astype(np.uint8))
    draw = ImageDraw.Draw(film)
    if rng.random() < 0.5:
        letter, corner = ("R", 0.04) if rng.random() < 0.6 else ("L", 0.88)
        x, y = (corner + rng.uniform(0, 0.05), rng.uniform(0.02, 0.2))
        place = (round(x * IMAGE_SIDE), round(y * IMAGE_SIDE))
        font = ImageFont.load_default(round(rng.uniform(14, 24)))
        draw.text(place, letter, fill=int(rng.integers(190, 256)), font=font)
    if rng.random() < 0.2:  # the collimator's blades
        width = round(rng.uniform(4, 12))
        draw.rectangle((0, 0, IMAGE_SIDE - 1, IMAGE_SIDE - 1), outline=3, width=width)
    return np.asarray(film)


def _blotch(chest: Chest, rng: Generator, u: float, v: float, size: float) -> Map:
    """One patch with a ragged border, 0..1."""
    ragged = 0.22 * _field(rng, 12) + 0.15 * _field(rng, 5)
    squeeze = rng.uniform(0.75, 1.3)
    at = np.sqrt(((chest.u - u) / squeeze) ** 2 + ((chest.v - v) * squeeze) ** 2) / size
    return _edge(1 - at + ragged, 0.45)


def _patches(chest: Chest, rng: Generator) -> Map:
    """COVID: hazy patches at the outer border of both lungs, mostly low."""
    total = np.zeros_like(chest.u)
    strength = rng.uniform(0.11, 0.27)
    for side in (-1, 1):
        for _ in range(int(rng.integers(1, 4))):
            v = rng.uniform(-0.35, 0.5)
            u = side * (chest.half - rng.uniform(0.02, 0.16))
            total += rng.uniform(0.6, 1) * _blotch(chest, rng, u, v, rng.uniform(0.1, 0.22))
    return strength * np.minimum(total, 1.2)


def _consolidation(chest: Chest, rng: Generator) -> Map:
    """Lung_Opacity: one dense region anywhere in one lung."""
    side = int(rng.choice((-1, 1)))
    u, v = side * rng.uniform(0.25, chest.half - 0.1), rng.uniform(-0.45, 0.45)
    strength = rng.uniform(0.14, 0.42)
    return strength * _blotch(chest, rng, u, v, rng.uniform(0.14, 0.3))


def _streaks(chest: Chest, rng: Generator) -> Map:
    """Viral Pneumonia: a net of fine streaks over both lungs."""
    canvas = Image.new("L", (IMAGE_SIDE, IMAGE_SIDE))
    draw = ImageDraw.Draw(canvas)
    count = int(rng.integers(250, 500))
    u, v = rng.uniform(-chest.half, chest.half, count), rng.uniform(-0.7, 0.6, count)
    angle = np.arctan2(v + 0.1, u) + rng.normal(0, 0.7, count)  # more or less from the hilum
    length, shades = rng.uniform(0.04, 0.13, count), rng.integers(90, 256, count)
    x, y = chest.pixel(u, v)
    to_x, to_y = chest.pixel(u + length * np.cos(angle), v + length * np.sin(angle))
    for *ends, shade in np.stack((x, y, to_x, to_y, shades), axis=1).tolist():
        draw.line(ends, fill=int(shade), width=2)
    net = ndimage.gaussian_filter(np.asarray(canvas, np.float32) / 255, 0.8)
    net += 0.25 * _field(rng, 55)
    return rng.uniform(0.04, 0.18) * (net + 0.15) * np.clip(0.8 + 0.3 * _field(rng, 3), 0.2, 1.4)


def _nothing(chest: Chest, rng: Generator) -> Map:
    """Leave Normal as it is: vessels only, which every chest has."""
    return np.zeros_like(chest.u)


FINDINGS: dict[str, Callable[[Chest, Generator], Map]] = {
    "COVID": _patches,
    "Lung_Opacity": _consolidation,
    "Normal": _nothing,
    "Viral Pneumonia": _streaks,
}
