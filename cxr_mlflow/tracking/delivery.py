"""Sends a journal to MLflow, in order, beside the training; the training never waits for it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Mapping

from cxr_mlflow.errors import InputError
from cxr_mlflow.tracking.answers import in_short, is_refusal, may_pass
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.processes import beating
from cxr_mlflow.tracking.remote import Handler, Remote

REQUEST = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Variables for as long as records are delivered. MLflow would try a dead server for minutes by
itself; here the whole record is tried again. What it prints would tear the progress bar."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
OPENING = ("open", "params")
"""Words of a run that must be taken for it to be the run that was asked for."""
DISK_SECONDS = 2.0
"""Longest wait for this machine's own disk."""
TRIES = 3
"""How often a record is sent that fails of something that may or may not pass."""


class Delivery:
    """A thread that sends what is in a journal, and tries again for as long as it must.

    Parameters
    ----------
    journal : Journal
    handlers : mapping of verb to callable
        For records that this room knows nothing of.
    """

    def __init__(self, journal: Journal, handlers: Mapping[str, Handler]) -> None:
        self.journal, self.remote = journal, Remote(journal, handlers)
        self.refusals: dict[int, Exception] = {}
        """Records that MLflow did not take, by number: another try would not change that. They are
        skipped and kept; `cxr sync` and the next attempt send them again."""
        self.error: Exception | None = None
        """Why nothing arrives now; None while it does."""
        self._looked, self._failed = False, 0
        self._moved = time.monotonic()
        self._stop, self._try_now = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="delivery")

    @property
    def trouble(self) -> str:
        """Why nothing arrives now; empty while it does."""
        return in_short(self.error) if self.error else ""

    @property
    def cannot_note(self) -> bool:
        """Whether nothing arrives because this machine's disk is full or closed."""
        return isinstance(getattr(self.error, "__cause__", None), OSError)

    @property
    def refusal(self) -> Exception | None:
        """First answer that another try would not change; None if there is none."""
        return next(iter(self.refusals.values()), None)

    @property
    def started(self) -> bool:
        """Whether it began to send."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more; what is under way may still arrive."""
        self._stop.set()
        self._try_now.set()
        self.journal.wake()

    def wait(
        self, *, seconds: float, in_trouble: float | None = None, at_most: float = math.inf
    ) -> bool:
        """Wait until all was sent, or nothing has moved for so many seconds.

        Parameters
        ----------
        seconds : float
            Longest time in which nothing moves.
        in_trouble : float, optional
            The same while the last answer was an error, or none came; `seconds` by default.
        at_most : float
            Longest time in all.

        Returns
        -------
        bool
            Whether all has arrived.
        """
        begin = self._moved = time.monotonic()
        self._try_now.set()
        while self.journal.sent < len(self.journal) and self._thread.is_alive():
            patience = in_trouble if self.error and in_trouble is not None else seconds
            patience = min(patience, DISK_SECONDS) if self.cannot_note else patience
            now = time.monotonic()
            if now - self._moved > patience or now - begin > at_most:
                break
            time.sleep(0.02)
        return self.journal.all_sent

    def wait_for_opening(self, *, seconds: float) -> Exception | None:
        """Wait until MLflow has taken, or refused, what the run is; at most so many seconds.

        What an earlier attempt told, and MLflow has not heard yet, is told first: it may take
        longer, and is not waited for.

        Returns
        -------
        Exception or None
            What MLflow said if it refused.
        """
        opening = self._opening()
        deadline = time.monotonic() + seconds
        while self.journal.sent <= opening[-1] and self._thread.is_alive():
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return next((self.refusals[n] for n in opening if n in self.refusals), None)

    def deliver(self) -> None:
        """Send all there is now, in this thread.

        Raises
        ------
        Exception
            What MLflow said to the first record that did not arrive. What it refuses is skipped,
            and told in the end.
        """
        while record := self._next(seconds=0):
            try:
                self._send(record)
            except Exception as error:
                if not self._skip(error) if self._is_final(error) else may_pass(error):
                    raise
        if self.refusal:
            raise self.refusal

    def _run(self) -> None:
        pause = FIRST_PAUSE
        with beating(self.remote.beat):
            while not self._stop.is_set():
                try:
                    if record := self._next(seconds=1.0):
                        self._send(record)
                    pause, self.error = FIRST_PAUSE, None
                except Exception as error:
                    if self._is_final(error):
                        if not self._skip(error):
                            return
                        continue
                    self.error = error
                    self._try_now.wait(pause)
                    self._try_now.clear()
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _next(self, *, seconds: float) -> Record | None:
        if not self._looked:
            self.remote.look()
            self._looked = True
        return self.journal.after(self.journal.sent, seconds=seconds)

    def _send(self, record: Record) -> None:
        self.remote.take(record)
        self.journal.sent = record.number + 1
        self._moved, self._failed = time.monotonic(), 0

    def _is_final(self, error: Exception) -> bool:
        """Whether another try would not help; of what is in doubt, a few tries decide."""
        self._failed += 1
        return is_refusal(error) or (not may_pass(error) and self._failed >= TRIES)

    def _skip(self, error: Exception) -> bool:
        """Keep the record that was refused, and go on behind it; False if nothing can be told."""
        self._failed, self.error = 0, None
        if not self._looked:  # MLflow does not let us in at all
            self.refusals[self._opening()[-1]] = error
            return False
        number = self.journal.sent
        self.refusals[number] = error
        if "run_id" not in self.journal.remote:
            return False
        with contextlib.suppress(InputError):  # the disk is full: all stays as it is
            verb = list(self.journal)[number].verb
            self.journal.skip(number, f"{verb}: {in_short(error)}")
            self._moved = time.monotonic()
            return True
        return False

    def _opening(self) -> list[int]:
        """Numbers of the records that say which run it is."""
        return [record.number for record in self.journal if record.verb in OPENING]
