"""The clean process of the gate: loads a model by URI, predicts, and writes down what happened.

Run as a script by `gate`; it must not import this project, whose code a model carries itself.
"""

import base64
import json
import sys
import time
from pathlib import Path

WATCHED = ("torch", "torchvision", "cv2", "albumentations", "cxr_mlflow")


def main(request_path: Path, answer_path: Path) -> None:
    """Answer a request: {"model_uri", "images", "masks", "batches"} as JSON, images in base64."""
    request = json.loads(request_path.read_text())
    images = [base64.b64decode(text) for text in request["images"]]
    masks = [text and base64.b64decode(text) for text in request["masks"]]

    started = time.perf_counter()
    import mlflow.pyfunc
    import pandas as pd

    imported = time.perf_counter()
    model = mlflow.pyfunc.load_model(request["model_uri"])
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
        "load_seconds": loaded - imported,
        "predict_seconds": seconds,
        "probabilities": probabilities,
        "peak_memory_mb": peak_memory_mb(),
        "imported": [name for name in WATCHED if name in sys.modules],
    }
    answer_path.write_text(json.dumps(answer))


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in units of 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory: Linux hands it over at fork
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
