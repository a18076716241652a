"""Saliency finds a planted shortcut and clears an honest network; the probe finds a source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import cxr_mlflow.explain as explain_module
from cxr_mlflow.config import DataConfig
from cxr_mlflow.data.cache import PixelCache
from cxr_mlflow.data.catalog import Catalog
from cxr_mlflow.data.dataset import Draw, RadiographDataset
from cxr_mlflow.data.duplicates import Duplicates
from cxr_mlflow.data.prepare import Study, prepare
from cxr_mlflow.data.splits import Split
from cxr_mlflow.evaluation.assessment import Assessment, softmax
from cxr_mlflow.explain import choose_images, explain_trained, probe_sources
from cxr_mlflow.inside import MIN_CELLS, grad_cam, last_features, saliency_layer
from cxr_mlflow.models import MODELS
from cxr_mlflow.training.loop import to_input

CPU = torch.device("cpu")
CLASSES = ("Normal", "Viral Pneumonia")
SIDE, NUM = 48, 400
CORNER, LUNG = (slice(1, 10), slice(1, 10)), (slice(20, 29), slice(8, 17))


def stripes(label: int) -> np.ndarray:
    """A pattern of 9 x 9 pixels: lying stripes for class 0, standing ones for class 1."""
    pattern = np.zeros((9, 9), np.uint8)
    pattern[::2] = 255
    return pattern.T if label else pattern


def draw_study(place, *, traced: bool = False) -> Study:
    """Noise with lungs; the class shows at `place` alone, the source as a bright bottom or not."""
    rng = np.random.default_rng(0)
    images = rng.integers(60, 140, (NUM, SIDE, SIDE), dtype=np.uint8)
    masks = np.zeros((NUM, SIDE, SIDE), np.uint8)
    masks[:, 12:36, 6:20] = masks[:, 12:36, 28:42] = 1
    labels = np.arange(NUM) % 2
    sources = rng.permutation(np.array(["kermany", "rsna"] * (NUM // 2), dtype=object))
    sources[labels == 1] = "kermany"
    for row, label in enumerate(labels):
        images[row][place] = stripes(label)
    if traced:
        images[sources == "rsna", -6:] += 60
    splits = np.array(["train", "val", "test", "test"])[np.arange(NUM) // 2 % 4]
    names = [f"{CLASSES[label]}/{row}" for row, label in enumerate(labels)]
    table = pd.DataFrame(
        {
            "image_id": names,
            "class_name": [CLASSES[label] for label in labels],
            "label": labels,
            "source": sources,
            "mask_path": "mask.png",
            "split": splits,
        }
    )
    catalog = Catalog(
        None,  # type: ignore[arg-type]
        CLASSES,
        table,
        images[:, :1, :1],
        pd.DataFrame(),
        "digest",
        False,
        "planted",
    )
    duplicates = Duplicates(np.arange(NUM), pd.DataFrame())
    return Study(catalog, duplicates, Split(table), PixelCache(images, masks, "planted"))


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, 2, 2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 2),
    )


def pixels_of(study: Study, split: str, mask_mode: str = "none") -> torch.Tensor:
    images = RadiographDataset(
        study.cache, study.split.rows(split), study.labels, mask_mode=mask_mode
    )
    pixels = [images.pixels(Draw(0, 0, place)) for place in range(len(images))]
    return to_input(torch.from_numpy(np.stack(pixels)[:, None]), CPU)


def train_on(study: Study) -> nn.Module:
    network = small_network()
    images = pixels_of(study, "train")
    labels = torch.from_numpy(study.labels[study.split.rows("train")])
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    for _ in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def score(network: nn.Module, study: Study, mask_mode: str = "none") -> Assessment:
    with torch.inference_mode():
        logits = network.eval()(pixels_of(study, "test", mask_mode)).double().numpy()
    labels = study.labels[study.split.rows("test")]
    return Assessment("test", {}, {}, pd.DataFrame(), labels, softmax(logits), {})


def explain(network: nn.Module, study: Study, result: Assessment, mask_mode: str = "none"):
    return explain_trained(
        network, study, result, mask_mode=mask_mode, device=CPU, samples=200, caption="planted"
    )


@dataclass
class Told:
    study: Study
    network: nn.Module
    result: Assessment
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def honest():
    """A network whose classes differ inside a lung alone."""
    return learn(LUNG)


def learn(place) -> Told:
    study = draw_study(place)
    network = train_on(study)
    result = score(network, study)
    assert (result.probabilities.argmax(axis=1) == result.y_true).mean() > 0.95
    return Told(study, network, result, explain(network, study, result).metrics)


def test_a_shortcut_shows():
    told = learn(CORNER)
    for key in ("normal", "viral_pneumonia"):
        area = told.metrics[f"test/saliency/area/{key}"]
        assert told.metrics[f"test/saliency/in_lungs_high/{key}"] < area / 2
        assert told.metrics[f"test/saliency/ratio_high/{key}"] < 0.5


def test_an_honest_network_is_cleared(honest):
    for key in ("normal", "viral_pneumonia"):
        area = honest.metrics[f"test/saliency/area/{key}"]
        assert honest.metrics[f"test/saliency/in_lungs_low/{key}"] > 1.5 * area
        assert honest.metrics[f"test/saliency/ratio_low/{key}"] > 1.5


def test_random_weights_do_not_look_at_the_lungs(honest):
    """The model randomisation check of Adebayo et al., Sanity checks for saliency maps, 2018."""
    ratios = []
    for seed in range(1, 5):
        network = small_network(seed)
        metrics = explain(network, honest.study, score(network, honest.study)).metrics
        ratios += [value for key, value in metrics.items() if "saliency/ratio/" in key]
    assert 0.7 < np.nanmean(ratios) < 1.3
    assert np.nanmean(ratios) < honest.metrics["test/saliency/ratio/normal"] / 1.5


def test_the_network_is_left_as_it_was(honest):
    network = small_network(3).train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    result = honest.result
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        explain(network, honest.study, result)
        probe_sources(network, honest.study, mask_mode="none", device=CPU, samples=50)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert all(p.grad is None for p in network.parameters())
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_cost_is_bounded_and_the_choice_is_always_the_same(honest, monkeypatch):
    monkeypatch.setattr(explain_module, "MAX_IMAGES", 12)
    seen: list[int] = []
    watch = honest.network.register_forward_hook(lambda m, i, output: seen.append(len(output)))
    first, second = (explain(honest.network, honest.study, honest.result) for _ in range(2))
    watch.remove()
    assert first.metrics == second.metrics
    assert first.metrics["test/saliency/support/normal"] == 12
    assert sum(seen) <= 2 * (1 + 2 * (12 + explain_module.SHEET_IMAGES))


def test_right_images_are_drawn_and_wrong_ones_are_the_surest():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 900)
    y_true, predicted = rng.integers(0, 3, 900), probabilities.argmax(axis=1)
    right, wrong = choose_images(y_true, probabilities)
    for label in range(3):
        hits = (predicted == label) & (y_true == label)
        assert set(right[label]) <= set(np.flatnonzero(hits))
        assert len(set(right[label])) == min(hits.sum(), explain_module.MAX_IMAGES)
        false = np.flatnonzero((predicted == label) & (y_true != label))
        surest = np.sort(probabilities[false, label])[::-1][: explain_module.SHEET_IMAGES]
        assert set(wrong[label]) <= set(false)
        np.testing.assert_array_equal(probabilities[wrong[label], label], surest)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("size", [48, 64])
def test_real_networks_have_a_map_fine_enough_and_captum_reads_it(model, size):
    torch.manual_seed(0)
    network = MODELS[model](4).to(memory_format=torch.channels_last)
    layer, name = saliency_layer(network, size, CPU)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, size, size), dtype=np.uint8)
    cache = PixelCache(images, np.ones_like(images), "noise")
    dataset = RadiographDataset(cache, np.arange(3), np.zeros(3, int), mask_mode="none")
    places, targets = np.arange(3), np.array([0, 3, 1])
    heat = grad_cam(network, layer, dataset, places, targets, device=CPU)
    assert min(heat.shape[1:]) >= MIN_CELLS
    assert f"{heat.shape[1]} x {heat.shape[2]} cells" in name
    kept: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda m, i, output: kept.append(output))
    logits = network.eval()(to_input(torch.from_numpy(images[:, None]), CPU))
    hook.remove()
    for place, target in zip(places, targets, strict=True):  # the definition, image by image
        (slope,) = torch.autograd.grad(logits[place, target], kept[0], retain_graph=True)
        weights = slope[place].mean(dim=(1, 2), keepdim=True)
        expected = (weights * kept[0][place]).sum(0).detach().numpy()
        np.testing.assert_allclose(heat[place], expected, rtol=1e-3, atol=1e-6)


def test_masks_are_those_of_the_cropped_image(demo_dir, cache_dir):
    data = DataConfig(
        data_dir=str(demo_dir), cache_dir=str(cache_dir), image_size=48, mask_mode="lungs-crop"
    )
    study = prepare(data, progress=False)
    torch.manual_seed(0)
    network = MODELS["cnn"](4)
    rows = study.split.rows("test")
    truth = study.labels[rows]
    perfect = Assessment("test", {}, {}, pd.DataFrame(), truth, np.eye(4)[truth], {})
    found = explain(network, study, perfect, "lungs-crop")
    masks = study.cache.masks[rows[truth == 0]]
    expected = masks.mean(axis=(1, 2))
    heat = grad_cam(
        network,
        saliency_layer(network, 48, CPU)[0],
        RadiographDataset(study.cache, rows, study.labels, mask_mode="lungs-crop"),
        np.flatnonzero(truth == 0),
        np.zeros(len(masks), int),
        device=CPU,
    )
    positive = heat.clip(0).sum(axis=(1, 2)) > 0
    assert found.metrics["test/saliency/area/covid"] == pytest.approx(expected[positive].mean())
    assert expected.mean() > 0.35, "the lungs fill the frame they are cropped to"


def test_without_masks_the_sheets_remain_and_nothing_is_measured(honest):
    study = honest.study
    study.catalog.table["mask_path"] = ""
    try:
        found = explain(honest.network, study, honest.result)
    finally:
        study.catalog.table["mask_path"] = "mask.png"
    assert found.metrics == {}
    assert found.lines["saliency"].startswith("not measured: ")
    assert found.figures.keys() == {"saliency_right", "saliency_wrong"}
    assert not any(axes.collections for axes in found.figures["saliency_right"].axes)


def test_a_network_that_is_never_right_is_explained_all_the_same(honest):
    upside_down = Assessment(
        *("test", {}, {}, pd.DataFrame(), honest.result.y_true),
        honest.result.probabilities[:, ::-1],
        {},
    )
    found = explain(honest.network, honest.study, upside_down)
    assert found.lines["saliency"].startswith("not measured: no image that was judged rightly")
    assert "saliency_wrong" in found.figures


def test_features_are_what_the_last_layer_reads(honest):
    study = honest.study
    dataset = RadiographDataset(
        study.cache, study.split.rows("test"), study.labels, mask_mode="none"
    )
    features = last_features(honest.network, dataset, np.arange(len(dataset)), device=CPU)
    last = honest.network[-1]
    logits = features @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(softmax(logits), honest.result.probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "clean"])
def test_the_source_is_found_where_it_shows_and_nowhere_else(traced):
    study = draw_study(LUNG, traced=traced)
    found = probe_sources(small_network(), study, mask_mode="none", device=CPU, samples=200)
    held_out = np.concatenate([study.split.rows(split) for split in ("val", "test")])
    metrics = found.metrics
    assert metrics["test/source_probe/support/normal"] == (study.labels[held_out] == 0).sum()
    for view in ("", "thumbnail/"):
        low = metrics[f"test/source_probe/{view}balanced_accuracy_low/normal"]
        high = metrics[f"test/source_probe/{view}balanced_accuracy_high/normal"]
        assert low > 0.9 if traced else low < metrics["test/source_probe/chance/normal"] < high
    assert "inside Normal, the features tell 2 sources apart" in found.lines["source probe"]
    assert "not measured inside Viral Pneumonia" in found.lines["source probe"]


def test_what_the_mask_hides_cannot_be_told():
    """The planted trace lies below the lungs: what sees the lungs alone finds what it found."""
    traced, clean = (
        probe_sources(small_network(), study, mask_mode="lungs", device=CPU, samples=50)
        for study in (draw_study(LUNG, traced=True), draw_study(LUNG))
    )
    assert traced == clean


def test_sources_that_nobody_knows_are_not_probed():
    study = draw_study(LUNG)
    study.catalog.table["source"] = "unknown"
    found = probe_sources(small_network(), study, mask_mode="none", device=CPU, samples=50)
    assert found.metrics == {}
    assert found.lines["source probe"].startswith("not measured: ")
