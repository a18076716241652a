"""The clean process of the gate: loads a model by URI, predicts, and writes down what happened.

Run as a script by `gate`, with its process id; it must not import this project, whose code a model
carries itself.
"""

import base64
import errno
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

WATCHED = ("torch", "torchvision", "cv2", "albumentations", "cxr_mlflow")
POLL_SECONDS = 0.5
MACHINE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "ENOMEM", "EMFILE", "ENFILE", "EIO", "EAGAIN")
}
"""Errors of a disk or of memory that is full: another try may go well."""


def main(request_path: Path, answer_path: Path) -> None:
    """Answer a request: {"model_uri", "images", "masks", "batches"} as JSON, images in base64.

    The answer is what was measured, or {"failed", "own"}: an error in words, and whether it is the
    model's own, that is, came when all of it was there.
    """
    request = json.loads(request_path.read_text())
    images = [base64.b64decode(text) for text in request["images"]]
    masks = [text and base64.b64decode(text) for text in request["masks"]]
    is_there = False
    try:
        started = time.perf_counter()
        import mlflow.pyfunc
        import pandas as pd

        imported = time.perf_counter()
        folder = mlflow.artifacts.download_artifacts(request["model_uri"], dst_path="model")
        is_there, downloaded = True, time.perf_counter()
        model = mlflow.pyfunc.load_model(folder)
        loaded = time.perf_counter()
        seconds, probabilities = [], []
        for size in request["batches"]:
            begun = time.perf_counter()
            columns = {"image": images[:size]}
            if any(masks):
                columns["mask"] = masks[:size]
            table = model.predict(pd.DataFrame(columns))
            seconds.append(time.perf_counter() - begun)
            probabilities.append(table.filter(regex="^p_").to_numpy().tolist())
        answer = {
            "import_seconds": imported - started,
            "load_seconds": loaded - downloaded,
            "predict_seconds": seconds,
            "probabilities": probabilities,
            "peak_memory_mb": peak_memory_mb(),
            "imported": [name for name in WATCHED if name in sys.modules],
        }
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        answer = {"failed": told, "own": is_there and not of_machine(error)}
    answer_path.write_text(json.dumps(answer))


def of_machine(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory or disk were full."""
    if error is None:
        return False
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in MACHINE:
        return True
    return of_machine(error.__cause__) or of_machine(error.__context__)


def end_with(parent: int, folder: Path) -> None:
    """End when the process that asked is gone, which would have removed the folder."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in units of 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory: Linux hands it over at fork
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


if __name__ == "__main__":
    asked = Path(sys.argv[1])
    threading.Thread(target=end_with, args=(int(sys.argv[3]), asked.parent), daemon=True).start()
    main(asked, Path(sys.argv[2]))
