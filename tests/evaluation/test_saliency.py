"""Saliency inside a mask: the share that a reader would measure, beside what even saliency has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer
from matplotlib.text import Text

from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.saliency import (
    Panel,
    enlarge,
    plot_heat_sheet,
    plot_saliency_shares,
    saliency_line,
    saliency_metrics,
    saliency_scores,
    share_inside,
)

CLASSES = ("COVID", "Normal", "Viral Pneumonia")
LONG = ("Pneumothorax_with_a_long_class_name", "Pseudopneumoencephalography", "Mass")
SUBTITLE = "resnet18-oversample-64px-lungs-seed0, test, n = 200, weights=none, synthetic data"


def two_lungs(num: int, side: int = 32) -> np.ndarray:
    masks = np.zeros((num, side, side), np.uint8)
    masks[:, 8:24, 4:12] = masks[:, 8:24, 20:28] = 1
    return masks


@pytest.mark.parametrize(("cells", "side"), [((7, 7), 56), ((8, 8), 50), ((2, 3), 33), ((1, 1), 9)])
def test_maps_are_enlarged_as_torch_does(cells, side):
    heat = np.random.default_rng(0).normal(size=(3, *cells))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(heat)[:, None], size=(side, side), mode="bilinear", align_corners=False
    )[:, 0]
    np.testing.assert_allclose(enlarge(heat, side), expected.numpy(), atol=1e-12)


def test_the_share_is_that_of_the_enlarged_map():
    rng = np.random.default_rng(1)
    heat, masks = rng.normal(size=(5, 7, 7)), rng.integers(0, 2, (5, 50, 50)).astype(np.uint8)
    large = enlarge(heat.clip(0), 50)
    expected = (large * masks).sum(axis=(1, 2)) / large.sum(axis=(1, 2))
    np.testing.assert_allclose(share_inside(heat, masks), expected)


def test_even_saliency_has_the_share_of_the_area():
    masks = two_lungs(2)
    even = np.ones((2, 8, 8), np.float32)
    np.testing.assert_allclose(share_inside(even, masks), masks.mean(axis=(1, 2)))


def test_saliency_at_its_place_counts_and_what_speaks_against_does_not():
    heat = np.zeros((3, 8, 8))
    heat[0, 4, 2] = 2.0  # in the middle of a lung
    heat[1, 0, 7] = 2.0  # in a corner
    heat[2] = heat[0] - 5 * heat[1]
    inside, outside, both = share_inside(heat, two_lungs(3))
    assert inside > 0.8
    assert outside == 0
    assert both == inside


def test_a_map_without_anything_positive_is_not_measured_and_not_counted():
    heat = np.stack([-np.ones((4, 4)), np.ones((4, 4))])
    shares = share_inside(heat, two_lungs(2))
    assert np.isnan(shares).tolist() == [True, False]
    scores = saliency_scores(
        shares, np.full(2, 0.25), np.zeros(2, int), CLASSES, Bootstrap(samples=50)
    )
    assert scores["in_lungs/covid"].value == shares[1]
    assert np.isnan(scores["in_lungs/normal"].value)
    nothing = saliency_scores(
        shares[:1], np.ones(1), np.zeros(1, int), CLASSES, Bootstrap(samples=50)
    )
    assert nothing.keys() == scores.keys()
    assert all(np.isnan(score.value) for score in nothing.values())


def test_maps_and_masks_must_belong_together():
    with pytest.raises(ValueError, match="N maps and N masks"):
        share_inside(np.ones((2, 4, 4)), two_lungs(3))


@pytest.fixture
def measured():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 150)
    shares = np.where(labels == 0, 0.6, 0.3) + rng.normal(0, 0.1, 300)
    return shares, rng.uniform(0.2, 0.4, 300), labels


def test_scores_are_means_by_class_with_the_interval_of_the_mean(measured):
    shares, areas, labels = measured
    scores = saliency_scores(shares, areas, labels, CLASSES)
    own = labels == 0
    assert scores["in_lungs/covid"].value == pytest.approx(shares[own].mean())
    assert scores["area/covid"].value == pytest.approx(areas[own].mean())
    assert scores["ratio/covid"].value == pytest.approx(shares[own].mean() / areas[own].mean())
    error = 1.96 * shares[own].std(ddof=1) / np.sqrt(own.sum())
    score = scores["in_lungs/covid"]
    assert score.value - score.low == pytest.approx(error, rel=0.15)
    assert score.high - score.value == pytest.approx(error, rel=0.15)


def test_copies_of_a_film_do_not_narrow_the_interval(measured):
    shares, areas, labels = measured
    once = saliency_scores(shares, areas, labels, CLASSES)["in_lungs/normal"]
    tripled = saliency_scores(
        *(np.tile(values, 3) for values in measured),
        CLASSES,
        Bootstrap(groups=np.tile(np.arange(300), 3)),
    )["in_lungs/normal"]
    assert (tripled.low, tripled.high) == pytest.approx((once.low, once.high))


def test_keys_and_words_tell_the_numbers_and_how_many_images(measured):
    shares, areas, labels = measured
    scores = saliency_scores(shares, areas, labels, CLASSES, Bootstrap(samples=100))
    metrics = saliency_metrics(scores, np.array([150, 150, 0]), CLASSES)
    inside = scores["in_lungs/covid"]
    assert metrics["saliency/in_lungs/covid"] == inside.value
    assert metrics["saliency/in_lungs_low/covid"] == inside.low
    assert metrics["saliency/ratio_high/normal"] == scores["ratio/normal"].high
    assert metrics["saliency/area/covid"] == scores["area/covid"].value
    assert metrics["saliency/support/covid"] == 150
    assert metrics["saliency/support/viral_pneumonia"] == 0
    line = saliency_line(scores, np.array([150, 150, 0]), CLASSES)
    assert f"COVID {inside.value:.2f} ({inside.low:.2f}–{inside.high:.2f})" in line
    assert f"evenly spread {scores['area/covid'].value:.2f}, n = 150" in line
    assert "not measured for Viral Pneumonia" in line


def texts(figure) -> list[Text]:
    """Texts on the page; matplotlib also keeps labels of ticks outside the axes."""
    hidden = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    found = (t for t in figure.findobj(Text) if t.get_visible() and t not in hidden)
    return [text for text in found if text.get_text().strip()]


def drawn(figure) -> list[str]:
    return [text.get_text() for text in texts(figure)]


def panels(num: int, mask: bool = True) -> list[Panel]:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    lungs = two_lungs(1)[0] if mask else None
    text = "is Pseudopneumoenceph\n99.9% sure\n53% in lungs"
    return [Panel(image, rng.normal(size=(7, 7)), lungs, text) for _ in range(num)]


def figures(classes):
    shares = np.linspace(0.2, 0.7, 30)
    scores = saliency_scores(shares, shares / 2, np.arange(30) % 2, classes, Bootstrap(samples=50))
    rows = [panels(5), panels(2, mask=False), []]
    return {
        "sheet": plot_heat_sheet(rows, classes, title="Grad-CAM of images", subtitle=SUBTITLE),
        "shares": plot_saliency_shares(scores, np.array([15, 15, 0]), classes, subtitle=SUBTITLE),
    }


@pytest.mark.parametrize("classes", [CLASSES, LONG], ids=["usual", "long_names"])
def test_no_text_is_cut_or_printed_over_another(classes):
    for name, figure in figures(classes).items():
        figure.canvas.draw()
        boxes = [(text, text.get_window_extent()) for text in texts(figure)]
        page = figure.bbox.padded(1)
        for text, box in boxes:
            assert page.x0 <= box.x0, (name, text)
            assert box.x1 <= page.x1, (name, text)
            assert page.y0 <= box.y0, (name, text)
            assert box.y1 <= page.y1, (name, text)
        level = [(t, b.padded(-1)) for t, b in boxes if t is not figure._suptitle]
        for (one, box), (other, other_box) in itertools.combinations(level, 2):
            if {one.get_rotation(), other.get_rotation()} <= {0, 90}:
                assert not box.overlaps(other_box), (name, one, other)


def test_figures_show_what_they_say():
    made = figures(CLASSES)
    for figure in made.values():
        assert SUBTITLE in " ".join(drawn(figure)).replace("\n", " ")
    sheet = drawn(made["sheet"])
    assert "none" in sheet, "the class without an image"
    with_outline = [bool(axes.collections) for axes in made["sheet"].axes]
    assert with_outline == [True] * 5 + [False] * 10, "no outline where there is no mask"
    (axes,) = made["shares"].axes
    heights = [bars.patches[0].get_height() for bars in axes.containers
               if isinstance(bars, BarContainer)]  # fmt: skip
    shares = np.linspace(0.2, 0.7, 30)
    np.testing.assert_allclose(heights, [shares[::2].mean(), shares[1::2].mean()])
    assert "not measured" in drawn(made["shares"])
    with pytest.raises(ValueError, match="at most 5 images"):
        plot_heat_sheet([panels(6)], ["COVID"], title="")
