"""What a trained network looks at, and whether its features carry the source of an image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from cxr_mlflow.data.dataset import Draw, RadiographDataset
from cxr_mlflow.data.prepare import Study
from cxr_mlflow.data.preprocess import Pixels, resize
from cxr_mlflow.evaluation.assessment import Assessment
from cxr_mlflow.evaluation.figure import shorten
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.saliency import (
    Panel,
    plot_heat_sheet,
    plot_saliency_shares,
    saliency_line,
    saliency_metrics,
    saliency_scores,
    share_inside,
)
from cxr_mlflow.evaluation.source_probe import find_probed, probe_line, probe_metrics, probe_source
from cxr_mlflow.inside import grad_cam, last_features, saliency_layer

MAX_IMAGES = 200
"""Most images of a class whose saliency is measured: 0.4 % of the time of ten epochs on the
development pack, on a CPU (cnn and resnet18, 64 and 112 px)."""
SHEET_IMAGES = 5
THUMBNAIL = 8
FEATURES, REFERENCE = "features", "8x8 thumbnail"

Rows = NDArray[np.int64]
Heat = NDArray[np.float32]


@dataclass(frozen=True)
class Explained:
    """What was found: metric key -> number, name in the note -> words, artifact name -> figure."""

    metrics: dict[str, float] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)


def explain_trained(
    network: nn.Module,
    study: Study,
    result: Assessment,
    *,
    mask_mode: str,
    device: torch.device,
    samples: int,
    caption: str,
) -> Explained:
    """Draw Grad-CAM of test images, and measure how much of it lies inside the lungs.

    Measured are images that were judged rightly and have a lung mask, at most `MAX_IMAGES` of each
    class, drawn by a fixed seed, each explained for its class. The network is left as it was.

    Parameters
    ----------
    network : nn.Module
        On `device`; images float32 (B, 1, S, S) to logits (B, C).
    study : Study
    result : Assessment
        Of the test images of `study`, in the order of `study.split.rows("test")`.
    mask_mode : str
        What the network was trained on.
    device : torch.device
    samples : int
        Bootstrap resamples.
    caption : str
        What figures say they were computed on.

    Returns
    -------
    Explained
        Metrics `test/saliency/in_lungs/<class>`, its ends, `.../area/<class>`, `.../ratio/<class>`,
        `.../support/<class>`; figures `saliency_right`, `saliency_wrong`, `saliency_shares`.
    """
    classes, rows = study.catalog.classes, study.split.rows(result.split)
    predicted = result.probabilities.argmax(axis=1)
    images = RadiographDataset(study.cache, rows, study.labels, mask_mode=mask_mode)
    layer, name = saliency_layer(network, study.cache.images.shape[-1], device)

    def explain(chosen: list[Rows]) -> _Maps:
        places = np.concatenate(chosen)
        heat = grad_cam(network, layer, images, places, predicted[places], device=device)
        masks = study.cache.masks[rows[places]]
        masked = (study.catalog.table["mask_path"] != "").to_numpy()[rows[places]]
        shares = np.where(masked, share_inside(heat, masks), np.nan)
        return _Maps(images, result, classes, places, heat, masks, masked, shares)

    chosen = choose_images(result.y_true, result.probabilities)
    right, wrong = (explain(places) for places in chosen)
    told = f"{caption}; Grad-CAM of {name}"
    figures = {
        "saliency_right": plot_heat_sheet(
            right.panels(),
            classes,
            title="Grad-CAM of rightly judged images, drawn at random",
            subtitle=told,
        ),
        "saliency_wrong": plot_heat_sheet(
            wrong.panels(),
            [f"called {each}" for each in classes],
            title="Grad-CAM of wrongly judged images, the surest of each class",
            subtitle=told,
        ),
    }
    labels, counted = predicted[right.places], ~np.isnan(right.shares)
    if not counted.any():
        why = "no image that was judged rightly has a lung mask and positive saliency"
        return Explained({}, {"saliency": f"not measured: {why}"}, figures)
    scores = saliency_scores(
        right.shares,
        right.masks.mean(axis=(1, 2)),
        labels,
        classes,
        Bootstrap(groups=study.duplicates.groups[rows[right.places]], samples=samples),
    )
    counts = np.bincount(labels[counted], minlength=len(classes))
    figures["saliency_shares"] = plot_saliency_shares(scores, counts, classes, subtitle=told)
    metrics = saliency_metrics(scores, counts, classes)
    return Explained(
        {f"{result.split}/{key}": value for key, value in metrics.items()},
        {"saliency": saliency_line(scores, counts, classes)},
        figures,
    )


@dataclass(frozen=True)
class _Maps:
    """Images that were explained, class by class, with all that belongs to them."""

    images: RadiographDataset
    result: Assessment
    classes: tuple[str, ...]
    places: Rows  # (N,), in the images and in the result
    heat: Heat  # (N, h, w)
    masks: Pixels  # (N, S, S)
    masked: NDArray[np.bool_]  # (N,), whether an image has a mask
    shares: NDArray[np.float64]  # (N,), nan where not measured

    def panels(self) -> list[list[Panel]]:
        """The first images of each class, as a sheet shows them."""
        predicted = self.result.probabilities[self.places].argmax(axis=1)
        of_class = (np.flatnonzero(predicted == label) for label in range(len(self.classes)))
        return [[self._panel(int(k)) for k in own[:SHEET_IMAGES]] for own in of_class]

    def _panel(self, k: int) -> Panel:
        place = int(self.places[k])
        chances, true = self.result.probabilities[place], int(self.result.y_true[place])
        lines = [f"{chances.max():.1%} sure"]
        if true != chances.argmax():
            lines = [f"is {shorten(self.classes[true], 18)}", *lines]
        if not self.masked[k]:
            lines.append("no lung mask")
        else:
            share = self.shares[k]
            lines.append("no saliency" if np.isnan(share) else f"{share:.0%} in lungs")
        image = self.images.pixels(Draw(0, 0, place))
        mask = self.masks[k] if self.masked[k] else None
        return Panel(image, self.heat[k], mask, "\n".join(lines))


def choose_images(
    y_true: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[list[Rows], list[Rows]]:
    """Choose what is explained, for each class: places of right images, and of wrong ones.

    Right ones (true positives) are drawn at random, at most `MAX_IMAGES`, by a seed that depends on
    the class alone. Wrong ones (false positives: called the class, and another) are the
    `SHEET_IMAGES` that the model was surest of.
    """
    predicted = probabilities.argmax(axis=1)
    right, wrong = [], []
    for label in range(probabilities.shape[1]):
        hits = np.flatnonzero((predicted == label) & (y_true == label))
        drawn = np.random.default_rng([0, label]).permutation(hits)[:MAX_IMAGES]
        false = np.flatnonzero((predicted == label) & (y_true != label))
        surest = false[np.argsort(-probabilities[false, label], kind="stable")]
        right.append(drawn)
        wrong.append(surest[:SHEET_IMAGES])
    return right, wrong


def probe_sources(
    network: nn.Module,
    study: Study,
    *,
    mask_mode: str,
    device: torch.device,
    samples: int,
    doubted: Collection[str] = (),
) -> Explained:
    """Measure how well the network's last features tell the source of an image inside a class.

    Taken are validation and test images, on which the network was not trained, of each class that
    has two sources with enough films among them. An 8 x 8 thumbnail of what the network sees is
    probed alike: what it tells, any network is given on a plate.

    Parameters
    ----------
    network, study, mask_mode, device, samples
        As of `explain_trained`.
    doubted : collection of str
        Classes whose listed sources do not fit their films.

    Returns
    -------
    Explained
        Metrics `test/source_probe/balanced_accuracy/<class>`, `.../roc_auc/<class>`, their ends,
        `.../chance/<class>`, `.../support/<class>`, and the same of the thumbnail under
        `test/source_probe/thumbnail/`. Without a class to probe the line says so.
    """
    rows = np.sort(np.concatenate([study.split.rows(split) for split in ("val", "test")]))
    sources = study.catalog.table["source"].to_numpy(object)[rows]
    groups, classes = study.duplicates.groups[rows], study.catalog.classes
    images = RadiographDataset(study.cache, rows, study.labels, mask_mode=mask_mode)
    probes = []
    for name, places in find_probed(study.labels[rows], sources, groups, classes).items():
        thumbnails = [resize(images.pixels(Draw(0, 0, int(p))), THUMBNAIL).ravel() for p in places]
        views = {
            FEATURES: last_features(network, images, places, device=device),
            REFERENCE: np.stack(thumbnails).astype(np.float32),
        }
        probes.append(
            probe_source(
                views,
                sources[places].tolist(),
                class_name=name,
                groups=groups[places],
                samples=samples,
            )
        )
    metrics = {f"source_probe/{k}": v for k, v in probe_metrics(probes, FEATURES).items()}
    for key, value in probe_metrics(probes, REFERENCE).items():
        if not key.startswith(("chance", "support")):
            metrics[f"source_probe/thumbnail/{key}"] = value
    line = probe_line(probes, classes, view=FEATURES, reference=REFERENCE, doubted=doubted)
    return Explained({f"test/{key}": v for key, v in metrics.items()}, {"source probe": line})
