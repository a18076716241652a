"""What a client is told when it gets no predictions: one line of JSON, and nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST = 500
"""Characters of a message. What it quotes is the client's own, and may be of any length."""
RETRY_SECONDS = "1"


class Refused(Exception):
    """A request that gets no predictions.

    Parameters
    ----------
    status : int
        HTTP status, 4xx or 503, 504.
    message : str
        What is wrong and what to send instead.
    row : int, optional
        Row of the table at fault, from 0.
    field : str, optional
        Its column, or the field of the JSON.
    headers : mapping of str to str, optional
        To be sent beside it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        row: int | None = None,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.row, self.field = status, row, field
        self.headers = dict(headers or {})

    def content(self, request_id: str) -> bytes:
        """Body of the answer."""
        return error_json(str(self), row=self.row, field=self.field, request_id=request_id)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def busy(what: str) -> Refused:
    """Refuse for now: the client may come back."""
    return Refused(503, f"{what}; try again", headers={"Retry-After": RETRY_SECONDS})


def error_json(message: str, **facts: Any) -> bytes:
    """One line of JSON with `error`, and those facts that are not None."""
    if len(message) > LONGEST:
        message = message[: LONGEST - 3] + "..."
    told = {"error": message, **{name: fact for name, fact in facts.items() if fact is not None}}
    return json.dumps(told).encode() + b"\n"
