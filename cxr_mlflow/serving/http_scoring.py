"""Scores the images of requests on a few threads: so many at once, so many waiting, so long each.

ONNX Runtime and Pillow compute without Python's lock, so threads are enough to use all cores while
the event loop answers others.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from cxr_mlflow.command_config import ServeConfig
from cxr_mlflow.data.preprocess import needs_mask
from cxr_mlflow.errors import InputError
from cxr_mlflow.serving.frames import tabulate
from cxr_mlflow.serving.http_payload import Films, Payload, parse
from cxr_mlflow.serving.http_refusals import ClientGone, Refused, busy
from cxr_mlflow.serving.scorer import Probabilities, Scorer

AT_ONCE = 8
"""Images that are in the network at a time."""
_FAULT = re.compile(r"(mask of )?row (\d+): (.*)", re.DOTALL)
Result = TypeVar("Result")


class Deadline:
    """When a piece of work is to be given up; looked at between images."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds
        self.begun = self.cancelled = False

    def check(self) -> None:
        """Raise `Refused` if the time is over or nobody waits."""
        if self.cancelled or time.monotonic() > self.ends:
            raise Refused(504, "it took too long; send fewer or smaller images")


class Workers:
    """Threads that score, and a queue before them that is never longer than allowed.

    Requests wait in the event loop, not in the threads' own queue, which would keep the body of a
    request that was given up until a thread comes to it. All but the work is done by the loop.

    Parameters
    ----------
    count : int
        Threads.
    max_waiting : int
        Requests that may wait for one.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self.count, self.max_waiting = count, max_waiting
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="scoring")
        self._free = asyncio.Semaphore(count)
        self._inside: dict[asyncio.Task[Any], Deadline] = {}
        self._tasks: set[Future[Any]] = set()

    @property
    def inside(self) -> int:
        """Requests that are scored or wait; one that was given up counts until its thread ends."""
        return len(self._inside)

    @property
    def is_full(self) -> bool:
        """Whether the next request would be refused."""
        return self.inside >= self.count + self.max_waiting

    @property
    def working(self) -> bool:
        """Whether a thread still works, be it for nobody."""
        return bool(self._tasks)

    async def run(
        self,
        work: Callable[[Deadline], Result],
        seconds: float,
        gone: asyncio.Future[Any],
        at_end: Callable[[], None],
    ) -> Result:
        """Have a thread do something.

        Parameters
        ----------
        work : callable
            Takes a deadline that it looks at now and then.
        seconds : float
            Longest time, waiting included.
        gone : future
            Done when the client has left.
        at_end : callable
            Called by the event loop once no thread does the work or will do it, whatever happens.

        Raises
        ------
        Refused
            503 if too many wait already, 504 if it takes too long.
        ClientGone
        """
        if self.is_full:
            at_end()
            raise busy(f"{self.max_waiting} requests are waiting already")
        deadline = Deadline(seconds)
        turn = asyncio.ensure_future(self._take_turn(work, deadline))
        self._inside[turn] = deadline
        turn.add_done_callback(self._leave)
        turn.add_done_callback(lambda _: at_end())
        try:
            await asyncio.wait({turn, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if turn.done():
                return turn.result()
        finally:  # also where the server is stopped in between
            deadline.cancelled = True
            if not deadline.begun:
                turn.cancel()
        if gone.done():
            raise ClientGone
        raise Refused(504, f"no answer within {seconds:g} seconds; send fewer or smaller images")

    async def _take_turn(self, work: Callable[[Deadline], Result], deadline: Deadline) -> Result:
        async with self._free:
            deadline.begun = True
            task = self._pool.submit(work, deadline)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return await asyncio.wrap_future(task)

    def _leave(self, turn: asyncio.Task[Any]) -> None:
        del self._inside[turn]
        if not turn.cancelled():
            turn.exception()  # where it was given up, nobody else asks for it

    def stop(self) -> None:
        """Give up what still runs, at its next look at the clock, and what waits."""
        for turn, deadline in self._inside.items():
            deadline.cancelled = True
            if not deadline.begun:
                turn.cancel()
        self._pool.shutdown(wait=False)


@dataclass(frozen=True)
class Answer:
    """What a request is answered, and what the server counts."""

    content: bytes
    labels: list[str]
    abstained: int


def answer(
    scorer: Scorer, take: Callable[[], bytearray], limits: ServeConfig, deadline: Deadline
) -> Answer:
    """Take a request's body, score its images, and reply as MLflow's scoring server does.

    Parameters
    ----------
    scorer : Scorer
    take : callable
        Gives the body, once.
    limits : ServeConfig
        What a request may hold.
    deadline : Deadline

    Raises
    ------
    Refused
        If the images cannot be scored: 4xx, naming row and field; or 504.
    """
    deadline.check()
    payload = parse(take(), limits, with_masks=needs_mask(scorer.config.mask_mode))
    try:
        table = tabulate(score(scorer, payload, deadline), scorer.config)
    except InputError as error:
        raise _as_refusal(str(error), scorer, payload) from error
    content = json.dumps({"predictions": table.to_dict(orient="records")})
    abstained = int(table["abstain"].sum()) if "abstain" in table else 0
    return Answer(content.encode(), table["label"].tolist(), abstained)


def score(scorer: Scorer, payload: Payload, deadline: Deadline) -> Probabilities:
    """Probabilities float32 (N, C) of a request's images; the clock is looked at in between."""
    if isinstance(payload, Films):
        count = len(payload.images)
    else:
        payload = payload[None] if payload.ndim == 2 else payload
        count = len(payload)
    found = [np.empty((0, len(scorer.config.classes)), np.float32)]
    for start in range(0, max(count, 1), AT_ONCE):
        deadline.check()
        part = slice(start, start + AT_ONCE)
        names = [f"row {row}" for row in range(count)[part]]
        if isinstance(payload, Films):
            masks = None if payload.masks is None else payload.masks[part]
            images, check = payload.images[part], deadline.check
            found.append(scorer.score_bytes(images, masks, names=names, before_each=check))
        elif payload.ndim == 4:
            found.append(scorer.score_arrays(payload[part, 0], payload[part, 1], names=names))
        else:
            found.append(scorer.score_arrays(payload[part], names=names))
    return np.concatenate(found)


def _as_refusal(message: str, scorer: Scorer, payload: Payload) -> Refused:
    """Tell which row and field a message of the scorer is about."""
    if not (fault := _FAULT.fullmatch(message)):
        return Refused(400, message)
    of_mask, row, reason = fault.groups()
    if not isinstance(payload, Films):
        return Refused(400, f"row {row}: {reason}", row=int(row))
    no_mask = payload.masks is None or payload.masks[int(row)] is None
    field = "mask" if of_mask or (needs_mask(scorer.config.mask_mode) and no_mask) else "image"
    return Refused(400, f"row {row}: `{field}`: {reason}", row=int(row), field=field)
