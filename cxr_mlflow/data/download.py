"""Fetches the COVID-19 Radiography Database from Kaggle, if asked to; kagglehub is optional.

kagglehub 1.0 sets no time limit on its first requests: behind a firewall that swallows packets it
waits for minutes, and for ever on a server that takes the connection and keeps silent. It therefore
runs in a process of its own, which is ended when nothing arrives for `SILENCE` seconds.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cxr_mlflow.data.layout import find_root
from cxr_mlflow.data.storage import NO_SPACE, explained
from cxr_mlflow.errors import InputError

HANDLE = "tawsifurrahman/covid19-radiography-database"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
FOLDER = "COVID-19_Radiography_Dataset"
STAGING = ".kagglehub"
SILENCE = 60.0
"""Seconds without a new byte on the disk after which a download is given up."""
BY_HAND = f"Or download the zip from {PAGE} and pass it as it is: --data-dir archive.zip"


def download(dest: Path, *, silence: float = SILENCE) -> Path:
    """Download the data set into a folder, about 0.8 GB; a broken download is taken up again.

    Parameters
    ----------
    dest : Path
        The data set becomes `dest/COVID-19_Radiography_Dataset`, which is there only when whole.
    silence : float
        Seconds without a new byte after which the download is given up.

    Returns
    -------
    Path
        Root of the data set. On Kaggle and Colab, where the data are attached, it may lie
        elsewhere.

    Raises
    ------
    InputError
        If kagglehub is not installed, Kaggle cannot be reached or refuses, or there is no space.
    """
    target = dest / FOLDER
    if target.is_dir():
        return find_root(target)
    if importlib.util.find_spec("kagglehub") is None:
        raise InputError(
            "the download needs kagglehub, which is optional: pip install kagglehub (that is what "
            f"pip install 'cxr-mlflow[download]' adds). {BY_HAND}"
        )
    staging = dest / STAGING
    with explained(dest, "name another folder to download to"):
        staging.mkdir(parents=True, exist_ok=True)
        found = _fetch([sys.executable, "-m", __name__, str(staging)], staging, silence)
        root = find_root(found)
        if not root.resolve().is_relative_to(staging.resolve()):
            return root
        os.rename(root, target)
        shutil.rmtree(staging)
    return target


def _fetch(command: Sequence[str], staging: Path, silence: float) -> Path:
    """Run the fetching process until it ends or falls silent; return the folder it tells of."""
    told, failed = staging / "path", staging / "error"
    told.unlink(missing_ok=True)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        held, since = _bytes_in(staging), time.monotonic()
        while True:
            try:
                status = process.wait(timeout=min(2.0, silence / 4))
                break
            except subprocess.TimeoutExpired:
                if (now_held := _bytes_in(staging)) != held:
                    held, since = now_held, time.monotonic()
                elif time.monotonic() - since > silence:
                    raise InputError(
                        f"nothing came from kaggle.com for {silence:.0f} seconds; run it again to "
                        f"go on from there. {BY_HAND}"
                    ) from None
    finally:
        process.kill()
        process.wait()
    if status == errno.ENOSPC:
        raise OSError(status, os.strerror(status))  # told in words by `download`
    if status != 0 or not told.is_file():
        reason = f"status {status}"
        if failed.is_file():
            reason = failed.read_text(encoding="utf-8")
            failed.unlink()
        with contextlib.suppress(OSError):
            staging.rmdir()  # unless part of the data is in it
        raise InputError(f"Kaggle's data could not be fetched ({reason}). {BY_HAND}")
    return Path(told.read_text(encoding="utf-8"))


def _bytes_in(folder: Path) -> int:
    """Count the bytes below a folder, while somebody else writes and renames in it."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _fetch_with_kagglehub(staging: Path) -> int:
    """Run in the fetching process: leave the folder's name in `path`, or the reason in `error`.

    A disk without space for a reason is told by the status, `errno.ENOSPC`.
    """
    os.environ["KAGGLEHUB_CACHE"] = str(staging.resolve())
    import kagglehub

    try:
        folder = kagglehub.dataset_download(HANDLE)
    except Exception as error:  # a dozen kinds, by requests and by kagglehub
        if getattr(error, "errno", None) in NO_SPACE:
            return errno.ENOSPC
        kind, reason = type(error).__name__, " ".join(str(error).split())[:300]
        if kind in ("ConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError"):
            reason = f"kaggle.com cannot be reached: {kind}"
        (staging / "error").write_text(reason, encoding="utf-8")
        return 1
    (staging / "path").write_text(folder, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(_fetch_with_kagglehub(Path(sys.argv[1])))
