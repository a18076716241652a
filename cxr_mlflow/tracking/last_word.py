"""Sets the status of a run again behind `mlflow run`: `last_word RUN STATUS END_TIME PID BIRTH`.

At Ctrl-C `mlflow run` waits for its command, and then writes FAILED over whatever the command told
of its run: it means to leave a run that is over alone, but MLflow 3.17 compares a name with numbers
there. So a process of our own outlives it, for some seconds.
"""

from __future__ import annotations

import sys
import time

import mlflow

from cxr_mlflow.tracking.processes import birth_of
from cxr_mlflow.tracking.run import set_tracking_uri

POLL_SECONDS = 0.1
LONGEST_SECONDS = 300.0


def main(run_id: str, status: str, end_time: int, starter: int, birth: float) -> None:
    """Wait until `mlflow run` is gone, then take back the FAILED that it wrote.

    Parameters
    ----------
    run_id : str
    status : str
        What the run is to end as.
    end_time : int
        Milliseconds since 1970.
    starter : int
        Process id of `mlflow run`.
    birth : float
        When it was started, see `processes.birth_of`: an id may be used again.
    """
    deadline = time.monotonic() + LONGEST_SECONDS
    while birth_of(starter) == birth and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    set_tracking_uri()
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status == "FAILED":  # not if it was typed again, and goes on
        client.set_terminated(run_id, status, end_time)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
