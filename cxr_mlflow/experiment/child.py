"""One cell in a process of its own: `python -m cxr_mlflow.experiment.child CELL.json`.

Its standard input is a pipe that the runner holds open. When the runner is gone, however it went,
the pipe ends and so does this process: no training goes on that nobody waits for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import filelock

from cxr_mlflow.config import RunConfig
from cxr_mlflow.errors import InputError

LOCK_SECONDS = 300.0
"""Longest wait for an earlier process of the same cell to end."""
GRACE_SECONDS = 60.0
"""How long a process may take to close its run before it is ended at once."""


def main(path: Path) -> int:
    """Train the cell that a file describes; return the exit status."""
    threading.Thread(target=_end_with_runner, daemon=True).start()
    told = json.loads(path.read_text(encoding="utf-8"))
    try:
        with filelock.FileLock(path.with_suffix(".lock"), timeout=LOCK_SECONDS):
            from cxr_mlflow.pipeline import run_experiment  # loads torch and mlflow

            config = RunConfig.from_options(told["options"])
            for line in run_experiment(config, tags=told["tags"]).lines:
                print(line)
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def _end_with_runner() -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held at the interpreter's end, aborts it
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
