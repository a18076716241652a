"""Finds images that show the same film, so that no film is trained on and tested on.

Exact copies have the same pixel hash. Near copies (scaled, compressed, re-cropped, labelled, with
other contrast) are found on 32 x 32 thumbnails in two stages; `docs/data.md` has the measurements
behind every constant here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cxr_mlflow.data.storage import write_whole

Floats = NDArray[np.float32]

THRESHOLD = 0.77
"""Aligned correlation from which two images count as one film; unrelated ones reach 0.76."""
CANDIDATE = 0.55
"""Correlation without alignment from which a pair is looked at more closely."""
SCALES = (0.95, 1.0, 1.05)
SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # thumbnail pixels, 3 % of the image's side each
VERSION = 1
_TILE = 2048  # images a side of the similarities held at once: 16 MB
_BATCH = 512  # candidate pairs aligned at once


@dataclass(frozen=True)
class Duplicates:
    """Which images belong together.

    Attributes
    ----------
    groups : int64 array of shape (N,)
        Group of each image, numbered in order of appearance; most groups have one member.
    pairs : DataFrame
        The links behind them: `i` < `j` (rows), `similarity` in [-1, 1], `exact`. Exact copies are
        linked to the first of them, and only that one takes part in the search for near copies.
    """

    groups: NDArray[np.int64]
    pairs: pd.DataFrame


def find_groups(
    thumbnails: NDArray[np.uint8],
    pixel_hashes: Sequence[str],
    *,
    threshold: float = THRESHOLD,
    cache_dir: Path | None = None,
) -> Duplicates:
    """Group images that show the same film.

    Stage 1 correlates all thumbnails with each other after taking brightness and local contrast
    out, tile by tile: memory grows with N, time with N squared (3 s for 10,000 images on one core,
    150 s and 0.9 GB for 100,000). Stage 2 corrects the candidates for small crops and shifts and
    keeps those that correlate at `threshold` or above. Groups are the connected components.

    Parameters
    ----------
    thumbnails : uint8 array of shape (N, 32, 32)
        Box-averaged grey images.
    pixel_hashes : sequence of N str
        Equal for exactly equal images.
    threshold : float
        Least aligned correlation of near copies.
    cache_dir : Path, optional
        Where the result is kept for the next time, under a key made of all the above.

    Returns
    -------
    Duplicates
    """
    from scipy.sparse import coo_array  # SciPy takes longer to load than 20,000 images to list
    from scipy.sparse.csgraph import connected_components

    num = len(pixel_hashes)
    if thumbnails.ndim != 3 or len(thumbnails) != num:
        raise ValueError(f"need N thumbnails and N hashes, got {thumbnails.shape} and {num}")
    key = _key(thumbnails, pixel_hashes, threshold) if cache_dir else ""
    store = cache_dir and cache_dir / "duplicates" / f"{key}.parquet"
    if store and store.is_file():
        pairs = pd.read_parquet(store)
    else:
        pairs = _find_pairs(thumbnails, np.asarray(pixel_hashes, dtype=str), threshold)
        if store:
            with write_whole(store) as temporary:
                pairs.to_parquet(temporary)
    links = coo_array((np.ones(len(pairs), bool), (pairs["i"], pairs["j"])), shape=(num, num))
    groups = connected_components(links, directed=False)[1].astype(np.int64)
    return Duplicates(groups, pairs)


def _key(thumbnails: NDArray[np.uint8], hashes: Sequence[str], threshold: float) -> str:
    parts = (VERSION, threshold, CANDIDATE, SCALES, SHIFTS, thumbnails.shape)
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(np.ascontiguousarray(thumbnails).data)
    digest.update("\n".join(hashes).encode())
    return digest.hexdigest()[:32]


def _find_pairs(
    thumbnails: NDArray[np.uint8], hashes: NDArray[np.str_], threshold: float
) -> pd.DataFrame:
    _, firsts, member_of = np.unique(hashes, return_index=True, return_inverse=True)
    copies = np.flatnonzero(firsts[member_of] != np.arange(len(hashes)))
    distinct = np.sort(firsts)
    maps = _describe(thumbnails[distinct])
    found = [_verify(maps, i, j, direct, threshold) for i, j, direct in _candidates(maps)]
    near = pd.DataFrame(
        np.concatenate([np.empty((0, 3)), *found]), columns=["i", "j", "similarity"]
    )
    near[["i", "j"]] = distinct[near[["i", "j"]].to_numpy(np.int64)]
    exact = pd.DataFrame({"i": firsts[member_of][copies], "j": copies, "similarity": 1.0})
    pairs = pd.concat([exact.assign(exact=True), near.assign(exact=False)])
    pairs = pairs.astype({"i": "int64", "j": "int64", "similarity": "float64", "exact": "bool"})
    return pairs.sort_values(["i", "j"], ignore_index=True)


def _describe(thumbnails: NDArray[np.uint8]) -> Floats:
    """Take out brightness (high-pass) and local contrast; float32 (N, 32, 32), unit norm."""
    from scipy.ndimage import gaussian_filter  # not needed where the search was done before

    maps = np.empty(thumbnails.shape, np.float32)
    for start in range(0, len(maps), _TILE):
        grey = thumbnails[start : start + _TILE].astype(np.float32)
        fine = grey - gaussian_filter(grey, (0, 1, 1))
        contrast = np.sqrt(gaussian_filter(fine**2, (0, 2, 2)).clip(0))
        fine /= contrast + 2  # 2 grey levels: below them is noise
        fine -= fine.mean(axis=(1, 2), keepdims=True)
        norms = np.sqrt(np.einsum("nrc,nrc->n", fine, fine)).clip(1e-6)
        maps[start : start + _TILE] = fine / norms[:, None, None]
    return maps


def _candidates(
    maps: Floats, border: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
    """Yield (i, j, correlation) of the pairs i < j above `CANDIDATE`, tile by tile.

    With `border`, only pairs of an image before it and one from it on: those of two sets.
    """
    flat = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    end = len(flat) if border is None else border
    for top in range(0, end, _TILE):
        rows = flat[top : min(top + _TILE, end)]
        for left in range(top if border is None else border, len(flat), _TILE):
            tile = rows @ flat[left : left + _TILE].T
            found = np.flatnonzero(tile >= CANDIDATE)  # far faster than nonzero on two axes
            i, j = np.divmod(found, tile.shape[1])
            upper = i + top < j + left
            i, j = i[upper], j[upper]
            yield i + top, j + left, tile[i, j]


def _verify(
    maps: Floats,
    i: NDArray[np.int64],
    j: NDArray[np.int64],
    direct: Floats,
    threshold: float,
) -> NDArray[np.float64]:
    """Rows (i, j, similarity) of the candidates that are near copies."""
    similarity = direct.astype(np.float64)
    doubtful = np.flatnonzero(direct < threshold)
    for start in range(0, len(doubtful), _BATCH):
        batch = doubtful[start : start + _BATCH]
        similarity[batch] = _align(maps[i[batch]], maps[j[batch]])
    keep = similarity >= threshold
    return np.column_stack([i[keep], j[keep], similarity[keep]])


def _align(a: Floats, b: Floats) -> Floats:
    """Best correlation of maps a and b (M, 32, 32) over small shifts and scales of b.

    With b moved to V b H', rows by V and columns by H, all five column shifts come at once: the
    products with a are the sum over (a' V b) * H, the squares that over (b' V' V b) * (H' H).
    """
    best = np.full(len(a), -1, np.float32)
    for scale in SCALES:
        lines = np.stack([_resampling(a.shape[1], scale, shift) for shift in SHIFTS])
        inside: NDArray[np.bool_] = np.any(lines, axis=2)  # (5, 32): places that can be filled
        seen, weights = inside.astype(np.float32).T, lines.sum(1).T  # (32, 5) each
        squares = lines.transpose(0, 2, 1) @ lines
        for vertical, rows in zip(lines, inside, strict=True):
            moved: Floats = vertical[rows] @ b  # (M, rows, 32)
            still = a[:, rows]
            sum_a, sum_b = still.sum(1) @ seen, moved.sum(1) @ weights
            square_a = np.einsum("nrc,nrc->nc", still, still) @ seen
            square_b = _contract(moved.transpose(0, 2, 1) @ moved, squares)
            product = _contract(still.transpose(0, 2, 1) @ moved, lines)
            area = rows.sum() * seen.sum(0)
            energy = (square_a - sum_a**2 / area) * (square_b - sum_b**2 / area)
            correlation = (product - sum_a * sum_b / area) / np.sqrt(energy.clip(1e-24))
            np.maximum(best, correlation.max(1), out=best)
    return best


def _contract(a: Floats, b: Floats) -> Floats:
    """Sum of products of each (32, 32) of a (M) with each of b (5): float32 (M, 5)."""
    product: Floats = a.reshape(len(a), -1) @ b.reshape(len(b), -1).T
    return product


def _resampling(side: int, scale: float, shift: float) -> Floats:
    """Linear interpolation of one axis, as a matrix (side, side); rows off the axis are 0."""
    centre = (side - 1) / 2
    places = (np.arange(side) - centre) * scale + centre + shift
    distance = np.abs(places[:, None] - np.arange(side))
    inside = (places >= 0) & (places <= side - 1)
    return ((1 - distance).clip(0) * inside[:, None]).astype(np.float32)


def find_matches(
    thumbnails: NDArray[np.uint8],
    pixel_hashes: Sequence[str],
    known: NDArray[np.uint8],
    known_hashes: Sequence[str],
    *,
    threshold: float = THRESHOLD,
) -> pd.DataFrame:
    """Find the images that show a film of another set, by the decision of `find_groups`.

    Parameters
    ----------
    thumbnails : uint8 array of shape (N, 32, 32)
    pixel_hashes : sequence of N str
    known : uint8 array of shape (M, 32, 32)
        Thumbnails of the other set. Memory grows with N + M.
    known_hashes : sequence of M str
    threshold : float
        Least aligned correlation of near copies.

    Returns
    -------
    DataFrame
        `i` (row of the image), `j` (row in the other set), `similarity` in [-1, 1], `exact`; sorted
        by `i`, then the most similar first.
    """
    place: dict[str, list[int]] = {}
    for row, text in enumerate(known_hashes):
        place.setdefault(text, []).append(row)
    exact = {(i, j) for i, text in enumerate(pixel_hashes) for j in place.get(text, [])}
    num, found = len(thumbnails), [np.empty((0, 3))]
    if num and len(known):
        maps = _describe(np.concatenate([thumbnails, known]))
        found += [_verify(maps, *pairs, threshold) for pairs in _candidates(maps, num)]
    near = np.concatenate(found)
    near[:, 1] -= num
    rows = [(i, j, s, False) for i, j, s in near.tolist() if (int(i), int(j)) not in exact]
    rows += [(i, j, 1.0, True) for i, j in exact]
    pairs = pd.DataFrame(rows, columns=["i", "j", "similarity", "exact"])
    pairs = pairs.astype({"i": "int64", "j": "int64", "similarity": "float64", "exact": "bool"})
    order = ["i", "similarity", "exact", "j"]
    return pairs.sort_values(order, ascending=[True, False, False, True], ignore_index=True)
