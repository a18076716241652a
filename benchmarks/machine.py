"""What a figure was measured on: every benchmark prints it beside its result."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine() -> str:
    """Say day, processor and number of usable cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{date.today()}, {cores} cores of {_processor()}, Python {platform.python_version()}"


def versions(*packages: str) -> str:
    """Say which versions of some packages are installed."""
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Table whose first column is text and whose others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    told = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in told if line.startswith("model name")]
    flags = next((line for line in told if line.startswith("flags")), "").split()
    widest = next((f for f in ("amx_tile", "avx512f", "avx2") if f in flags), "")
    return f"{names[0] if names else platform.processor()} {widest}".strip()
