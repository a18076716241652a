"""Reads the body of a request, no more and no longer than allowed, whatever its headers say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

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

    async def read(self, request: Request) -> Body:
        """Read a body; it counts as held until it is let go.

        Raises
        ------
        Refused
            413 if it is too large, 408 if it comes too slowly, 503 if too much is held already.
        ClientGone
        """
        body = Body(self)
        try:
            async with asyncio.timeout(self.config.body_timeout):
                await self._fill(body, request)
        except BaseException as error:  # also where the server is stopped in between
            body.let_go()
            if not isinstance(error, TimeoutError):
                raise
            message = f"the body did not come within {self.config.body_timeout:g} seconds"
            raise Refused(408, message, headers={"Connection": "close"}) from None
        return body

    async def _fill(self, body: Body, request: Request) -> None:
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
            if body.size + len(part) > most:
                raise too_large
            if self.bytes + len(part) > self.config.max_buffered_mb * MB:
                raise busy("the server holds as many requests as it may")
            body.add(part)


class Body:
    """A body that is held: a box, so that whoever still knows of it keeps none of its memory."""

    def __init__(self, held: HeldBodies) -> None:
        self._held, self._content = held, bytearray()
        self.size = 0
        """Bytes that count as held."""

    def add(self, part: bytes) -> None:
        """Append what came in."""
        self._content += part
        self.size += len(part)
        self._held.bytes += len(part)

    def take(self) -> bytearray:
        """Empty the box, once; it counts as held on, for what is made of it takes no less."""
        content, self._content = self._content, bytearray()
        return content

    def let_go(self) -> None:
        """Say that nobody needs it any more; may be said twice."""
        self.take().clear()
        self._held.bytes -= self.size
        self.size = 0


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
