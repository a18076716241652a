"""The scorer gives the network's probabilities, refuses what it cannot use, and stays light."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving import scorer as scorer_module
from cxr_mlflow.serving.scorer import BATCH, MOST_AT_ONCE, Scorer, softmax
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, Prior, ScorerConfig


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def flat(grey: int, size: int = 32) -> np.ndarray:
    return np.full((size, size), grey, np.uint8)


def p_normal(grey: float, temperature: float = 1.0) -> float:
    """What the brightness model says of a film with this mean grey value."""
    return 1 / (1 + math.exp(-(16 * grey / 255 - 8) / temperature))


def test_probabilities_of_files_and_arrays(brightness_model):
    scorer = Scorer.load(brightness_model())
    greys = np.arange(0, 250, 5)  # more than two batches
    assert len(greys) > 2 * BATCH
    found = scorer.score_bytes([png(flat(g, size=50)) for g in greys])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1], [p_normal(g) for g in greys], atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    arrays = np.stack([flat(g, size=50) for g in greys])
    np.testing.assert_array_equal(scorer.score_arrays(arrays), found)
    np.testing.assert_array_equal(scorer.score_arrays(arrays[3].astype(np.int64)), found[3:4])


def test_no_images_give_no_rows(brightness_model):
    assert Scorer.load(brightness_model()).score_bytes([]).shape == (0, 2)


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
def test_many_images_are_scored_as_one_by_one_and_in_their_order(brightness_model, threads):
    scorer = Scorer.load(brightness_model("lungs"), threads=threads)
    films = [png(flat(5 * number)) for number in range(50)]
    masks = [png(flat(255)) for _ in films]
    expected = np.concatenate([scorer.score_bytes([film], [masks[0]]) for film in films])
    for count in (1, 2, 3, BATCH, BATCH + 1, 2 * BATCH + 1, 50):
        found = scorer.score_bytes(films[:count], masks[:count])
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_bad_image_is_told_though_a_later_one_is_found_sooner(brightness_model, threads):
    scorer = Scorer.load(brightness_model(), threads=threads)
    slow = png(np.random.default_rng(0).integers(0, 256, (1500, 1500)))
    films = [slow] * (BATCH - 1) + [b"bad"] * (BATCH + 1)
    with pytest.raises(InputError, match=rf"^image {BATCH - 1}: not an image"):
        scorer.score_bytes(films)


def test_after_a_bad_image_the_rest_is_left_alone(brightness_model, monkeypatch):
    scorer, decoded = Scorer.load(brightness_model(), threads=2), []
    decode = scorer_module.decode_grey

    def counted(source: bytes, *, name: str) -> np.ndarray:
        decoded.append(name)
        return decode(source, name=name)

    monkeypatch.setattr(scorer_module, "decode_grey", counted)
    with pytest.raises(InputError, match=r"^image 0: "):
        scorer.score_bytes([b"bad"] + [png(flat(9, size=300))] * 50 * BATCH)
    assert len(decoded) < 10 * BATCH


@pytest.fixture
def started(monkeypatch) -> list[threading.Thread]:
    """Threads that were started."""
    threads, start = [], threading.Thread.start

    def recorded(self: threading.Thread) -> None:
        threads.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", recorded)
    return threads


def test_threads_end_with_the_call_and_one_image_starts_none(brightness_model, started):
    scorer, film = Scorer.load(brightness_model(), threads=2), png(flat(70))
    scorer.score_bytes([film])
    scorer.score_arrays(flat(70))
    Scorer.load(brightness_model(), threads=1).score_bytes([film] * 20)
    assert not started
    scorer.score_bytes([film] * 20)
    with pytest.raises(InputError, match="image 19"):
        scorer.score_bytes([film] * 19 + [b"bad"])
    assert len(started) == 4
    assert not [thread for thread in started if thread.is_alive()]


def test_threads_may_share_a_scorer(brightness_model):
    scorer = Scorer.load(brightness_model(), threads=2)  # its second session is not open yet
    greys = np.arange(0, 250, 10)
    with ThreadPoolExecutor(6) as pool:
        tasks = [
            pool.submit(scorer.score_bytes, [png(flat(g)) for g in np.roll(greys, turn)])
            for turn in range(12)
        ]
    for turn, task in enumerate(tasks):
        expected = [p_normal(g) for g in np.roll(greys, turn)]
        np.testing.assert_allclose(task.result()[:, 1], expected, atol=1e-5)


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_folder_that_changes_later_does_not_change_what_was_loaded(
    brightness_model, change, tmp_path
):
    path = brightness_model() / "model.onnx"
    scorer = Scorer.load(path.parent, threads=2)
    if change == "gone":
        shutil.rmtree(path.parent)
    else:
        content = path.read_bytes()
        path.write_bytes(content.replace(np.float32(4).tobytes(), np.float32(3).tobytes()))
        assert path.read_bytes() != content
    found = scorer.score_bytes([png(flat(g)) for g in (100, 120, 140)])
    np.testing.assert_allclose(found[:, 1], [p_normal(g) for g in (100, 120, 140)], atol=1e-5)


class Counting:
    """A session that takes its time and records how many images are inside at most."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session, self.inside, self.most, self.lock = session, 0, 0, threading.Lock()

    def get_inputs(self) -> object:
        return self.session.get_inputs()

    def run(self, names: object, inputs: dict[str, np.ndarray]) -> object:
        (images,) = inputs.values()
        with self.lock:
            self.inside += len(images)
            self.most = max(self.most, self.inside)
        time.sleep(0.02)
        found = self.session.run(names, inputs)
        with self.lock:
            self.inside -= len(images)
        return found


