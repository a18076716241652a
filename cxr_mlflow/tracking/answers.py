"""What MLflow answered: would another try help, and what it says in a line."""

from __future__ import annotations

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2
from requests.exceptions import RequestException
from sqlalchemy.exc import SQLAlchemyError

from cxr_mlflow.errors import InputError


def _names(*codes: int) -> frozenset[str]:
    return frozenset(databricks_pb2.ErrorCode.Name(code) for code in codes)


REFUSALS = _names(
    databricks_pb2.INVALID_PARAMETER_VALUE,
    databricks_pb2.PERMISSION_DENIED,
    databricks_pb2.UNAUTHENTICATED,
    databricks_pb2.ENDPOINT_NOT_FOUND,
)
"""Answers that another try would only get again."""
DOUBTFUL = _names(
    databricks_pb2.BAD_REQUEST,
    databricks_pb2.INVALID_STATE,
    databricks_pb2.RESOURCE_DOES_NOT_EXIST,
    databricks_pb2.RESOURCE_ALREADY_EXISTS,
)
"""Answers that another try may or may not get again."""


def in_short(error: Exception) -> str:
    """Tell an error in a line that is read, not a stack of connection pools."""
    told = " ".join(str(error).split())
    for sign, words in (
        ("NewConnectionError", "no connection"),
        ("ConnectTimeout", "no connection in time"),
        ("Read timed out", "no answer in time"),
        ("too many 500", "it answers with errors (500)"),
    ):
        if sign in told:
            return f"{mlflow.get_tracking_uri()}: {words}"
    kind = "" if isinstance(error, (MlflowException, InputError)) else f"{type(error).__name__}: "
    return f"{kind}{told}"[:200]


def is_refusal(error: Exception) -> bool:
    """Whether the answer would be the same at another try."""
    if isinstance(error, MlflowException):
        return str(error.error_code) in REFUSALS
    if isinstance(error, InputError):
        return not isinstance(error.__cause__, OSError)  # a full disk, a lock that is held
    return isinstance(error, ImportError)


def may_pass(error: Exception) -> bool:
    """Whether it is of the kind that passes by itself: a network, a disk, a database."""
    if isinstance(error, MlflowException):
        return str(error.error_code) not in DOUBTFUL
    return isinstance(error, RequestException | OSError | SQLAlchemyError | InputError)
