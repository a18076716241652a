"""Spellings shared by all rooms: class slugs and the file types that are read."""

from __future__ import annotations

import re

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
SPLITS = ("train", "val", "test")
DEMO_MARKER = "DEMO"
"""File in the root of a data set that says that it is synthetic."""


def slug(name: str) -> str:
    """Class name as it stands in metric keys: `Viral Pneumonia` -> `viral_pneumonia`.

    Parameters
    ----------
    name : str
        A class name as the data set's folder spells it.

    Returns
    -------
    str
        Lower-case letters and digits joined by single underscores.

    Examples
    --------
    >>> slug("Lung_Opacity"), slug("Viral Pneumonia")
    ('lung_opacity', 'viral_pneumonia')
    """
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")
