"""Class slugs, as they stand in metric keys."""

from __future__ import annotations

import pytest

from cxr_mlflow.names import slug


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("COVID", "covid"),
        ("Lung_Opacity", "lung_opacity"),
        ("Normal", "normal"),
        ("Viral Pneumonia", "viral_pneumonia"),
        (" Odd -- name_ ", "odd_name"),
    ],
)
def test_slug(name, expected):
    assert slug(name) == expected
