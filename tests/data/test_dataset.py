"""Batches are a function of (seed, epoch, place): not of workers, not of what was drawn before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cxr_mlflow.data.cache import PixelCache
from cxr_mlflow.data.dataset import (
    Draw,
    EpochSampler,
    Growth,
    InOrder,
    RadiographDataset,
    build_loader,
    mix,
)
from cxr_mlflow.data.preprocess import resize
from cxr_mlflow.data.transforms import AUGMENTATIONS

SIZE, NUM = 48, 40


@pytest.fixture(scope="module")
def cache() -> PixelCache:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (NUM, SIZE, SIZE), dtype=np.uint8)
    masks = np.zeros((NUM, SIZE, SIZE), np.uint8)
    masks[:, 10:38, 8:40] = 1
    return PixelCache(images=images, masks=masks, key="test")


def dataset(cache, *, augment="strong", mask_mode="lungs", seed=0) -> RadiographDataset:
    return RadiographDataset(
        cache,
        np.arange(NUM)[::-1].copy(),
        np.arange(NUM) % 4,
        mask_mode=mask_mode,
        transform=AUGMENTATIONS[augment](SIZE),
        seed=seed,
    )


def epoch_bytes(cache, *, workers: int, epoch: int, seed: int = 0) -> bytes:
    sampler = EpochSampler(NUM, seed=seed, draw_weights=np.linspace(1, 5, NUM))
    loader = build_loader(dataset(cache, seed=seed), sampler, batch_size=7, workers=workers)
    sampler.start_at(epoch)
    return b"".join(x.numpy().tobytes() + y.numpy().tobytes() for x, y in loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # 4 on a small machine
@pytest.mark.parametrize("workers", [1, 4])
def test_same_bytes_for_any_number_of_workers(cache, workers):
    assert epoch_bytes(cache, workers=workers, epoch=2) == epoch_bytes(cache, workers=0, epoch=2)


def test_epochs_and_seeds_differ(cache):
    first = epoch_bytes(cache, workers=0, epoch=1)
    assert first != epoch_bytes(cache, workers=0, epoch=2)
    assert first != epoch_bytes(cache, workers=0, epoch=1, seed=1)


def test_a_place_is_the_same_whatever_was_drawn_before(cache):
    images = dataset(cache)
    alone = images.pixels(Draw(3, 17, 5))
    for place in range(10):
        images.pixels(Draw(3, place, place))
    np.testing.assert_array_equal(images.pixels(Draw(3, 17, 5)), alone)


def test_augmentations_of_one_image_are_all_different(cache):
    images = dataset(cache)
    seen = {
        images.pixels(Draw(epoch, place, 0)).tobytes() for epoch in (1, 2) for place in range(36)
    }
    assert len(seen) == 72


@pytest.mark.parametrize("mask_mode", ["lungs", "lungs-crop"])
def test_outside_the_lungs_is_black_also_after_augmentation(cache, mask_mode):
    images = dataset(cache, mask_mode=mask_mode)
    for place in range(20):
        pixels = images.pixels(Draw(1, place, place))
        share = (pixels > 0).mean()
        assert 0.1 < share < 0.6  # the mask covers 0.39 of the image, moved a little
    plain = RadiographDataset(cache, np.arange(NUM), np.zeros(NUM, int), mask_mode=mask_mode)
    np.testing.assert_array_equal(plain.pixels(Draw(0, 0, 3)) > 0, cache.masks[3] == 1)


def test_whole_image_modes_hide_nothing(cache):
    plain = RadiographDataset(cache, np.arange(NUM), np.zeros(NUM, int), mask_mode="none")
    np.testing.assert_array_equal(plain.pixels(Draw(0, 0, 3)), cache.images[3])


def test_rows_and_labels_stay_together(cache):
    images = dataset(cache, augment="none", mask_mode="none")
    for index in range(NUM):
        pixels, label = images[Draw(0, index, index)]
        row = NUM - 1 - index
        assert label == row % 4
        np.testing.assert_array_equal(pixels, cache.images[row])


def test_without_weights_each_image_comes_once():
    sampler = EpochSampler(50, seed=0, draw_weights=None)
    first = sampler.order()
    assert sorted(first) == list(range(50))
    sampler.start_at(1)
    assert sampler.order() != first


def test_in_order_is_in_order(cache):
    plain = RadiographDataset(cache, np.arange(NUM), np.arange(NUM) % 4, mask_mode="none")
    loader = build_loader(plain, InOrder(NUM), batch_size=16, workers=0)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert images.dtype == torch.uint8
    np.testing.assert_array_equal(images[:, 0].numpy(), cache.images)
    np.testing.assert_array_equal(labels.numpy(), np.arange(NUM) % 4)


def test_mixed_seeds_do_not_collide_for_small_numbers():
    seeds = {mix(s, e, p) for s in range(4) for e in range(10) for p in range(100)}
    assert len(seeds) == 4000


def test_images_grow_over_the_epochs_and_are_whole_at_the_end():
    assert [Growth(112, 0.5, 6).at(epoch) for epoch in range(1, 7)] == [56, 72, 80, 96, 112, 112]
    assert [Growth(224, 0.5, 3).at(epoch) for epoch in (1, 2, 3)] == [112, 168, 224]
    assert {Growth(112, 1.0, 6).at(epoch) for epoch in range(1, 7)} == {112}
    assert [Growth(32, 0.2, 2).at(epoch) for epoch in (1, 2)] == [32, 32]  # never below 32
    assert Growth(112, 0.5, 1).at(1) == 56  # one epoch is cheap; what it is tested on is whole


@pytest.mark.parametrize("mask_mode", ["lungs", "lungs-out"])
def test_small_images_are_the_whole_ones_made_smaller(cache, mask_mode):
    growth = Growth(SIZE, 2 / 3, 3)
    plain = RadiographDataset(
        cache, np.arange(NUM), np.zeros(NUM, int), mask_mode=mask_mode, growth=growth
    )
    sampler = EpochSampler(NUM, seed=0, draw_weights=None)
    loader = build_loader(plain, sampler, batch_size=NUM, workers=0)
    for epoch, side in ((1, 32), (2, 40), (3, SIZE)):
        sampler.start_at(epoch)
        ((images, _),) = loader
        assert images.shape == (NUM, 1, side, side)
        mask = resize(np.asarray(cache.masks[0]), side, nearest=True) > 0
        shown = images.amax((0, 1)).numpy() > 0
        np.testing.assert_array_equal(shown, mask if mask_mode == "lungs" else ~mask)
