"""The networks compute what they claim, and first weights are what the run says they are."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights

from cxr_mlflow.config import ModelName, TrainConfig
from cxr_mlflow.errors import InputError
from cxr_mlflow.models import IMAGENET_MEAN, IMAGENET_STD, MODELS, GreyConv, load_model
from cxr_mlflow.training.fitting import start_fit


@pytest.fixture(scope="module")
def rgb_state() -> dict[str, torch.Tensor]:
    """State dict of a torchvision ResNet18 with random weights and moved statistics."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None)
    network.train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    return network.state_dict()


def test_registry_and_config_agree():
    assert set(MODELS) == set(get_args(ModelName))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("size", [64, 97])
def test_shape_of_logits(name, size):
    network = MODELS[name](4).eval()
    assert network(torch.rand(2, 1, size, size)).shape == (2, 4)


def test_grey_network_equals_rgb_network_fed_the_image_three_times(rgb_state, tmp_path):
    torch.save(rgb_state, tmp_path / "rgb.pth")
    grey = load_model("resnet18", 1000, weights=str(tmp_path / "rgb.pth"), seed=0).network.eval()
    rgb = torchvision.models.resnet18(weights=None)
    rgb.load_state_dict(rgb_state)
    images = torch.rand(2, 1, 75, 75)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = rgb.eval()((images.expand(-1, 3, -1, -1) - mean) / std)
        torch.testing.assert_close(grey(images), expected, rtol=1e-4, atol=1e-4)


def test_grey_convolution_is_exact_at_the_border():
    rgb = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
    image = torch.zeros(1, 1, 16, 16)  # black: all that is left is the normalisation's shift
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = rgb((image.expand(-1, 3, -1, -1) - mean) / std)
    torch.testing.assert_close(GreyConv(rgb)(image), expected, rtol=1e-4, atol=1e-5)


def test_seed_decides_random_weights():
    one, same, other = (
        load_model("cnn", 4, weights="none", seed=seed).network.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_weights_are_taken_over(suffix, rgb_state, tmp_path):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(rgb_state, path)
    else:
        safetensors.torch.save_file(rgb_state, path)
    loaded = load_model("resnet18", 4, weights=str(path), seed=0)
    ours = loaded.network.state_dict()
    assert torch.equal(ours["layer3.0.conv1.weight"], rgb_state["layer3.0.conv1.weight"])
    assert loaded.weights == f"file mine{suffix}"
    assert "fc.weight" in loaded.report


def test_stand_in_is_called_partial_imagenet(rgb_state, tmp_path):
    torch.save(rgb_state, tmp_path / "resnet18-standin.pth")
    told = load_model("resnet18", 4, weights=str(tmp_path / "resnet18-standin.pth"), seed=0)
    assert told.weights.startswith("partial ImageNet")
    assert any(line.startswith("Partial ImageNet") for line in told.warnings)


def test_what_a_file_lacks_is_said(rgb_state, tmp_path):
    partial = {k: v for k, v in rgb_state.items() if not k.startswith("layer4.1")}
    torch.save(partial | {"extra.weight": torch.ones(1)}, tmp_path / "part.pth")
    loaded = load_model("resnet18", 4, weights=str(tmp_path / "part.pth"), seed=0)
    assert any("layer4.1.conv1.weight" in line for line in loaded.warnings)
    assert "extra.weight" in loaded.report


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.pth", None, "no such file"),
        ("text.pth", b"hello", "weights=.*text.pth"),
        ("empty.safetensors", b"", "damaged"),
        ("cut.safetensors", b"\xff" * 40, "damaged"),
        ("weights.bin", b"x", ".pth or .safetensors"),
    ],
)
def test_bad_weight_file_is_named(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model("resnet18", 4, weights=str(tmp_path / name), seed=0)


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="more than tensors"):
        load_model("resnet18", 4, weights=str(tmp_path / "evil.pth"), seed=0)
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_model_are_refused(rgb_state, tmp_path):
    torch.save(rgb_state, tmp_path / "rgb.pth")
    with pytest.raises(InputError, match="another model"):
        load_model("cnn", 4, weights=str(tmp_path / "rgb.pth"), seed=0)


