"""A run that is told to a journal first: the tracking server may be slow, ill, or gone."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.tracking.context import registry as context_registry

from cxr_mlflow.environment import unless_set
from cxr_mlflow.errors import InputError
from cxr_mlflow.stopping import Stopped, Terminated, stop_raises, unbroken
from cxr_mlflow.tracking.delivery import REQUEST, Delivery
from cxr_mlflow.tracking.journal import Journal, Record
from cxr_mlflow.tracking.processes import own_process
from cxr_mlflow.tracking.remote import JOURNAL, Handler
from cxr_mlflow.tracking.run import joined_run
from cxr_mlflow.tracking.system_metrics import PREFIX, SystemMetrics
from cxr_mlflow.tracking.tracker import Log, describe_dataset

FIRST_CONTACT_SECONDS = 10.0
"""Longest wait for MLflow before the training begins without it."""
LAST_SECONDS = 60.0
"""Longest time without any progress after which a finished training no longer waits for MLflow."""
LAST_SECONDS_KILLED = 20.0
"""Longest time in all where it was asked to stop: less than the grace most schedulers give."""
LAST_SECONDS_KILLED_IN_TROUBLE = 5.0
"""Longest time without any progress then, while MLflow answers with errors, or not."""
LAST_WORD_SECONDS = 5.0
"""Longest time in which the status of a run is set where its journal cannot tell it."""


class JournaledLog(Log):
    """Logs to a journal. What was told before, by an interrupted attempt, is told once.

    Of a number, a picture and a parameter the first telling stands, of tags and files the last.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._lock = threading.Lock()
        self._metrics: set[tuple[str, int]] = set()
        self._once: set[str] = set()
        self._latest: dict[str, str] = {}
        for record in journal:
            told = record.told
            if record.verb == "metrics":
                self._metrics |= {(name, told["step"]) for name in told["metrics"]}
            elif record.verb == "file":
                self._latest[f"file {told['file']}"] = told["digest"]
            elif record.verb == "tags":
                self._latest |= {f"tag {name}": value for name, value in told["tags"].items()}
            elif "once" in told:
                self._once.add(told["once"])

    @property
    def run_id(self) -> str:
        """Id of the run; 'not known yet' until MLflow has answered for the first time."""
        return self.journal.remote.get("run_id", "not known yet")

    @property
    def experiment_id(self) -> str:
        """Id of its experiment, empty until MLflow has answered."""
        return self.journal.remote.get("experiment_id", "")

    def artifact_uri(self) -> str:
        """Where the run's files are, or are kept until MLflow answers."""
        return self.journal.remote.get("artifact_uri") or str(self.journal.path("artifacts"))

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log what the run was made with."""
        self.once("params", "params", {"params": dict(params)})

    @unbroken()
    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Log finite numbers that were not told for this step before."""
        at = step or 0
        with self._lock:
            told = {
                name: float(value)
                for name, value in metrics.items()
                if np.isfinite(value) and (name, at) not in self._metrics
            }
            if told:
                self.journal.append("metrics", {"metrics": told, "step": at})
                self._metrics |= {(name, at) for name in told}

    def last_step(self, prefix: str) -> int:
        """Last step of the metrics whose names begin so; -1 if there is none."""
        with self._lock:
            return max((at for name, at in self._metrics if name.startswith(prefix)), default=-1)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; old values are replaced."""
        new = {k: v for k, v in tags.items() if self._latest.get(f"tag {k}") != v}
        if new:
            self.journal.append("tags", {"tags": new})
            self._latest |= {f"tag {name}": value for name, value in new.items()}

    def log_bytes(self, content: bytes, path: str) -> None:
        """Log a file of the given content."""
        self._log(path, content, hashlib.sha256(content).hexdigest())

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as it is."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._log(f"{folder}/{path.name}" if folder else path.name, path, digest)

    def _log(self, path: str, content: bytes | Path, digest: str) -> None:
        name = f"artifacts/{path}"
        if self._latest.get(f"file {name}") != digest:
            self.journal.keep(name, content)
            folder = str(Path(path).parent)
            self.journal.append("file", {"file": name, "folder": folder, "digest": digest})
            self._latest[f"file {name}"] = digest

    def log_image(self, png: bytes, key: str, step: int) -> None:
        """Log a picture under a key, unless there is one of this key and step."""
        name = f"images/{key}+{step}.png"
        self.once("image", name, {"file": name, "key": key, "step": step}, files={name: png})

    def log_dataset(self, table: pd.DataFrame, *, name: str, digest: str, context: str) -> None:
        """Log a table of images as an MLflow dataset input of the run."""
        dataset = describe_dataset(table, name=name, digest=digest)
        self.once("dataset", f"dataset {context}", {"dataset": dataset, "context": context})

    def once(
        self,
        verb: str,
        name: str,
        told: Mapping[str, object],
        *,
        files: Mapping[str, bytes | Path] | None = None,
    ) -> None:
        """Add a record, and keep its files, unless an earlier attempt added one of that name.

        Parameters
        ----------
        verb : str
            Kind of record; names its handler.
        name : str
            By which a record is found again.
        told : mapping
            The record itself; JSON.
        files : mapping of str to bytes or Path, optional
            Path within the journal -> content, or the file or folder to copy.
        """
        if name not in self._once:
            for file, content in (files or {}).items():
                self.journal.keep(file, content)
            self.journal.append(verb, {**told, "once": name})
            self._once.add(name)


class JournaledRun(JournaledLog):
    """An open run: its journal, and the thread that sends it."""

    def __init__(self, journal: Journal, handlers: Mapping[str, Handler]) -> None:
        super().__init__(journal)
        self.delivery = Delivery(journal, handlers)

    @property
    def is_delivered(self) -> bool:
        """Whether all that was told has arrived."""
        return self.journal.all_sent


@contextmanager
def open_journaled(
    journal: Journal,
    journal_id: str,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    *,
    handlers: Mapping[str, Handler],
) -> Iterator[JournaledRun]:
    """Open a run, or go on with the journal's, or join the one that `mlflow run` opened.

    It ends as FINISHED, as FAILED with the tag `failure` if an error leaves the block, or as
    KILLED at Ctrl-C, SIGTERM, SIGHUP and `Stopped`; signals that follow do not break that off.
    Waits at most `FIRST_CONTACT_SECONDS` for MLflow.

    Parameters
    ----------
    journal, journal_id
        Of an `Unfinished`.
    experiment, name : str
        Of a new run.
    tags, params : mapping
    handlers : mapping of verb to callable
        See `Delivery`.

    Raises
    ------
    InputError
        If MLflow answers and refuses the run as it is told.
    """
    told = {**tags, JOURNAL: journal_id, "mlflow.runName": name, **own_process()}
    opened = {
        "experiment": experiment,
        "tags": context_registry.resolve_tags(told),
        "joined": joined_run(),
    }
    run = JournaledRun(journal, handlers)
    with stop_raises(), unless_set(REQUEST):
        try:
            journal.append("open", opened)
            run.log_params(params)
            run.delivery.start()
            if error := run.delivery.wait_for_opening(seconds=FIRST_CONTACT_SECONDS):
                raise (
                    error
                    if isinstance(error, InputError)
                    else InputError(
                        f"MLFLOW_TRACKING_URI={mlflow.get_tracking_uri()} refuses the run: {error}"
                    )
                ) from error
            with SystemMetrics(run, first_step=run.last_step(PREFIX) + 1):
                yield run
        except (KeyboardInterrupt, Terminated, Stopped) as error:
            why = str(error) if isinstance(error, Stopped) else type(error).__name__
            _close(run, "KILLED", why)
            raise
        except BaseException as error:
            _close(run, "FAILED", f"{type(error).__name__}: {error}")
            raise
        else:
            if failed := _close(run, "FINISHED", ""):
                raise failed


def _close(run: JournaledRun, status: str, failure: str) -> Exception | None:
    """Tell how a run ended, wait a while until MLflow knows, send no more.

    Returns
    -------
    Exception or None
        Why the disk took no more; MLflow was then told that the run failed, of this.
    """
    full: Exception | None = None
    try:
        run.journal.append("end", {"status": status, "failure": failure})
    except (InputError, OSError) as error:
        full = error
    try:
        _wait(run, hurried=status == "KILLED")
    except (KeyboardInterrupt, Terminated):  # the first signal: all is told, some still under way
        _wait(run, hurried=True)
        raise
    finally:
        run.delivery.stop()
        if run.delivery.cannot_note:
            full = run.delivery.error
        if full and status == "FINISHED":
            status, failure = "FAILED", str(full)
        long_under_way = not run.is_delivered and not run.delivery.error
        if status != "FINISHED" and (full or long_under_way):
            _say_end(run, status, failure)
    return full


def _wait(run: JournaledRun, *, hurried: bool) -> None:
    if not run.delivery.started:
        return
    if hurried:
        run.delivery.wait(
            seconds=LAST_SECONDS_KILLED,
            in_trouble=LAST_SECONDS_KILLED_IN_TROUBLE,
            at_most=LAST_SECONDS_KILLED,
        )
    else:
        run.delivery.wait(seconds=LAST_SECONDS)


def _say_end(run: JournaledRun, status: str, failure: str) -> None:
    """Set the status of a run past its journal, which is full, or long in coming to its end."""
    if "run_id" not in run.journal.remote:
        return
    told = {"status": status, "failure": failure}
    record = Record(len(run.journal), "end", int(time.time() * 1000), told)

    def say() -> None:
        with suppress(Exception):  # nobody is left who could do more
            run.delivery.remote.take(record)

    thread = threading.Thread(target=say, daemon=True, name="last-word")
    thread.start()
    thread.join(LAST_WORD_SECONDS)
