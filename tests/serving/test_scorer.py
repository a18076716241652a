"""The scorer gives the network's probabilities, refuses what it cannot use, and stays light."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.scorer import BATCH, Scorer, softmax
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, ScorerConfig


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
    assert (plain.abstaining, plain.prediction_sets) == (None, None)  # an older folder
    assert "abstaining" not in plain.dumps()  # an older version can read it
    promising = replace(
        plain,
        temperature=1.7,
        abstaining=Abstaining(threshold=threshold, risk=0.05, delta=0.1),
        prediction_sets=PredictionSets(thresholds=(0.0, 0.25), coverage=0.9, per_class=True),
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
