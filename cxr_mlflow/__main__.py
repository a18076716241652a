"""`python -m cxr_mlflow` is the `cxr` command; MLproject calls it this way."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import ExitStack

from cxr_mlflow.stopping import stop_raises, unbroken

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
    status = 1  # of an error that is printed with its trace
    try:
        with ExitStack() as stack:
            stack.enter_context(stop_raises())
            if os.environ.get("MLFLOW_RUN_ID"):
                with unbroken():  # until there is something that closes the run
                    from cxr_mlflow.tracking.processes import end_with_parent

                    starter = end_with_parent()
                    from cxr_mlflow.tracking.joined import joined_closed  # loads MLflow

                    stack.enter_context(joined_closed(starter))
            from cxr_mlflow.cli import main

            main(prog_name="cxr")
    except SystemExit as end:  # click ends every command so
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    run()
