"""A served network under other settings of ONNX Runtime, and in 8 bits; for `serving_speed.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from benchmarks.machine import markdown
from cxr_mlflow.serving.scorer import BATCH, softmax

Arrays = NDArray[np.float32]

LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
SAVED = {"basic": "all", "extended": "all", "all": "none"}
"""Level a graph is saved ahead with -> level it is then opened with."""
SIZES = (1, 4, 8, 16, 32, 64)
CALIBRATION = 64


class Taken(NamedTuple):
    """Time of each round: on the clock, and of a core, which others on the machine disturb less."""

    seconds: list[float]
    core: list[float]


def options(model: Path, arrays: Arrays, rounds: int, place: Path) -> str:
    """Time to open a network and to run it, by optimisation of the graph; and by batch size."""
    opened = {f"optimised: {level}": partial(open_session, model, 1, level) for level in LEVELS}
    for level, then in SAVED.items():
        saved = place / f"{level}.onnx"
        open_session(model, 1, level, save=saved)
        opened[f"saved ahead: {level}, opened with: {then}"] = partial(open_session, saved, 1, then)
    loads = in_turn(opened, rounds)
    sessions = {name: load() for name, load in opened.items()}
    few = arrays[: 2 * BATCH]
    runs = in_turn({name: partial(run, s, few) for name, s in sessions.items()}, rounds)
    base, lines = "optimised: all", []
    for name in opened:
        opening = spread(loads[name].core, 2)
        time_over = over(runs[name], runs[base])
        lines.append([name, opening, per_image(runs[name], len(few)), time_over])
    sized = {f"batches of {n}": partial(run, sessions[base], arrays, n) for n in SIZES}
    runs = in_turn(sized, rounds)
    for name in sized:
        time_over = over(runs[name], runs[f"batches of {BATCH}"])
        lines.append([name, "", per_image(runs[name], len(arrays)), time_over])
    return markdown(
        ["one thread", "core s to open", "core ms an image", "over the default's"], lines
    )


def int8(model: Path, arrays: Arrays, rounds: int, place: Path, temperature: float | None) -> str:
    """Quantised networks: speed, and with the temperature of a trained one what they change."""
    calibration, judged = arrays[::4][:CALIBRATION], np.delete(arrays, np.s_[::4], axis=0)
    files = {"float32": model, **dict(quantise(model, calibration, place))}
    sessions = {name: open_session(path, 1) for name, path in files.items()}
    few = arrays[: 2 * BATCH]
    runs = in_turn({name: partial(run, s, few) for name, s in sessions.items()}, rounds)
    answers, lines = {}, []
    for name, session in sessions.items():
        size = f"{files[name].stat().st_size / 1e6:.0f}"
        figures = [per_image(runs[name], len(few)), over(runs[name], runs["float32"])]
        told = ["random weights", ""]
        if temperature:
            answers[name] = softmax(np.concatenate(run(session, judged)), temperature)
            exact = answers["float32"]
            same = (answers[name].argmax(1) == exact.argmax(1)).sum()
            change = np.abs(answers[name] - exact).max(axis=1)
            told = [f"{same}", f"{np.median(change):.4f}, {change.max():.4f}"]
        lines.append([name, size, *figures, *told])
    return markdown(
        [
            *("one thread", "MB", "core ms an image", "over float32"),
            f"same label of {len(judged)}",
            "change of a probability, median and largest of the images",
        ],
        lines,
    )


def quantise(model: Path, calibration: Arrays, place: Path) -> Iterator[tuple[str, Path]]:
    """Networks in 8 bits, by the ways ONNX Runtime offers: name and file of each."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> dict[str, Arrays] | None:
            image = next(self._rest, None)
            return None if image is None else {"images": image[None]}

    ready = place / "ready.onnx"
    quant_pre_process(str(model), str(ready))
    for name, narrow in (("int8, static", False), ("int8, static, weights of 7 bits", True)):
        path = place / f"static-{narrow}.onnx"
        quantization.quantize_static(
            str(ready), str(path), Reader(), per_channel=True, reduce_range=narrow
        )
        yield name, path
    path = place / "dynamic.onnx"
    unsigned = quantization.QuantType.QUInt8  # ConvInteger knows no other
    quantization.quantize_dynamic(str(ready), str(path), weight_type=unsigned)
    yield "int8, dynamic", path


def open_session(
    model: Path,
    threads: int,
    level: str = "all",
    *,
    spinning: bool = True,
    save: Path | None = None,
) -> ort.InferenceSession:
    """ONNX Runtime at its defaults, but for what is asked."""
    told = ort.SessionOptions()
    told.intra_op_num_threads, told.inter_op_num_threads = threads, 1
    told.graph_optimization_level = LEVELS[level]
    told.log_severity_level = 3  # it warns that a saved graph is for this processor only
    if save:
        told.optimized_model_filepath = str(save)
    if not spinning:
        told.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(model), told, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, arrays: Arrays, size: int = BATCH) -> list[Arrays]:
    """Logits of all arrays, so many at a time."""
    parts = range(0, len(arrays), size)
    return [session.run(None, {"images": arrays[at : at + size]})[0] for at in parts]


def in_turn(contenders: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Taken]:
    """What each contender takes in each round, after a round that is not counted."""
    taken = {name: Taken([], []) for name in contenders}
    for _ in range(rounds + 1):
        for name, work in contenders.items():
            begun, used = time.perf_counter(), time.process_time()
            work()
            taken[name].seconds.append(time.perf_counter() - begun)
            taken[name].core.append(time.process_time() - used)
    return {name: Taken(t.seconds[1:], t.core[1:]) for name, t in taken.items()}


def per_image(taken: Taken, images: int) -> str:
    """Milliseconds of a core for an image."""
    return spread([1000 * used / images for used in taken.core])


def over(taken: Taken, base: Taken) -> str:
    """Core time over another contender's, round by round."""
    return spread([a / b for a, b in zip(taken.core, base.core, strict=True)], 2)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and range."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def own_seconds() -> float:
    """Core seconds of this process and of those it started."""
    return sum(psutil.Process().cpu_times()[:4])


def used_by_others(before: Any, own: float, begun: float) -> float:
    """Cores that other processes have used since then."""
    after = psutil.cpu_times()
    busy = sum(
        getattr(after, kind) - getattr(before, kind) for kind in ("user", "nice", "system", "irq")
    )
    return max(0.0, busy - (own_seconds() - own)) / (time.time() - begun)
