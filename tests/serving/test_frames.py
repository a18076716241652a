"""Tables and arrays in, a table of labels out; the row at fault is named."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.files import ImageFile, predict_files
from cxr_mlflow.serving.frames import predict_table
from cxr_mlflow.serving.predictor import open_predictor
from cxr_mlflow.serving.scorer import Scorer
from cxr_mlflow.serving.scorer_config import Abstaining, PredictionSets, ScorerConfig


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (32, 32), grey).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def scorer(brightness_model) -> Scorer:
    return Scorer.load(brightness_model("none"))


@pytest.fixture
def masked(brightness_model) -> Scorer:
    return Scorer.load(brightness_model("lungs"))


def test_table_of_labels(scorer):
    films = pd.DataFrame({"image": [png(20), png(230)], "patient": [1, 2]}, index=["a", "b"])
    found = predict_table(scorer, films)
    assert list(found.columns) == ["label", "confidence", "p_dark_film", "p_normal"]
    assert found["label"].to_dict() == {"a": "Dark Film", "b": "Normal"}
    np.testing.assert_array_equal(
        found["confidence"], [found["p_dark_film"]["a"], found["p_normal"]["b"]]
    )
    assert (found["confidence"] > 0.99).all()


def promising(folder, threshold=0.9):
    """Make a model folder abstain below a confidence, and return sets; T = 2."""
    path = folder / "scorer.json"
    config = replace(
        ScorerConfig.read(path),
        temperature=2.0,
        abstaining=Abstaining(threshold=threshold, risk=0.05, delta=0.05),
        prediction_sets=PredictionSets(thresholds=(0.3, 0.6), coverage=0.9, per_class=True),
    )
    path.write_text(config.dumps())
    return folder


GREYS = (20, 100, 124, 130, 230)  # p of Normal with T = 2: 0.03, 0.30, 0.47, 0.54, 0.96


def test_a_model_that_may_abstain_says_when_and_what_else_it_may_be(brightness_model, tmp_path):
    folder = promising(brightness_model("none"))
    found = predict_table(Scorer.load(folder), pd.DataFrame({"image": [png(g) for g in GREYS]}))
    assert list(found.columns) == [
        "label", "confidence", "p_dark_film", "p_normal", "abstain", "prediction_set",
    ]  # fmt: skip
    expected = [1 / (1 + math.exp(-(16 * grey / 255 - 8) / 2)) for grey in GREYS]
    np.testing.assert_allclose(found["p_normal"], expected, atol=1e-5)  # the calibrated one
    assert found["abstain"].dtype == bool
    assert found["abstain"].tolist() == [False, True, True, True, False]
    assert found["prediction_set"].tolist() == ["Dark Film"] * 4 + ["Normal"]
    empty = predict_table(Scorer.load(folder), pd.DataFrame({"image": []}))
    assert list(empty.columns) == list(found.columns)

    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no film")
    good = tmp_path / "good.png"
    good.write_bytes(png(124))
    files = [ImageFile(path, path.name, None) for path in (damaged, good)]
    told = predict_files(open_predictor(str(folder)), files)
    assert told["abstain"].isna().tolist() == [True, False]
    assert told["prediction_set"].tolist()[1] == "Dark Film"


def test_sets_may_hold_several_classes_or_none_and_a_model_may_never_answer(brightness_model):
    scorer = Scorer.load(promising(brightness_model("none"), threshold=math.inf))
    films = pd.DataFrame({"image": [png(g) for g in GREYS]})
    assert predict_table(scorer, films)["abstain"].all()
    for thresholds, expected in (
        ((0.0, 0.5), ["Dark Film"] * 3 + ["Dark Film; Normal"] * 2),
        ((0.8, 0.8), ["Dark Film", "", "", "", "Normal"]),
    ):
        sets = PredictionSets(thresholds=thresholds, coverage=0.9, per_class=True)
        scorer.config = replace(scorer.config, prediction_sets=sets)
        assert predict_table(scorer, films)["prediction_set"].tolist() == expected
    always = PredictionSets(thresholds=(0.0, 0.0), coverage=0.9, per_class=True)
    scorer.config = replace(scorer.config, prediction_sets=always, temperature=0.005)
    found = predict_table(scorer, films)
    assert found["p_normal"][0] == 0  # and yet a threshold of 0 holds every class
    assert (found["prediction_set"] == "Dark Film; Normal").all()


def test_base64_text_equals_bytes(masked):
    films = pd.DataFrame({"image": [png(200)] * 2, "mask": [png(255)] * 2})
    text = films.map(lambda cell: base64.encodebytes(cell).decode())  # with line breaks
    pd.testing.assert_frame_equal(predict_table(masked, text), predict_table(masked, films))


def test_columns_in_a_mapping(scorer):
    columns = {"image": np.array([base64.b64encode(png(9)).decode()])}
    assert predict_table(scorer, columns)["label"].tolist() == ["Dark Film"]


def test_array_equals_table(scorer, masked):
    films = np.stack([np.full((32, 32), grey, np.uint8) for grey in (100, 160)])
    table = pd.DataFrame({"image": [png(100), png(160)]})
    pd.testing.assert_frame_equal(predict_table(scorer, films), predict_table(scorer, table))
    table["mask"] = [png(255), png(255)]
    with_masks = np.stack([films, np.full_like(films, 255)], axis=1)
    pd.testing.assert_frame_equal(predict_table(masked, with_masks), predict_table(masked, table))


def test_empty_table(scorer):
    found = predict_table(scorer, pd.DataFrame({"image": []}))
    assert found.shape == (0, 4)


@pytest.mark.parametrize("absent", [None, float("nan"), np.nan, pd.NA])
def test_an_absent_mask_is_told_by_row(masked, absent):
    films = pd.DataFrame({"image": [png(9), png(9)], "mask": [png(255), absent]}, dtype=object)
    with pytest.raises(InputError, match="image 1: this model was trained on lungs cut out"):
        predict_table(masked, films)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (pd.DataFrame({"picture": [b""]}), "no column `image` among"),
        (pd.DataFrame({"image": [png(1), None]}), "row 1: `image` is empty"),
        (pd.DataFrame({"image": ["a path.png"]}), "row 0: `image` is text, but not base64"),
        (pd.DataFrame({"image": [3]}), "row 0: `image` is a int"),
        ([png(1)], "list is not images"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"shape \(1, 3, 8, 8\)"),
        (np.zeros((1, 8, 8)), "float64"),
    ],
)
def test_other_input_is_refused_in_words(scorer, data, told):
    with pytest.raises(InputError, match=told):
        predict_table(scorer, data)
