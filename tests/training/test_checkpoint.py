"""A training that is cut off anywhere goes on to the same bits; a damaged checkpoint is noticed."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cxr_mlflow.errors import InputError
from cxr_mlflow.training import checkpoint
from cxr_mlflow.training.callbacks import BestWeights
from cxr_mlflow.training.checkpoint import Checkpoints, read_checkpoint, unpack
from cxr_mlflow.training.loop import Fit, averaged, build_optimizer, fit
from tests.training.test_loop import CPU, ShuffledByEpoch, measure, small_net, toy

EPOCHS, STEPS = 3, 6
CLOCK = {"train/seconds", "train/images_per_second"}


@pytest.fixture(autouse=True)
def one_thread():
    """A network this small only waits for its threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(Exception):
    pass


def train(folder, *, kill_after=None, seconds=0.0, warn=pytest.fail, decay=0.9):
    """Train as `fitting.train` does: from the newest checkpoint, if there is one."""
    torch.manual_seed(torch.seed() % 1000)  # whatever the process did before
    network, data = small_net(), toy(90)
    loader = DataLoader(data, batch_size=16, sampler=ShuffledByEpoch(len(data)))
    optimizer = build_optimizer(network, lr=0.01, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=EPOCHS * STEPS)
    loss = nn.CrossEntropyLoss()
    average = averaged(network, decay)
    state = Fit(network, optimizer, schedule, loss, CPU, clip_norm=1.0, average=average)
    best = BestWeights("val/f1_macro", patience=9)
    kept = Checkpoints(folder, seconds=seconds, warn=warn)
    content = kept.read()
    position = unpack(content, state, best) if content else None
    steps_done = 0

    def save(at, epoch_is_over):
        nonlocal steps_done
        kept.keep(state, best, at, epoch_is_over)
        steps_done += not epoch_is_over
        if steps_done == kill_after and not epoch_is_over:
            raise Killed

    history = fit(
        state,
        loader,
        DataLoader(data, batch_size=32),
        epochs=EPOCHS,
        seed=0,
        measure=measure,
        num_classes=2,
        callbacks=[best],
        position=position,
        save=save,
    )
    return state, best, history


def bits(state: Fit, best: BestWeights, history):
    tensors = [*state.network.state_dict().values(), *state.evaluated.state_dict().values()]
    tensors += list(best.state.values())
    told = [{k: v for k, v in r.metrics.items() if k not in CLOCK} for r in history]
    return [t.numpy().tobytes() for t in tensors], told, [r.draws.tolist() for r in history]


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_cut_off_at_any_step_it_goes_on_to_the_same_bits(tmp_path, decay):
    whole = bits(*train(tmp_path / "whole", decay=decay))
    for step in range(1, EPOCHS * STEPS, 2):
        folder = tmp_path / f"cut-{step}"
        with pytest.raises(Killed):
            train(folder, kill_after=step, decay=decay)
        assert bits(*train(folder, decay=decay)) == whole, step


def test_cut_off_again_and_again(tmp_path):
    whole = bits(*train(tmp_path / "whole"))
    for _ in range(20):
        try:
            end = bits(*train(tmp_path / "cut", kill_after=1))
            break
        except Killed:
            pass
    assert end == whole


def test_between_checkpoints_the_steps_are_done_again(tmp_path):
    whole = bits(*train(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=STEPS + 3, seconds=1e9)
    assert len(list((tmp_path / "cut").iterdir())) == 1  # the end of the first epoch
    assert bits(*train(tmp_path / "cut")) == whole


def test_a_finished_training_does_no_step_again(tmp_path):
    whole = bits(*train(tmp_path / "cut"))
    assert bits(*train(tmp_path / "cut", kill_after=1)) == whole


def test_two_are_kept_and_the_older_serves_when_the_newest_is_damaged(tmp_path):
    whole = bits(*train(tmp_path / "whole"))
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=9)
    older, newest = sorted((tmp_path / "cut").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.raises(InputError, match=f"{newest.name}: a damaged checkpoint"):
        read_checkpoint(newest)
    read_checkpoint(older)
    told = []
    assert bits(*train(tmp_path / "cut", warn=told.append)) == whole
    assert newest.name in told[0]
    assert "the one before it is used" in told[0]


def test_a_damaged_one_does_not_count_among_the_two_that_are_kept(tmp_path):
    kept = Checkpoints(tmp_path, seconds=0, warn=lambda told: None)
    for number in (1, 2):
        newest = kept.write({"n": number})
    newest.write_bytes(newest.read_bytes()[:-1])
    assert kept.read() == {"n": 1}
    kept.write({"n": 3})
    assert [read_checkpoint(path) for path in kept.paths()] == [{"n": 1}, {"n": 3}]


def test_a_broken_disk_is_named_and_what_is_done_instead(tmp_path, monkeypatch):
    told = []
    kept = Checkpoints(tmp_path, seconds=0, warn=told.append)
    for number in (1, 2):
        kept.write({"n": number})

    def broken(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(checkpoint, "read_checkpoint", broken)
    assert kept.read() is None
    assert "the one before it is used" in told[0]
    assert told[1].endswith("00000001.checkpoint'; the training begins anew")


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_torn_file_is_no_checkpoint(tmp_path, size):
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=4)
    newest = sorted((tmp_path / "cut").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:size])
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(newest)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=4)
    content = Checkpoints(tmp_path / "cut", seconds=0, warn=pytest.fail).read()
    other = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    optimizer = build_optimizer(other, lr=0.1, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    state = Fit(other, optimizer, schedule, nn.CrossEntropyLoss(), CPU)
    with pytest.raises(InputError, match=r"checkpoint is of another model.*--fresh"):
        unpack(content, state, BestWeights("val/f1_macro", 1))


def test_a_full_disk_is_said_and_the_training_goes_on(tmp_path, monkeypatch):
    told = []

    def full(self, content):
        raise InputError("no space left on the disk")

    monkeypatch.setattr(Checkpoints, "write", full)
    _, _, history = train(tmp_path / "cut", warn=told.append, seconds=1e9)
    assert len(history) == EPOCHS
    assert len(told) == EPOCHS
    assert "no checkpoint could be written" in told[0]


def test_random_state_is_kept_only_within_an_epoch(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "cut", kill_after=STEPS + 1)
    end_of_epoch, within = map(read_checkpoint, sorted((tmp_path / "cut").iterdir()))
    assert end_of_epoch["position"]["random_states"] is None
    assert within["position"]["batch"] == 1
    assert isinstance(within["position"]["random_states"]["cpu"], torch.Tensor)
    assert np.isfinite(within["position"]["loss_sum"].item())
