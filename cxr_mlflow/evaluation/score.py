"""A number with the ends of its interval, in the form that JSON can keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cxr_mlflow.evaluation.intervals import Interval


@dataclass(frozen=True)
class Score:
    """A number with the ends of its interval; None where it was not measured."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> Score:
        """Take over an interval; JSON knows no nan."""
        return cls(finite(interval.value), finite(interval.low), finite(interval.high))


def finite(value: float | None) -> float | None:
    """Put None where there is no number."""
    return float(value) if value is not None and math.isfinite(value) else None


def read_scores(told: Mapping[str, Mapping[str, float | None]]) -> dict[str, Score]:
    """Read scores as JSON has them."""
    return {name: Score(**score) for name, score in told.items()}
