"""What `cxr serve` costs over bare ONNX Runtime, and whether it stays flat under load and fuzz.

A real server process is asked over loopback by threads of this one. Speeds are timed in turn with
bare ONNX Runtime on arrays that are ready, a round each, so that a machine whose speed drifts slows
both. The clients share the cores with the server.

    python benchmarks/serving_load.py MODEL_FOLDER --image film.png --minutes 30 --fuzz 10000
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import psutil

from cxr_mlflow.cli.options import CxrCommand
from cxr_mlflow.data.preprocess import decode_grey, network_input, resize
from cxr_mlflow.serving.http_server import usable_cores
from cxr_mlflow.serving.scorer import BATCH, Scorer
from cxr_mlflow.serving.scorer_config import MODEL_FILE
from tools.cxr_server import Process, ask, film, served_process, split
from tools.http_fuzz import Findings, fuzz

HEADERS = {"Content-Type": "application/json"}
REPORT_SECONDS = 30.0
MB = 1e6
FUZZERS, FUZZ_PARTS = 4, 5


@dataclass
class Tally:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    images: int = 0
    elapsed: float = 0.0

    def percentile(self, share: float) -> float:
        """Milliseconds under which this share of the answers came."""
        return float(np.percentile(self.seconds, 100 * share)) * 1000 if self.seconds else 0.0


def clients(port: int, count: int, seconds: float, bodies: Sequence[tuple[bytes, int]]) -> Tally:
    """Let so many clients send bodies in turn, each on one connection, for some time.

    Parameters
    ----------
    bodies : sequence of (bytes, int)
        What is sent, and how many images a good answer labels.
    """
    start, tally, lock = time.perf_counter(), Tally(), threading.Lock()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for body, images in itertools.islice(itertools.cycle(bodies), number, None):
            begun = time.perf_counter()
            if begun > start + seconds:
                break
            connection.request("POST", "/invocations", body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            with lock:
                tally.seconds.append(time.perf_counter() - begun)
                tally.statuses[answer.status] += 1
                tally.images += images if answer.status == 200 else 0
        connection.close()

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(client, number) for number in range(count)]:
            done.result()
    tally.elapsed = time.perf_counter() - start
    return tally


def bare(model: Path, pixels: np.ndarray, seconds: float, batch: int) -> tuple[float, float]:
    """Run ONNX Runtime alone, a thread for each core, on arrays that are ready.

    Returns
    -------
    tuple of float
        Images/s, and milliseconds of a core for an image.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model / MODEL_FILE), options)
    images = {session.get_inputs()[0].name: np.repeat(pixels[None, None], batch, axis=0)}
    session.run(None, images)
    begun, used = time.perf_counter(), time.process_time()

    def run() -> int:
        done = 0
        while time.perf_counter() < begun + seconds:
            session.run(None, images)
            done += batch
        return done

    with ThreadPoolExecutor(usable_cores()) as pool:
        total = sum(task.result() for task in [pool.submit(run) for _ in range(usable_cores())])
    return total / (time.perf_counter() - begun), 1000 * (time.process_time() - used) / total


def core_seconds(server: Process) -> float:
    """Time that the server's threads have computed."""
    times = psutil.Process(server.process.pid).cpu_times()
    return float(times.user + times.system)


def memory(server: Process) -> float:
    """Resident memory of the server, MB."""
    return float(psutil.Process(server.process.pid).memory_info().rss) / MB


def speed(server: Process, model: Path, content: bytes, mask: bytes | None, rounds: int) -> None:
    """Print latency of one image, and images/s over bare ONNX Runtime's."""

    def body(count: int) -> tuple[bytes, int]:
        columns = {"image": [content] * count} | ({"mask": [mask] * count} if mask else {})
        return json.dumps(split(columns)).encode(), count

    clients(server.port, 2, 2, [body(1)])  # warm-up
    alone = clients(server.port, 1, 10, [body(1)])
    click.echo(
        f"one image, one client: p50 {alone.percentile(0.5):.1f} ms, p99 "
        f"{alone.percentile(0.99):.1f} ms ({len(alone.seconds)} requests)"
    )
    config = Scorer.load(model).config
    pixels = network_input(resize(decode_grey(content), config.image_size))
    kinds: list[tuple[str, int, int]] = [("single images", 1, 4), (f"batches of {BATCH}", BATCH, 2)]
    for name, size, count in kinds:
        ratios = []
        for _ in range(rounds):
            limit, least = bare(model, pixels, 4, size)
            before = core_seconds(server)
            tally = clients(server.port, count, 4, [body(size)])
            ours = tally.images / tally.elapsed
            cost = 1000 * (core_seconds(server) - before) / tally.images
            ratios.append(ours / limit)
            click.echo(
                f"{name}: ours {ours:.1f}, bare {limit:.1f} images/s, ratio {ratios[-1]:.3f}; a "
                f"core works {cost:.1f} ms, bare {least:.1f} ms for an image"
            )
        click.echo(
            f"{name}: median ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f}..{max(ratios):.3f}, {rounds} rounds)"
        )


