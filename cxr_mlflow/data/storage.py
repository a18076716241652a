"""Files and folders that are whole or absent, and work spread over threads in order."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from rich.console import Console
from rich.progress import track

from cxr_mlflow.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

ANOTHER_CACHE = "name another folder with --cache-dir"
TORN = ".part"
"""How the name of a file or folder ends that is not whole yet."""
NUM_THREADS = os.cpu_count() or 1
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def explained(folder: Path, advice: str) -> Iterator[None]:
    """Turn a full disk or a forbidden folder into an `InputError` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise InputError(
                f"{folder}: no space left on the disk; free some, or {advice}"
            ) from error
        if error.errno in _NO_ACCESS:
            raise InputError(f"{folder}: cannot be written ({error.strerror}); {advice}") from error
        raise


def make_folder(folder: Path) -> Path:
    """Make a folder and those above it; on return their names are on the disk, not only in memory.

    Returns
    -------
    Path
        `folder`.
    """
    missing = [place for place in (folder, *folder.parents) if not place.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        sync(place.parent)
    return folder


@contextmanager
def write_whole(path: Path, advice: str = ANOTHER_CACHE) -> Iterator[Path]:
    """Write a file so that readers see all of it or the old one, also after a crash.

    Parameters
    ----------
    path : Path
        Its folder is made where it is missing.
    advice : str
        What to do if the disk is full or the folder closed, for the message.

    Yields
    ------
    Path
        A temporary file beside `path`, which takes its place when the block ends without error.
    """
    with explained(path.parent, advice):
        make_folder(path.parent)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=TORN, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            temporary.chmod(0o644)  # mkstemp keeps others out
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def copy_whole(source: Path, target: Path, advice: str = ANOTHER_CACHE) -> None:
    """Copy a folder so that a torn copy never has its name; one that is there is replaced.

    Parameters
    ----------
    source, target : Path
    advice : str
        As `write_whole` takes it.
    """
    with explained(target.parent, advice):
        make_folder(target.parent)
        temporary = Path(
            tempfile.mkdtemp(prefix=f".{target.name}-", suffix=TORN, dir=target.parent)
        )
        try:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            sync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_torn(folder: Path) -> None:
    """Remove what killed processes left half written, in a folder that is this process's alone."""
    for path in sorted(folder.rglob(f".*{TORN}"), reverse=True):  # what is inside comes first
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def build_folder(folder: Path, build: Callable[[Path], object]) -> Path:
    """Make a folder once, whichever process comes first; a torn one is never seen.

    Parameters
    ----------
    folder : Path
        Returned at once where it exists.
    build : callable
        Fills the path it is given, which does not exist yet. Runs in one process at a time; what
        it leaves is synced to the disk and renamed to `folder`. What killed processes left behind
        is removed first.

    Returns
    -------
    Path
        `folder`.
    """
    if folder.is_dir():
        return folder
    with explained(folder.parent, ANOTHER_CACHE):
        make_folder(folder.parent)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if folder.is_dir():
                return folder
            for torn in folder.parent.glob(f".{folder.name}-building*"):
                shutil.rmtree(torn)
            temporary = folder.parent / f".{folder.name}-building"
            try:
                build(temporary)
                sync(temporary)
                os.rename(temporary, folder)
                sync(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk; folders only where the OS can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 64
) -> Iterator[Result]:
    """Yield `work(item)` in the order of `items`, with a bounded number under way.

    Decoding and hashing release the interpreter lock, so threads use all cores. Memory is that of
    `ahead` results, however long `items` is.

    Parameters
    ----------
    work : callable
        Called in other threads, several at a time.
    items : iterable
    ahead : int
        Most results under way.
    """
    pool = ThreadPoolExecutor(NUM_THREADS)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def with_bar(results: Iterable[Result], what: str, total: int, *, show: bool) -> Iterator[Result]:
    """Pass results on, with a progress bar if `show` and the error stream is a terminal."""
    console = Console(stderr=True)
    hidden = not (show and console.is_terminal)  # rich would leave an empty line in a log
    yield from track(results, what, total, console=console, disable=hidden, transient=True)