@pytest.mark.parametrize("threads", [1, 2, 12])
def test_few_images_are_in_the_network_at_a_time(brightness_model, monkeypatch, threads):
    opened, sessions = scorer_module._open_session, []

    def counting(path, number):
        sessions.append(Counting(opened(path, number)))
        return sessions[-1]

    monkeypatch.setattr(scorer_module, "_open_session", counting)
    Scorer.load(brightness_model(), threads=threads).score_arrays(np.zeros((200, 40, 40), np.uint8))
    assert 0 < max(session.most for session in sessions) <= min(threads * BATCH, MOST_AT_ONCE)


def test_temperature_divides_the_logits(brightness_model):
    scorer = Scorer.load(brightness_model(temperature=2.5))
    assert scorer.score_arrays(flat(150))[0, 1] == pytest.approx(p_normal(150, 2.5), abs=1e-5)


def test_softmax_does_not_overflow():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [-1e4, -1e4]])), [[1, 0], [0.5, 0.5]])


def test_what_the_mask_hides_does_not_count(brightness_model):
    image, mask = flat(100), np.zeros((64, 64), np.uint8)  # a mask of another size, as Kaggle's
    image[:, 16:] = 255
    mask[:, :32] = 255
    lungs = Scorer.load(brightness_model("lungs"))
    assert lungs.score_bytes([png(image)], [png(mask)])[0, 1] == pytest.approx(
        p_normal(50), abs=1e-5
    )
    crop = Scorer.load(brightness_model("lungs-crop"))
    found = crop.score_bytes([png(image)], [png(mask)])[0, 1]
    assert p_normal(90) < found < p_normal(100)  # the margin of the box is black
    none = Scorer.load(brightness_model("none"))
    np.testing.assert_array_equal(
        none.score_bytes([png(image)], [png(mask)]), none.score_bytes([png(image)])
    )


@pytest.mark.parametrize("white", [1, 200, 255])
def test_masks_as_arrays_may_be_0_and_1_or_grey(brightness_model, white):
    scorer = Scorer.load(brightness_model("lungs"))
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[:, :8] = white
    found = scorer.score_arrays(flat(200)[None], mask)
    assert found[0, 1] == pytest.approx(p_normal(50), abs=1e-5)


@pytest.mark.parametrize("mode", ["lungs", "crop", "lungs-crop"])
@pytest.mark.parametrize("masks", [None, [None]])
def test_a_model_of_masked_lungs_asks_for_the_mask(brightness_model, mode, masks):
    scorer = Scorer.load(brightness_model(mode))
    with pytest.raises(
        InputError, match=rf"film 7: .*trained on .*mask_mode={mode}.*send a `mask`"
    ):
        scorer.score_bytes([png(flat(9))], masks, names=["film 7"])


def test_a_model_without_masks_does_not_look_at_them(brightness_model):
    scorer, film = Scorer.load(brightness_model("none")), png(flat(70))
    expected = scorer.score_bytes([film])
    for mask in (png(flat(0)), b"not even a file", None):
        np.testing.assert_array_equal(scorer.score_bytes([film], [mask]), expected)


def test_an_empty_mask_is_refused(brightness_model):
    scorer = Scorer.load(brightness_model("lungs"))
    with pytest.raises(InputError, match="mask of image 1: it is empty"):
        scorer.score_bytes([png(flat(9))] * 2, [png(flat(255)), png(flat(0))])


