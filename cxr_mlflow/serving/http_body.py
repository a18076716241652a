"""Reads the body of a request, no more and no longer than allowed, whatever its headers say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.serving.http_refusals import ClientGone, Refused, busy

JSON = "application/json"
MB = 2**20


class HeldBodies:
    """How many bytes of bodies the server holds at the moment; asked by the event loop alone."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read a body; it counts as held until the block ends.

        Raises
        ------
        Refused
            413 if it is too large, 408 if it comes too slowly, 503 if too much is held already.
        ClientGone
        """
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self.config.body_timeout):
                    await self._fill(body, request)
            except TimeoutError:
                message = f"the body did not come within {self.config.body_timeout:g} seconds"
                raise Refused(408, message, headers={"Connection": "close"}) from None
            yield bytes(body)
        finally:
            self.bytes -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        most = self.config.max_body_mb * MB
        too_large = Refused(413, f"the body is larger than {self.config.max_body_mb} MB")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        more = True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part, more = message.get("body", b""), message.get("more_body", False)
            if len(body) + len(part) > most:
                raise too_large
            if self.bytes + len(part) > self.config.max_buffered_mb * MB:
                raise busy("the server holds as many requests as it may")
            body += part
            self.bytes += len(part)


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse what is not plain JSON in UTF-8.

    Raises
    ------
    Refused
        415.
    """
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].partition(";")[0].strip(' "')
    if kind.strip() != JSON or charset not in ("", "utf-8", "utf8"):
        raise Refused(415, f"send Content-Type: {JSON}, in UTF-8")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused(415, "send the body as it is, without Content-Encoding")


async def until_gone(request: Request) -> None:
    """Return when the client has left; to be called when its body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
