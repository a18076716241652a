"""Killed at any moment, the same command goes on, and nobody can tell afterwards."""

from __future__ import annotations

import signal

import pytest
from mlflow.entities import LoggedModelStatus
from PIL import Image
from safetensors.torch import load_file

from tests.faults.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # one world is made of eleven trainings
MOMENTS = {
    "in the first words": "cxr_mlflow.tracking.journal:Journal.append:after:4",
    "in a step": "cxr_mlflow.training.loop:train_step:before:3",
    "behind the last step of an epoch": "cxr_mlflow.training.loop:predict:before:1",
    "in a checkpoint": "cxr_mlflow.data.storage:sync:before:2:.checkpoint-",
    "behind a checkpoint": "cxr_mlflow.training.checkpoint:Checkpoints.write:after:2",
    "behind the first epoch": "cxr_mlflow.training.callbacks:BestWeights.on_epoch_end:after:1",
    "between answer and note": "cxr_mlflow.tracking.tracker:Tracker.log_metrics:after:2",
    "in the export": "cxr_mlflow.serving.package:write_folder:before:1",
    "in the model's upload": "cxr_mlflow.serving.package:Model.log:after:1",
    "while the gate works": "subprocess:Popen._execute_child:after:1:gate_child",
    "behind the version": "mlflow:register_model:after:1",
    "before the alias": "cxr_mlflow.registration:promote:before:1",
    "behind the end": "cxr_mlflow.tracking.remote:Remote._end:after:1",
}