def load(server: Process, content: bytes, mask: bytes | None, minutes: float, count: int) -> None:
    """Keep the server busy with good and bad requests; print memory and latency as it goes."""

    def body(images: int, image: bytes | str = content) -> tuple[bytes, int]:
        columns = {"image": [image] * images} | ({"mask": [mask] * images} if mask else {})
        return json.dumps(split(columns)).encode(), images

    mixed = [body(1)] * 10 + [body(4)] * 2 + [body(16), body(200), body(1, content[:-40])]
    mixed += [body(1, "/etc/passwd"), (b"{", 1), body(1, film(9, 3000))]
    begun, memories = time.monotonic(), [memory(server)]
    pings: list[float] = []
    stopped = threading.Event()

    def ping() -> None:
        while not stopped.wait(0.05):
            at = time.perf_counter()
            assert ask(server.port, path="/ping", method="GET")[0] == 200
            pings.append(time.perf_counter() - at)

    pinging = threading.Thread(target=ping)
    pinging.start()
    statuses: Counter[int] = Counter()
    try:
        while (left := 60 * minutes - (time.monotonic() - begun)) > 0:
            tally = clients(server.port, count, min(REPORT_SECONDS, left), mixed)
            statuses += tally.statuses
            memories.append(memory(server))
            click.echo(
                f"{(time.monotonic() - begun) / 60:5.1f} min: {memories[-1]:.0f} MB, "
                f"{len(tally.seconds)} requests, {tally.images} images, "
                f"p50 {tally.percentile(0.5):.0f} ms, p99 {tally.percentile(0.99):.0f} ms, "
                f"ping p99 {1000 * float(np.percentile(pings, 99)):.0f} ms"
            )
    finally:
        stopped.set()
        pinging.join()
    assert not [status for status in statuses if status >= 500 and status != 503], statuses
    click.echo(
        f"load: {sum(statuses.values())} requests, {dict(sorted(statuses.items()))}, memory "
        f"{memories[0]:.0f} MB at the start, {memories[1]:.0f} MB after the first report, "
        f"{memories[-1]:.0f} MB at the end, {max(memories):.0f} MB at most"
    )


def fuzz_together(port: int, examples: int, seed: int) -> Findings:
    """Send random requests from several processes at the same time; return what they found."""
    found = Findings()
    with ProcessPoolExecutor(FUZZERS, mp_context=get_context("spawn")) as pool:
        each = examples // FUZZERS
        tasks = [pool.submit(fuzz, port, each, FUZZERS * seed + n) for n in range(FUZZERS)]
        for task in tasks:
            found += task.result()
    return found


@click.command(cls=CxrCommand)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--image", type=click.Path(exists=True, path_type=Path), help="A film; else drawn.")
@click.option("--mask", type=click.Path(exists=True, path_type=Path), help="Its lungs.")
@click.option("--rounds", default=5, help="Rounds of ours and bare, in turn; 0: no speeds.")
@click.option("--minutes", default=5.0, help="Minutes of load; 0: none.")
@click.option("--count", default=6, help="Clients of the load.")
@click.option("--fuzz", "examples", default=0, help="Random and mutated requests.")
@click.option("--seed", default=0, help="Of the fuzz.")
@click.option("--option", "options", multiple=True, help="Of the server, as --option=--workers=1.")
def main(
    model: Path,
    image: Path | None,
    mask: Path | None,
    rounds: int,
    minutes: float,
    count: int,
    examples: int,
    seed: int,
    options: tuple[str, ...],
) -> None:
    """Measure a server that is started for it."""
    content = image.read_bytes() if image else film(120, 299)
    lungs = mask.read_bytes() if mask else None
    words = list(itertools.chain.from_iterable(option.split("=", 1) for option in options))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with served_process(model.resolve(), log, *words) as server:
            click.echo(
                f"{model.name}, {usable_cores()} cores: ready after {server.seconds:.2f} s "
                f"({core_seconds(server):.2f} s of a core), {memory(server):.0f} MB"
            )
            columns = {"image": [content]} | ({"mask": [lungs]} if lungs else {})
            status, told, _ = ask(server.port, split(columns))
            if status != 200:  # a load of refusals would measure nothing
                raise click.ClickException(f"the server answers {status}: {told}")
            if rounds:
                speed(server, model, content, lungs, rounds)
            if minutes:
                load(server, content, lungs, minutes, count)
            if examples:
                memories, begun = [memory(server)], time.monotonic()
                findings = Findings()
                for part in range(FUZZ_PARTS):
                    number = FUZZ_PARTS * seed + part
                    findings += fuzz_together(server.port, examples // FUZZ_PARTS, number)
                    memories.append(memory(server))
                click.echo(
                    f"fuzz: {findings.sent} connections in {time.monotonic() - begun:.0f} s, "
                    f"answers {dict(sorted(findings.statuses.items()))}, {findings.unanswered} "
                    f"without; memory {' '.join(f'{found:.0f}' for found in memories)} MB"
                )
            begun = time.monotonic()
            status = server.stop()
            click.echo(f"stopped with status {status} in {time.monotonic() - begun:.1f} s")
        text = log.read_text()
        assert "Traceback" not in text, text[-2000:]


if __name__ == "__main__":
    main()
