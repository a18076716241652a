"""HTTP/1.1 connections that cannot be held by a client that sends or reads too slowly.

Uvicorn has a timeout between requests only. A client that never finishes its headers, or never
reads its answer, would keep a connection and its memory for as long as it likes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cxr_mlflow.serving.http_refusals import RETRY_SECONDS, error_json

TICK = 0.5
"""Seconds between two looks at a connection."""
HEADERS, READER = "headers", "reader"
SLICE = 16 * 1024
"""Bytes that are parsed at a time."""
FREE_CHUNKS, SMALLEST_CHUNK = 1000, 64
"""A chunked body may have so many chunks of any size; beyond them they are of so many bytes on the
average. Each chunk costs the event loop as much, be it of one byte: some seconds for a megabyte."""


class Connection(h11.Connection):
    """One that counts the chunks of a body; line breaks in its data are none."""

    def __init__(self, most_header_bytes: int) -> None:
        super().__init__(h11.SERVER, most_header_bytes)
        self._chunks = self._bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Parse on."""
        event = super().next_event()
        if isinstance(event, h11.Request | h11.EndOfMessage):
            self._chunks = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
        return event

    @property
    def is_in_crumbs(self) -> bool:
        """Whether the body that comes in is cut smaller than allowed."""
        return self._chunks > FREE_CHUNKS + self._bytes // SMALLEST_CHUNK


class GuardedProtocol(H11Protocol):
    """Uvicorn's connection, and a watch over it.

    Parameters
    ----------
    seconds : float
        Longest time for the headers of a request, from its first byte or from the connection; and
        for a client to read an answer.
    max_connections : int
        More than so many at once are told 503 and closed.
    **arguments
        What uvicorn passes.
    """

    def __init__(self, *, seconds: float, max_connections: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seconds, self.max_connections = seconds, max_connections
        self._watch: asyncio.TimerHandle | None = None
        self._waits_for: tuple[str, object] | None = None
        self._since = 0.0
        self._refused = False
        self.conn = self.counting = Connection(self.config.h11_max_incomplete_event_size or SLICE)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there are not too many."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(_raw_answer(b"503 Service Unavailable", "too many connections"))
            transport.close()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._watch:
            self._watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came in, unless it is a body in crumbs or nobody asks for it any more."""
        for start in range(0, len(data), SLICE):
            part = data[start : start + SLICE]
            if not self._refused and self.counting.is_in_crumbs:
                self.send_400_response("the chunks of the body are too small")
            if self._refused or self.transport.is_closing():
                return
            super().data_received(part)

    def _look(self) -> None:
        now, waits_for = self.loop.time(), self._state()
        if waits_for != self._waits_for:
            self._waits_for, self._since = waits_for, now
        elif waits_for and now - self._since > self.seconds:
            self.transport.abort()
            return
        self._watch = self.loop.call_later(TICK, self._look)

    def _state(self) -> tuple[str, object] | None:
        """What the connection waits for, and in which request; None while the server works."""
        if self._refused or self.transport.is_closing() or self.flow.write_paused:
            return READER, self.cycle
        if self.cycle is None or self.cycle.response_complete:
            return HEADERS, self.cycle
        return None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless an answer is under way already; then hang up.

        Only our half is closed; what the client is still sending is read and thrown away until it
        hangs up too, or its time is over. A socket closed with bytes unread is reset, and the
        client would see that in place of the answer.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # what it was doing has nobody to go to
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_raw_answer(b"400 Bad Request", msg))
        self._refused = True
        self._unset_keepalive_if_required()
        self.transport.write_eof()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Hang up, or finish the request under way first."""
        if self._refused:
            self.transport.close()
        else:
            super().shutdown()


def _raw_answer(status: bytes, message: str) -> bytes:
    content = error_json(message)
    retry = f"Retry-After: {RETRY_SECONDS}\r\n".encode() if status.startswith(b"503") else b""
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%bConnection: "
        b"close\r\n\r\n%b" % (status, len(content), retry, content)
    )