def test_a_bad_file_is_named(brightness_model):
    scorer = Scorer.load(brightness_model("lungs"))
    good = png(flat(200))
    with pytest.raises(InputError, match="image 1: damaged or truncated"):
        scorer.score_bytes([good, good[:-20]], [good, good])
    with pytest.raises(InputError, match="mask of image 0: not an image"):
        scorer.score_bytes([good], [b"lungs"])
    with pytest.raises(InputError, match="2 images and 1 masks"):
        scorer.score_bytes([good, good], [good])


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (np.zeros((1, 8, 8), np.float32), "uint8"),
        (np.full((1, 8, 8), 300), "300"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"\(N, H, W\)"),
        (np.zeros((1, 0, 8), np.uint8), r"\(N, H, W\)"),
    ],
)
def test_arrays_that_are_not_grey_films_are_refused(brightness_model, images, told):
    with pytest.raises(InputError, match=told):
        Scorer.load(brightness_model()).score_arrays(images)


def test_a_changed_network_is_refused(brightness_model):
    path = brightness_model() / "model.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.onnx: .*sha256"):
        Scorer.load(path.parent)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"preprocessing": "cxr-0"}, "'cxr-0'"),
        ({"format_version": 2}, "format 2"),
        ({"calibration": {}}, "temperature"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_folder_of_another_format_is_refused(brightness_model, change, told):
    path = brightness_model() / "scorer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=told) as caught:
        Scorer.load(path.parent)
    assert "scorer.json" in str(caught.value)


@pytest.mark.parametrize("threshold", [0.8123456789012345, math.inf])
def test_what_is_promised_is_kept_in_the_folder(brightness_model, threshold):
    path = brightness_model() / "scorer.json"
    plain = ScorerConfig.read(path)
    assert (plain.abstaining, plain.prediction_sets, plain.prior) == (None,) * 3  # an older folder
    for name in ("abstaining", "prior"):
        assert name not in plain.dumps()  # an older version can read it
    promising = replace(
        plain,
        temperature=1.7,
        abstaining=Abstaining(threshold=threshold, risk=0.05, delta=0.1),
        prediction_sets=PredictionSets(thresholds=(0.0, 0.25), coverage=0.9, per_class=True),
        prior=Prior(shares=(0.8, 0.2), shift=(0.47, -0.9162907318741551)),
    )
    path.write_text(promising.dumps())
    assert "Infinity" not in path.read_text()
    assert ScorerConfig.read(path) == promising


def test_prediction_sets_that_do_not_fit_the_classes_are_refused(brightness_model):
    plain = ScorerConfig.read(brightness_model() / "scorer.json")
    sets = PredictionSets(thresholds=(0.1, 0.2, 0.3), coverage=0.9, per_class=True)
    with pytest.raises(InputError, match="3 thresholds of prediction sets for 2 classes"):
        replace(plain, prediction_sets=sets)
    two = replace(sets, thresholds=(0.1, 0.2))
    with pytest.raises(InputError, match="'a; b' holds '; '"):
        replace(plain, classes=("a; b", "c"), prediction_sets=two)


def test_class_shares_that_do_not_fit_the_classes_are_refused(brightness_model):
    plain = ScorerConfig.read(brightness_model() / "scorer.json")
    with pytest.raises(InputError, match="2 class shares and 1 shifts of logits for 2 classes"):
        replace(plain, prior=Prior(shares=(0.8, 0.2), shift=(0.0,)))


def test_a_missing_file_is_named(brightness_model, tmp_path):
    with pytest.raises(InputError, match=r"scorer\.json: not there"):
        Scorer.load(tmp_path)
    folder = brightness_model()
    (folder / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx: not there"):
        Scorer.load(folder)


@pytest.mark.slow
def test_scoring_needs_neither_torch_nor_mlflow(brightness_model, repo):
    script = (
        "import sys, numpy as np\n"
        f"sys.path.insert(0, {str(repo)!r})\n"
        "from pathlib import Path\n"
        "from cxr_mlflow.serving.frames import predict_table\n"
        "from cxr_mlflow.serving.scorer import Scorer\n"
        f"scorer = Scorer.load(Path({str(brightness_model())!r}))\n"
        "predict_table(scorer, np.zeros((1, 40, 40), np.uint8))\n"
        "heavy = {'torch', 'torchvision', 'mlflow', 'cv2', 'albumentations', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
