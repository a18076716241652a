"""Whether what a finished model promises of its probabilities holds on the images it is given."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cxr_mlflow.calibrate import Calibration, CalibrationCheck, check
from cxr_mlflow.evaluation.intervals import Bootstrap
from cxr_mlflow.evaluation.selective import Threshold
from cxr_mlflow.serving.predictor import Predictor
from cxr_mlflow.serving.scorer_config import Prior

NOTHING_PROMISED = "not measured: the model was made before models carried thresholds"


def calibration_of(predictor: Predictor) -> Calibration | None:
    """What a model carries of its calibration; None if not all of it.

    How its threshold did on the validation images is not kept in a model, and nan here.
    """
    told = predictor.promises
    if not {"calibration", "abstaining", "prediction_sets"} <= told.keys():
        return None
    least = told["abstaining"]["threshold"]  # JSON knows no inf
    return Calibration(
        temperature=float(told["calibration"]["temperature"]),
        threshold=Threshold(
            threshold=math.inf if least is None else float(least),
            risk=float(told["abstaining"]["risk"]),
            delta=float(told["abstaining"]["delta"]),
            coverage=math.nan,
            observed_risk=math.nan,
            upper_bound=math.nan,
        ),
        set_thresholds=np.array(told["prediction_sets"]["thresholds"], np.float64),
        coverage=float(told["prediction_sets"]["coverage"]),
        prior=Prior(**{k: tuple(v) for k, v in told["prior"].items()}) if "prior" in told else None,
    )


def check_promises(
    predictor: Predictor,
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    how: Bootstrap,
    subtitle: str,
) -> CalibrationCheck:
    """Hold calibration, abstaining and prediction sets of a model against labelled images.

    Parameters
    ----------
    predictor : Predictor
    probabilities : float array of shape (N, C)
        As the model returns them: calibrated. The raw ones follow from them and the temperature.
    labels : integer array of shape (N,)
    how : Bootstrap
    subtitle : str
        What figures say they were computed on.

    Returns
    -------
    CalibrationCheck
        Without metrics and figures, and with a line that says so, where the model promises nothing.
    """
    fitted = calibration_of(predictor)
    if fitted is None:
        return CalibrationCheck({}, {}, {"calibration": NOTHING_PROMISED})
    tiny = float(np.finfo(np.float32).smallest_subnormal)  # the model answers in float32
    logits = fitted.temperature * np.log(probabilities.clip(tiny))
    return check(fitted, logits, labels, predictor.classes, how=how, subtitle=subtitle)
