"""The loop learns, repeats itself to the bit, keeps the best weights, and stops when told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cxr_mlflow.errors import InputError
from cxr_mlflow.training.callbacks import BestWeights, ProgressLines, pick_device
from cxr_mlflow.training.loop import (
    EpochResult,
    Fit,
    averaged,
    build_optimizer,
    fit,
    predict,
)

CPU = torch.device("cpu")


def toy(num: int = 96) -> TensorDataset:
    """Two classes told by where the bright half is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num) % 2
    images = torch.randint(0, 120, (num, 1, 16, 16), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, :8] += 100
    return TensorDataset(images, labels)


class ShuffledByEpoch(torch.utils.data.Sampler):
    epoch = done = 0

    def __init__(self, num: int) -> None:
        self.num = num

    def start_at(self, epoch: int, done: int = 0) -> None:
        self.epoch, self.done = epoch, min(done, self.num)

    def __len__(self) -> int:
        return self.num - self.done

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(self.num).tolist()
        return iter(order[self.done :])


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, 2),
    )


def measure(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    right = float((logits.argmax(1) == labels).mean())
    return {"loss": 1 - right, "f1_macro": right}


def run_fit(*, epochs: int = 4, decay: float = 0.9, callbacks=(), lr: float = 0.01):
    network, data = small_net(), toy()
    train = DataLoader(data, batch_size=16, sampler=ShuffledByEpoch(len(data)))
    optimizer = build_optimizer(network, lr=lr, weight_decay=0.01)
    state = Fit(
        network,
        optimizer,
        torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * len(train)),
        nn.CrossEntropyLoss(),
        CPU,
        clip_norm=1.0,
        average=averaged(network, decay),
    )
    history = fit(
        state,
        train,
        DataLoader(data, batch_size=32),
        epochs=epochs,
        seed=0,
        measure=measure,
        num_classes=2,
        callbacks=callbacks,
    )
    return state, history


def test_it_learns_and_reports_every_epoch():
    _, history = run_fit()
    assert [r.epoch for r in history] == [1, 2, 3, 4]
    assert history[-1].metrics["train/loss"] < history[0].metrics["train/loss"]
    assert history[-1].metrics["val/f1_macro"] > 0.9
    assert all(r.draws.tolist() == [48, 48] for r in history)


def test_two_fits_are_bit_identical():
    (one, first), (two, second) = run_fit(), run_fit()
    for a, b in zip(one.evaluated.parameters(), two.evaluated.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r.metrics["train/loss"] for r in first] == [r.metrics["train/loss"] for r in second]


def test_averaged_weights_are_scored_not_the_live_ones():
    state, _ = run_fit(decay=0.9)
    live, mean = next(state.network.parameters()), next(state.evaluated.parameters())
    assert not torch.equal(live, mean)
    state, _ = run_fit(decay=0.0)
    assert state.evaluated is state.network


def test_best_weights_are_a_copy_of_the_best_epoch():
    best = BestWeights("val/f1_macro", patience=10)
    network = small_net()
    scores = [0.5, 0.9, 0.7]
    for epoch, score in enumerate(scores, 1):
        with torch.no_grad():
            next(network.parameters()).fill_(float(epoch))
        best.on_epoch_end(network, EpochResult(epoch, {"val/f1_macro": score}, np.zeros(2)))
    assert best.epoch == 2
    assert (best.state["0.weight"] == 2.0).all()


def test_early_stop_after_patience():
    best = BestWeights("val/f1_macro", patience=2)
    asks = [
        best.on_epoch_end(small_net(), EpochResult(e, {"val/f1_macro": s}, np.zeros(2)))
        for e, s in enumerate([0.5, 0.6, 0.6, 0.4], 1)
    ]
    assert asks == [False, False, False, True]


def test_the_loop_stops_when_a_callback_asks():
    class StopAtTwo:
        def on_batch_end(self, *args):
            pass

        def on_epoch_end(self, evaluated, result):
            return result.epoch == 2

    _, history = run_fit(callbacks=[StopAtTwo()])
    assert len(history) == 2


def test_diverged_training_is_an_error_that_names_the_remedy():
    with pytest.raises(FloatingPointError, match="--lr"):
        run_fit(lr=float("inf"))


def test_norms_and_biases_are_not_decayed():
    groups = build_optimizer(small_net(), lr=0.1, weight_decay=0.5).param_groups
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim <= 1 for p in groups[1]["params"])
    assert [g["weight_decay"] for g in groups] == [0.5, 0.0]


def test_predict_keeps_the_order():
    data = toy(33)
    logits, labels = predict(small_net(), DataLoader(data, batch_size=8), CPU)
    assert logits.shape == (33, 2)
    np.testing.assert_array_equal(labels, data.tensors[1].numpy())


def test_a_line_per_epoch_without_a_terminal(capsys):
    best = BestWeights("val/f1_macro", patience=5)
    run_fit(epochs=2, callbacks=[best, ProgressLines(2, 16, best)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1/2")
    assert "images/s" in lines[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_an_error_when_asked_for():
    assert pick_device("auto") == CPU
    with pytest.raises(InputError, match="--device=cuda"):
        pick_device("cuda")
