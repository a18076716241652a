"""Runs `cxr` and kills it with SIGKILL at a given moment: `die.py MOMENT ARGS...`.

A moment is `module:attribute:when:count[:text]`: the process dies `before` or `after` the call of
that number whose arguments, as text, hold `text`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import reduce
from typing import Any


def die_at(moment: str) -> None:
    """Make the process die at a moment."""
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
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    die_at(sys.argv[1])
    from cxr_mlflow.cli import main

    main(sys.argv[2:])
