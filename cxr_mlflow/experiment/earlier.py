"""Open runs of earlier sessions, and of other machines: dead, or to be waited for."""

from __future__ import annotations

import platform
import time

from cxr_mlflow.tracking.parents import Child
from cxr_mlflow.tracking.processes import SILENCE_SECONDS

DIED = "its process ended without a word (killed, or out of memory)"


def why_dead(child: Child) -> str:
    """Why an open run of an earlier session is known to be dead; empty if it is not.

    None runs on this machine: this process holds the lock. Of another machine silence tells.
    """
    if child.host == platform.node():
        return DIED
    if time.time() - child.last_sign > SILENCE_SECONDS:
        return f"no sign of life from {child.host or 'its machine'} since {clock(child.last_sign)}"
    return ""


def whereabouts(child: Child) -> str:
    """Say where an open run is made, and when that is no longer believed."""
    until = clock(child.last_sign + SILENCE_SECONDS)
    return (
        f"run {child.run_id} is being made on {child.host}, says the server; without another sign "
        f"of life it is taken for dead at {until}, and the same command goes on"
    )


def clock(seconds: float) -> str:
    """Time of day here."""
    return time.strftime("%H:%M", time.localtime(seconds))
