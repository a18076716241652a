"""The networks: grey images float32 (B, 1, S, S) in [0, 1] to logits (B, C).

To add one: a builder and a line in `MODELS` here, a name in `config.ModelName`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import ResNet, ResNet18_Weights, resnet18

from cxr_mlflow.errors import InputError
from cxr_mlflow.weights import read_state

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FETCH_SECONDS = 60.0
"""Longest wait for the ImageNet weights (45 MB) before `--weights imagenet` gives up."""

UNREACHABLE = (
    "The ImageNet weights could not be fetched: training began from random weights and scores "
    "lower than ResNet18 can. --weights imagenet insists on them."
)


@dataclass(frozen=True)
class LoadedModel:
    """A network and the true story of its first weights."""

    network: nn.Module
    weights: str
    """What the weights are, in words, for tags and notes."""
    untrained: frozenset[str]
    """Names of the tensors that are random, the last layer's among them."""
    warnings: tuple[str, ...] = ()
    """What a reader of a score must know about them; shown beside every score."""
    report: str = ""
    """What of a file matched and what did not."""


class GreyConv(nn.Conv2d):
    """First convolution for one grey channel, equal to an RGB one fed the grey image three times.

    The ImageNet normalisation x -> (x - mean) / std is folded in: the kernels over std are summed
    over RGB, and what the means take away is a second, constant term. That term is a convolution of
    an all-ones image, because zero padding is applied after the normalisation and so is a different
    grey at the border than inside; it does not depend on the batch and costs one image.

    Parameters
    ----------
    rgb : nn.Conv2d
        Three-channel convolution without bias, trained on ImageNet-normalised images.
    """

    def __init__(self, rgb: nn.Conv2d) -> None:
        super().__init__(
            1,
            rgb.out_channels,
            rgb.kernel_size,  # type: ignore[arg-type]
            stride=rgb.stride,  # type: ignore[arg-type]
            padding=rgb.padding,  # type: ignore[arg-type]
            bias=False,
        )
        per_std = rgb.weight.detach() / torch.tensor(IMAGENET_STD)[:, None, None]
        per_mean = per_std * torch.tensor(IMAGENET_MEAN)[:, None, None]
        self.weight = nn.Parameter(per_std.sum(1, keepdim=True))
        self.shift: Tensor
        self.register_buffer("shift", per_mean.sum(1, keepdim=True))  # (out, 1, k, k)

    def forward(self, images: Tensor) -> Tensor:
        """Convolve float (B, 1, H, W) in [0, 1]."""
        ones = torch.ones_like(images[:1])
        padding = self.padding if isinstance(self.padding, str) else tuple(self.padding)
        constant = F.conv2d(ones, self.shift, None, self.stride, padding)
        return super().forward(images) - constant


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def build_cnn(num_classes: int) -> nn.Module:
    """Build a small residual CNN (about 0.7 million weights), for training from scratch."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 5, 2, 2, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        ResidualBlock(24, 32, 2),
        ResidualBlock(32, 64, 2),
        ResidualBlock(64, 96, 2),
        ResidualBlock(96, 160, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(160, num_classes),
    )


def build_resnet18(num_classes: int) -> ResNet:
    """ResNet18 of torchvision with a grey first convolution, random weights."""
    network = resnet18(weights=None)
    network.conv1 = GreyConv(network.conv1)
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    return network


MODELS: dict[str, Callable[[int], nn.Module]] = {"cnn": build_cnn, "resnet18": build_resnet18}

FREEZABLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "resnet18": (("conv1", "bn1", "layer1"), ("layer2",), ("layer3",))
}
"""Submodules of a network from the input on, in the portions that `--freeze` counts."""


def load_model(
    name: str, num_classes: int, *, weights: str, seed: int, freeze: int = 0
) -> LoadedModel:
    """Build a network and give it its first weights.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    num_classes : int
        C, the width of the last layer, which always starts random.
    weights : str
        'auto', 'imagenet', 'none', or the path of a .pth or .safetensors state dict.
    seed : int
        Seeds the random weights.
    freeze : int
        So many portions of `FREEZABLE` take no gradient.

    Raises
    ------
    InputError
        If the weights are asked for and cannot be had, or do not fit, or if what shall be frozen
        is random or cannot be frozen.
    """
    if name not in MODELS:
        raise InputError(f"--model={name!r} is not one of {', '.join(MODELS)}")
    torch.manual_seed(seed)
    loaded = _first_weights(name, MODELS[name](num_classes), weights)
    freeze_first(name, loaded, freeze)
    return loaded


def _first_weights(name: str, network: nn.Module, weights: str) -> LoadedModel:
    untrained = frozenset(network.state_dict())
    if weights == "none" or (name == "cnn" and weights == "auto"):
        return LoadedModel(network, "random", untrained)
    if weights in ("auto", "imagenet"):
        if name != "resnet18":
            raise InputError(f"--weights=imagenet: there are none for --model={name}; use 'none'")
        try:
            state = fetch_imagenet()
        except InputError:
            if weights == "imagenet":
                raise
            told = "random (ImageNet unreachable)"
            return LoadedModel(network, told, untrained, (UNREACHABLE,))
        return _fit(network, state, "torchvision's ImageNet weights", "ImageNet")
    path = Path(weights).expanduser()
    state = read_state(path)
    if "standin" in path.stem:  # the development stand-in, see the README on weights
        told = f"partial ImageNet ({path.name})"
        partial = "Partial ImageNet: the last block of the first weights was random."
        return _fit(network, state, f"--weights={path}", told, (partial,))
    return _fit(network, state, f"--weights={path}", f"file {path.name}")


def freeze_first(name: str, loaded: LoadedModel, portions: int) -> None:
    """Let the first portions of a network keep their first weights; 0: none.

    Batch normalisation in them goes on to follow the images: its running mean and variance are
    no weights.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    loaded : LoadedModel
        Its network is changed in place.
    portions : int
        How many of `FREEZABLE`, from the input on.

    Raises
    ------
    InputError
        If these portions are random, or the network has not so many that can be frozen.
    """
    freezable = FREEZABLE.get(name, ())
    if portions > len(freezable):
        raise InputError(f"--freeze={portions}: --model={name} has nothing that can be frozen")
    frozen = [part for portion in freezable[:portions] for part in portion]
    random = sorted(t for t in loaded.untrained if t.split(".")[0] in frozen)
    if random:
        raise InputError(
            f"--freeze={portions}: {random[0]} would stay random for good (first weights: "
            f"{loaded.weights}). Pass --weights with trained ones, or --freeze 0"
        )
    for part in frozen:
        loaded.network.get_submodule(part).requires_grad_(False)


def fetch_imagenet() -> dict[str, Tensor]:
    """ResNet18's ImageNet weights from torchvision's cache, or downloaded into it.

    Raises
    ------
    InputError
        If they are not there within `FETCH_SECONDS`.
    """
    result: list[dict[str, Tensor]] = []
    failure: list[BaseException] = []

    def fetch() -> None:
        try:
            enum = ResNet18_Weights.IMAGENET1K_V1
            result.append(enum.get_state_dict(progress=False, check_hash=True))
        except BaseException as error:  # handed to the caller's thread below
            failure.append(error)

    thread = threading.Thread(target=fetch, name="fetch-imagenet", daemon=True)
    thread.start()
    thread.join(FETCH_SECONDS)
    if not result:
        reason = f"{failure[0]}" if failure else f"no answer in {FETCH_SECONDS:.0f} s"
        raise InputError(
            "--weights=imagenet: the download of ResNet18_Weights.IMAGENET1K_V1 failed "
            f"({reason}). Go online once, put the file into torch's cache, or pass --weights FILE"
        )
    return result[0]


def _fit(
    network: nn.Module,
    state: dict[str, Tensor],
    where: str,
    told: str,
    warnings: tuple[str, ...] = (),
) -> LoadedModel:
    """Put a state dict into the network; tell what matched, and warn of what stays random."""
    state = dict(state)
    rgb = state.get("conv1.weight")
    if isinstance(network, ResNet) and rgb is not None and rgb.ndim == 4 and rgb.shape[1] == 3:
        conv = nn.Conv2d(3, rgb.shape[0], rgb.shape[2], stride=2, padding=3, bias=False)
        conv.weight = nn.Parameter(rgb.float())
        state |= {f"conv1.{k}": v for k, v in GreyConv(conv).state_dict().items()}
    wanted = network.state_dict()
    usable = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    head = _head_of(network)
    # old PyTorch files lack BatchNorm's num_batches_tracked; nothing here uses it
    counted = [name for name in wanted if not name.endswith("num_batches_tracked")]
    missing = [name for name in counted if name not in usable]
    trunk = [name for name in missing if not name.startswith(head)]
    taken = len(counted) - len(missing)
    if taken < len(counted) / 2:
        raise InputError(
            f"{where}: {taken} of the network's {len(counted)} tensors are there "
            f"(missing: {missing[0]}, ...); these are weights of another model"
        )
    network.load_state_dict(wanted | usable)
    extra = [name for name in state if name not in wanted]
    report = f"{where}: {taken} of {len(counted)} tensors taken over"
    report += f"; random: {', '.join(missing)}" if missing else ""
    report += f"; not used: {', '.join(extra)}" if extra else ""
    if trunk:
        warnings = (*warnings, f"Not in {where}, so random: {', '.join(trunk)}.")
    return LoadedModel(network, told, frozenset(missing), warnings, report)


def _head_of(network: nn.Module) -> str:
    """Name of the last layer, which is not taken over between data sets."""
    return [name for name, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
