"""Stands before the routes: who may enter, an id and a log line for each request."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cxr_mlflow.serving.http_body import JSON
from cxr_mlflow.serving.http_metrics import Metrics
from cxr_mlflow.serving.http_refusals import Refused, busy

ROUTES = ("/invocations", "/ping", "/health", "/version", "/metrics")
WITHOUT_TOKEN = ("/ping", "/health")
HEADERS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
CLIENT_LEFT = 499
"""In log and metrics only, as nginx has it: nobody was there to be answered."""
log = logging.getLogger("cxr_mlflow.serve")


class Guard:
    """An ASGI application around another.

    Parameters
    ----------
    app : ASGI application
        Answers those who may enter.
    metrics : Metrics
        Told of each answer.
    token : str, optional
        What clients must send, as `Authorization: Bearer TOKEN`; without it, everybody may enter.
    open_metrics : bool
        Whether `/metrics` is for everybody.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, *, token: str | None, open_metrics: bool
    ) -> None:
        self.app, self.metrics = app, metrics
        self._expected = None if token is None else token.encode()
        self._open = {*WITHOUT_TOKEN, *(("/metrics",) if open_metrics else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, request_id = time.perf_counter(), uuid.uuid4().hex[:16]
        scope.setdefault("state", {})["request_id"] = request_id
        reply = Reply(scope, receive, send, request_id)
        try:
            if _is_framed_twice(scope):
                message = "the end of the body is told in two ways; send Content-Length alone"
                await reply.refuse(Refused(400, message, headers={"Connection": "close"}))
            elif self._may_enter(scope):
                await self.app(scope, reply.receive, reply.send)
            else:
                message = "send the header Authorization: Bearer TOKEN"
                await reply.refuse(Refused(401, message, headers={"WWW-Authenticate": "Bearer"}))
        except asyncio.CancelledError:  # the server stops, and its time for that is over
            await reply.refuse(busy("the server stops"))
        except Exception:  # the client has been told the id and no more
            log.exception("request %s: unexpected error", request_id)
        seconds = time.perf_counter() - begun
        route = scope["path"] if scope["path"] in ROUTES else "other"
        status = reply.status or CLIENT_LEFT
        self.metrics.count_request(route, status, seconds)
        log.info("request %s: %s %d in %.0f ms", request_id, route, status, 1000 * seconds)

    def _may_enter(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in self._open:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._expected)


def _is_framed_twice(scope: Scope) -> bool:
    """Whether two readers may disagree on where the request ends (RFC 9112, 6.1).

    A proxy before us that goes by the other header would take what we answer as a second request
    for a part of the first, or the other way round.
    """
    names = {name for name, _ in scope["headers"]}
    old = scope["http_version"] == "1.0"  # knows no Transfer-Encoding
    return b"transfer-encoding" in names and (old or b"content-length" in names)


class Reply:
    """One answer on its way out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope, self.receive, self._send = scope, receive, send
        self.request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer, with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [*HEADERS, (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        """Answer with a refusal, if nothing has been answered yet."""
        if not self.status:
            told = Response(refused.content(self.request_id), refused.status, refused.headers, JSON)
            await told(self.scope, self.receive, self.send)
