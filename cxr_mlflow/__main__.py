"""`python -m cxr_mlflow` is the `cxr` command; MLproject calls it this way."""

from __future__ import annotations

import atexit
import os
import sys

status = 0


def leave() -> None:
    """End the process at once: taking torch, ONNX and MLflow apart would take 4 seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run() -> None:
    """Run `cxr`; what others registered for the exit still runs."""
    global status
    atexit.register(leave)  # the first to be registered is the last to be called
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # would tear our tables
    from cxr_mlflow.cli import main

    status = 1  # of an error that is printed with its trace
    try:
        main(prog_name="cxr")
    except SystemExit as end:  # click ends every command so
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    run()
