"""Runs `cxr` and sends it signals at a given moment: `die.py SIGNALS MOMENT ARGS...`.

A moment is `module:attribute:when:count[:text]`: the signals come `before` or `after` the call of
that number whose arguments, as text, hold `text`. Signals are names with commas between, `SIGKILL`
or `SIGINT,SIGTERM`, a quarter of a second apart; `group SIGINT` goes to the whole process group, as
a terminal's Ctrl-C does.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from functools import reduce
from typing import Any

APART = 0.25
"""Seconds between two signals: so long after Ctrl-C `mlflow run` sends SIGTERM behind it."""


def send(told: str) -> None:
    """Send signals to this process, or its group; the first is there on return."""
    *group, names = told.split()
    numbers = [signal.Signals[name] for name in names.split(",")]

    def one(number: int) -> None:
        os.killpg(0, number) if group else os.kill(os.getpid(), number)

    def rest() -> None:
        for number in numbers[1:]:
            time.sleep(APART)
            one(number)

    threading.Thread(target=rest, daemon=True).start()
    one(numbers[0])


def die_at(moment: str, signals: str) -> None:
    """Make the process get signals at a moment."""
    module, path, when, count, *text = moment.split(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    owner = reduce(getattr, outer, owner)
    original = getattr(owner, name)
    seen = 0

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        told = f"{args} {kwargs}"
        seen += all(part in told for part in text)
        due = seen == int(count) and all(part in told for part in text)
        if due and when == "before":
            send(signals)
        result = original(*args, **kwargs)
        if due and when == "after":
            send(signals)
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's is deaf to it
    die_at(sys.argv[2], sys.argv[1])
    from cxr_mlflow.__main__ import run

    del sys.argv[1:3]
    run()