TESTED = [
    ("in a step", "SIGKILL"),
    ("behind the last step of an epoch", "SIGHUP"),
    ("in a checkpoint", "SIGKILL"),
    ("behind the first epoch", "group SIGINT,SIGTERM,SIGINT"),
    ("between answer and note", "SIGKILL"),
    ("in the model's upload", "SIGKILL"),
    ("while the gate works", "group SIGINT"),
    ("behind the version", "SIGKILL"),
    ("behind the end", "SIGKILL"),
]
"""Moments of the test, and what comes then; `make faults` takes them all, and random ones."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory, empty_store, demo_dir, cache_dir):
    """One run that nothing happened to, one that was killed again and again, and how it ended."""

    def world(name: str) -> World:
        folder = tmp_path_factory.mktemp(name)
        return World(folder, demo_dir, cache_dir, store=empty_store)

    whole, killed = world("whole"), world("killed")
    done = whole.type()
    assert done.returncode == 0, done.stderr
    stopped = []
    for name, signals in TESTED:
        died = killed.type(MOMENTS[name], signals)
        if signals == "SIGKILL":
            assert died.returncode == -signal.SIGKILL, f"{name}: {died.stderr[-2000:]}"
        else:
            assert died.returncode > 0, f"{name}: {died.stderr[-2000:]}"
            (run,) = killed.runs()
            failure = run.data.tags.get("failure", "none")
            goes_on = "The same command goes on from the last checkpoint" in died.stderr
            stopped.append((signals, run.info.status, failure, goes_on))
    done = killed.type()
    assert done.returncode == 0, done.stderr
    assert f"(attempt {len(TESTED) + 1})" in done.stderr
    return whole, killed, stopped


@pytest.fixture(scope="module")
def worlds(lived):
    """The two, without the ends between."""
    return lived[:2]


def artifacts(world: World, run_id: str, folder: str = "") -> set[str]:
    found = world.client.list_artifacts(run_id, folder or None)
    inner = [artifacts(world, run_id, f.path) for f in found if f.is_dir]
    plain = {f.path.partition("+timestamp")[0] for f in found if not f.is_dir}
    return plain.union(*inner)


def test_there_is_one_run_and_it_is_finished(worlds):
    for world in worlds:
        (run,) = world.runs()
        assert run.info.status == "FINISHED"
        assert "failure" not in run.data.tags
    assert run.data.tags["attempts"] == str(len(TESTED) + 1)


def test_the_weights_are_the_same_to_the_bit(worlds):
    def weights(world: World):
        (run,) = world.runs()
        path = world.client.download_artifacts(run.info.run_id, "weights/weights.safetensors")
        return load_file(path)

    whole, killed = map(weights, worlds)
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert tensor.numpy().tobytes() == killed[name].numpy().tobytes(), name


def test_the_history_is_the_same_with_no_step_missing_or_twice(worlds):
    whole, killed = (world.history(world.runs()[0]) for world in worlds)
    assert [step for step, _ in whole["val/f1_macro"]] == [1, 2, 3]
    assert killed == whole


def test_every_clock_metric_is_there_once(worlds):
    _, killed = worlds
    (run,) = killed.runs()
    found = killed.client.get_metric_history(run.info.run_id, "train/seconds")
    assert [m.step for m in found] == [1, 2, 3]


def test_the_artifacts_are_the_same(worlds):
    whole, killed = ((world, world.runs()[0].info.run_id) for world in worlds)
    assert artifacts(*killed) == artifacts(*whole)
    pictures = [f.path for f in killed[0].client.list_artifacts(killed[1], "images")]
    assert len(pictures) == len({p.partition("+timestamp")[0] for p in pictures}) * 2


def test_there_is_one_model_and_one_version_the_champion(worlds):
    for world in worlds:
        (run,) = world.runs()
        models = world.client.search_logged_models([run.info.experiment_id])
        assert [model.status for model in models] == [LoggedModelStatus.READY]
        (version,) = world.client.search_model_versions("name = 'cxr-classifier-demo'")
        champion = world.client.get_model_version_by_alias("cxr-classifier-demo", "champion")
        assert champion.version == version.version
        assert version.source == models[0].model_uri
        assert "pending" not in run.data.tags["mlflow.note.content"]


def test_nothing_is_left_on_the_disk(worlds):
    _, killed = worlds
    assert list((killed.folder / "state" / "runs").iterdir()) == []


def test_typed_again_it_is_a_new_run(worlds):
    whole, _ = worlds
    done = whole.type(register="false")
    assert done.returncode == 0
    assert "attempt" not in done.stderr
    assert len(whole.runs()) == 2


def test_other_options_do_not_resume_and_changed_data_refuses(
    tmp_path_factory, tmp_path, empty_store, cache_dir
):
    from cxr_mlflow.data.demo import write_demo

    data = write_demo(tmp_path / "data" / "demo", num_per_class=16)
    world = World(tmp_path_factory.mktemp("changed"), data, cache_dir, store=empty_store)
    assert world.type(MOMENTS["in a step"]).returncode == -signal.SIGKILL

    other = world.type(lr="0.002", register="false", epochs="1")
    assert other.returncode == 0
    assert "not resumed: an interrupted run (" in other.stderr
    assert "lr was 0.001, is 0.002" in other.stderr
    dead, new = sorted(world.runs(), key=lambda run: run.info.start_time)
    assert (dead.info.status, new.info.status) == ("KILLED", "FINISHED")
    assert dead.data.tags["failure"] == "its process died without a word"

    victim = sorted((data / "Normal" / "images").iterdir())[0]
    with Image.open(victim) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(victim)
    refused = world.type()
    assert refused.returncode == 2
    assert "cannot go on" in refused.stderr
    assert "data digest was" in refused.stderr
    assert "--fresh true starts over" in refused.stderr
    fresh = world.type(fresh="true", epochs="3", register="false")
    assert fresh.returncode == 0, fresh.stderr


def test_asked_to_stop_it_says_so_and_is_killed_however_often_it_is_asked(lived):
    assert lived[2] == [
        ("SIGHUP", "KILLED", "Terminated", True),
        ("group SIGINT,SIGTERM,SIGINT", "KILLED", "KeyboardInterrupt", True),
        ("group SIGINT", "KILLED", "KeyboardInterrupt", True),
    ]