UNREACHABLE = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("network unreachable")
socket.getaddrinfo = refuse
from cxr_mlflow.errors import InputError
from cxr_mlflow.models import load_model
print("told:", load_model("resnet18", 4, weights="auto", seed=0).weights)
try:
    load_model("resnet18", 4, weights="imagenet", seed=0)
except InputError as error:
    print("told:", error)
"""


@pytest.mark.slow
def test_unreachable_imagenet_is_said_loudly_or_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE], capture_output=True, text=True, check=True
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("told:")]
    assert told[0] == "told: random (ImageNet unreachable)"
    assert told[1].startswith("told: --weights=imagenet")


def test_imagenet_weights_come_from_torchvisions_cache(rgb_state, tmp_path, monkeypatch):
    enum = ResNet18_Weights.IMAGENET1K_V1
    cached = tmp_path / "hub" / "checkpoints" / enum.url.rsplit("/", 1)[-1]
    cached.parent.mkdir(parents=True)
    torch.save(rgb_state, cached)  # torch checks the hash of downloads only
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = load_model("resnet18", 4, weights="imagenet", seed=0)
    assert loaded.weights == "ImageNet"
    ours = loaded.network.state_dict()
    assert torch.equal(ours["layer1.0.conv1.weight"], rgb_state["layer1.0.conv1.weight"])


def test_counters_of_batch_normalisation_that_a_file_lacks_are_not_called_random_weights(
    rgb_state, tmp_path
):
    old = {k: v for k, v in rgb_state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    loaded = load_model("resnet18", 4, weights=str(tmp_path / "old.pth"), seed=0)
    assert loaded.warnings == ()
    assert "num_batches" not in loaded.report
    assert "101 of 103 tensors taken over; random: fc.weight, fc.bias" in loaded.report


@pytest.mark.parametrize(
    ("freeze", "kept"),
    [
        (0, ()),
        (1, ("conv1", "bn1", "layer1")),
        (3, ("conv1", "bn1", "layer1", "layer2", "layer3")),
    ],
)
def test_frozen_layers_keep_their_first_weights_and_all_others_learn(
    freeze, kept, rgb_state, tmp_path
):
    torch.save(rgb_state, tmp_path / "rgb.pth")
    path = str(tmp_path / "rgb.pth")
    network = load_model("resnet18", 4, weights=path, seed=0, freeze=freeze).network
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    config = TrainConfig(lr=0.1, device="cpu")
    state = start_fit(network, config, steps=8, class_weights=None, device=torch.device("cpu"))
    images, labels = torch.rand(8, 1, 64, 64), torch.arange(8) % 4
    state.criterion(state.network.train()(images), labels).backward()
    state.optimizer.step()
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == (name.split(".")[0] in kept), name


@pytest.mark.parametrize("lost", ["", "layer1.0.conv1.weight"])
def test_random_layers_are_not_frozen(lost, rgb_state, tmp_path):
    weights = "none"
    if lost:
        torch.save({k: v for k, v in rgb_state.items() if k != lost}, tmp_path / "part.pth")
        weights = str(tmp_path / "part.pth")
    with pytest.raises(InputError, match=f"--freeze=1: .*{lost}.* would stay random"):
        load_model("resnet18", 4, weights=weights, seed=0, freeze=1)


def test_what_lacks_only_in_later_layers_does_not_hinder_freezing(rgb_state, tmp_path):
    torch.save({k: v for k, v in rgb_state.items() if "layer4" not in k}, tmp_path / "part.pth")
    loaded = load_model("resnet18", 4, weights=str(tmp_path / "part.pth"), seed=0, freeze=3)
    taking = {n.split(".")[0] for n, p in loaded.network.named_parameters() if p.requires_grad}
    assert taking == {"layer4", "fc"}


def test_cnn_has_nothing_to_freeze():
    with pytest.raises(InputError, match="--freeze=1: --model=cnn"):
        load_model("cnn", 4, weights="none", seed=0, freeze=1)


def test_cnn_has_no_imagenet_weights():
    with pytest.raises(InputError, match="--model=cnn"):
        load_model("cnn", 4, weights="imagenet", seed=0)
