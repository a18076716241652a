"""Looks inside a network: saliency maps and the features that its last layer reads.

Grad-CAM (Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based
localization, ICCV 2017) by captum. Whatever is done here, the network is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cxr_mlflow.data.dataset import Draw, RadiographDataset
from cxr_mlflow.training.loop import to_input

MIN_CELLS = 7
"""Fewest cells a side of a saliency map; docs/controls.md has the measurement behind it."""
BATCH_SIZE = 64

Places = NDArray[np.int64]
Floats = NDArray[np.float32]


def saliency_layer(
    network: nn.Module, image_size: int, device: torch.device
) -> tuple[nn.Module, str]:
    """Find the deepest part of a network whose maps have `MIN_CELLS` cells a side.

    Grad-CAM is usually taken from the last convolution, which at 64 px has a map of 2 x 2 cells
    and cannot say where. Direct children of the network are looked at, in the order they run.

    Parameters
    ----------
    network : nn.Module
    image_size : int
        Side S of its images, pixels.
    device : torch.device

    Returns
    -------
    layer : nn.Module
        The first one with a map if none is fine enough.
    name : str
        What it is called in the network and how fine its map is: "layer2, 8 x 8 cells".
    """
    maps: list[tuple[str, nn.Module, tuple[int, int]]] = []

    def note(name: str, module: nn.Module, output: Tensor) -> None:
        if output.ndim == 4:
            maps.append((name, module, (output.shape[2], output.shape[3])))

    hooks = [
        module.register_forward_hook(lambda m, _, output, name=name: note(name, m, output))
        for name, module in network.named_children()
    ]
    try:
        with scoring(network), torch.inference_mode():
            network(torch.zeros(1, 1, image_size, image_size, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    if not maps:
        raise ValueError("the network has no part with a map, so there is nothing to explain")
    fine = [part for part in maps if min(part[2]) >= MIN_CELLS]
    name, layer, (height, width) = fine[-1] if fine else maps[0]
    return layer, f"{name}, {height} x {width} cells"


def grad_cam(
    network: nn.Module,
    layer: nn.Module,
    images: RadiographDataset,
    places: Places,
    targets: Places,
    *,
    device: torch.device,
) -> Floats:
    """Grad-CAM of some images, each for a class of its own.

    Parameters
    ----------
    network : nn.Module
        On `device`; images float32 (B, 1, S, S) to logits (B, C).
    layer : nn.Module
        The part of it whose map is taken, see `saliency_layer`.
    images : RadiographDataset
    places, targets : int64 arrays of shape (N,)
        Which of the images, and the class that each is explained for.
    device : torch.device

    Returns
    -------
    float32 array of shape (N, h, w)
        Positive where the image speaks for the class, negative where it speaks against it.
    """
    from captum.attr import LayerGradCam  # takes a second to load: only those who explain wait

    explainer = LayerGradCam(network, layer)
    parts = [np.empty((0, 1, 1), np.float32)] if not len(places) else []
    with scoring(network), torch.enable_grad():
        for start in range(0, len(places), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            batch = _batch(images, places[part], device).requires_grad_()
            target = torch.from_numpy(targets[part]).to(device)
            parts.append(explainer.attribute(batch, target=target)[:, 0].detach().cpu().numpy())
    return np.concatenate(parts)


def last_features(
    network: nn.Module, images: RadiographDataset, places: Places, *, device: torch.device
) -> Floats:
    """What the last layer of a network reads of some images, float32 (N, D).

    Parameters
    ----------
    network : nn.Module
        On `device`; left as it was.
    images : RadiographDataset
    places : int64 array of shape (N,)
        Which of `images`.
    device : torch.device
    """
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    taken: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].cpu()))
    try:
        with scoring(network), torch.inference_mode():
            for start in range(0, len(places), BATCH_SIZE):
                network(_batch(images, places[start : start + BATCH_SIZE], device))
    finally:
        hook.remove()
    return torch.cat(taken).numpy()


def _batch(images: RadiographDataset, places: Places, device: torch.device) -> Tensor:
    pixels = np.stack([images.pixels(Draw(0, 0, int(place))) for place in places])
    return to_input(torch.from_numpy(pixels[:, None]), device)


@contextmanager
def scoring(network: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and each of its parts back into the mode it had."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
