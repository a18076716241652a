"""From the body of a request to the values of its JSON, at a bounded cost of memory."""

from __future__ import annotations

import codecs
import json
from typing import Any

from cxr_mlflow.serving.http_refusals import Refused

MAX_VALUES = 4_000_000
MAX_CONTAINERS = 250_000
MAX_TEXTS = 250_000
"""Values, lists or objects, and texts in a body. In memory a short text is ten times its size in
the body, an empty list twenty times."""
SHORT = 2**20
"""Bytes up to which a body is decoded as what it is, UTF-8. One sign outside of Europe's alphabets
makes every letter of such a text take four bytes, those of the images too."""
_SLICE = 2**16


def read_json(body: bytearray) -> dict[str, Any]:
    """Parse a body that is a JSON object, small enough in memory too.

    Parameters
    ----------
    body : bytearray
        Emptied. A long one is parsed byte by byte, as Latin-1: base64 and all of JSON's own signs
        are the same in it, and of other texts only the names in a message look odd.

    Raises
    ------
    Refused
        400 if it is something else, 413 if it holds more than is allowed.
    """
    containers, values = body.count(b"[") + body.count(b"{"), body.count(b",")
    if containers > MAX_CONTAINERS or values > MAX_VALUES or body.count(b'"') > 2 * MAX_TEXTS:
        raise Refused(
            413,
            f"the JSON holds more than {MAX_VALUES:,} values, {MAX_CONTAINERS:,} lists or "
            f"{MAX_TEXTS:,} texts; send images as base64 of a PNG in a column `image`",
        )
    try:
        text = _decode(body)
        body.clear()
        told = json.loads(text)
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Refused(400, f"the body is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise Refused(400, "the JSON is nested too deeply") from None
    except ValueError:  # a number of more than 4,300 digits
        raise Refused(400, "the JSON holds a number that is too long") from None
    if not isinstance(told, dict):
        raise Refused(
            400, f"the body is {kind_of(told)}; send an object with one of dataframe_split, ..."
        )
    return told


def _decode(body: bytearray) -> str:
    if body.startswith(codecs.BOM_UTF8):
        del body[: len(codecs.BOM_UTF8)]
    if len(body) <= SHORT or body.isascii():
        return body.decode("utf-8")
    check = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(body), _SLICE):
        check.decode(body[start : start + _SLICE], final=start + _SLICE >= len(body))
    return body.decode("latin-1")


def kind_of(value: Any) -> str:
    """What a JSON value is, in the words of JSON."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
