"""What kind of store a URI names, and file locks that all who work on it agree on."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import filelock

SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
_said: set[Path] = set()


def sqlite_file(uri: str) -> Path | None:
    """File of an sqlite store; None if the store is another one."""
    if not uri.startswith(SQLITE):
        return None
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve()


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Whether a store is a database on a server of its own."""
    return uri.partition(":")[0].partition("+")[0] in DATABASES


def lock_of(uri: str, purpose: str) -> Path:
    """Lock file of a store: beside an sqlite file, else in `$CXR_LOCK_DIR` or a fixed place.

    The same for every spelling of the same store, every user, and every folder it is named from.

    Parameters
    ----------
    uri, purpose : str
        Of the store, and what is done under the lock.
    """
    if file := sqlite_file(uri):
        return file.with_name(f"{file.name}.{purpose}.lock")
    parts = urlsplit(uri)
    place = [parts.scheme.partition("+")[0], parts.hostname, parts.port, parts.path.rstrip("/")]
    name = hashlib.sha256(repr(place).encode()).hexdigest()[:16]
    return _folder() / f"{purpose}-{name}.lock"


@contextmanager
def hold(path: Path, *, seconds: float = -1) -> Iterator[None]:
    """Hold a lock; every user may.

    Where the system forbids it, the block runs without, which is said: what is done under these
    locks notices another one's change, or is tried again.

    Parameters
    ----------
    path : Path
    seconds : float
        Longest wait; for ever by default.

    Raises
    ------
    filelock.Timeout
        If another process has held it for so long.
    """
    lock = filelock.FileLock(path, timeout=seconds, mode=0o666)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise
    except OSError as error:  # another user's, a closed disk
        if path not in _said:
            _said.add(path)
            print(f"! {path}: {error.strerror}; goes on without this lock", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def _folder() -> Path:
    """A folder of all users: not $TMPDIR, which is often another one for each job."""
    told = os.environ.get("CXR_LOCK_DIR")
    base = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    folder = Path(told).expanduser() if told else base / "cxr-mlflow-locks"
    with suppress(OSError):  # said where the lock is taken
        folder.mkdir(parents=True)
        folder.chmod(0o1777)
    return folder
