"""The script MLflow runs to make the served model (models from code): no pickle anywhere.

`package.log_model` logs a copy whose imports point at the code shipped beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.frames import predict_table
from cxr_mlflow.serving.scorer import Scorer


class ChestXrayModel(PythonModel):
    """X-rays in, labels and probabilities out; see `frames.predict_table` for both."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model folder that was logged as an artifact."""
        self.scorer = Scorer.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,  # or an array; MLflow warns of any other annotation
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Label images; there are no `params`.

        Raises
        ------
        MlflowException
            If the input is bad; the scoring server answers it with status 400 and the message.
        """
        try:
            return predict_table(self.scorer, model_input)
        except InputError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error


mlflow.models.set_model(ChestXrayModel())
