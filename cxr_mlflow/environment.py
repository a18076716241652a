"""What a run was made with: versions, commit, machine. Standard library only."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "mlflow",
    "albumentations",
    "scikit-learn",
    "numpy",
    "pandas",
    "onnxruntime",
)


def package_versions() -> dict[str, str]:
    """Versions of Python, of us, and of the packages a result may depend on."""
    versions = {f"version/{name}": metadata.version(name) for name in PACKAGES}
    return {"version/python": platform.python_version(), **versions}


def machine_kind(accelerator: str = "") -> str:
    """Say on what kind of machine we are: accelerator, usable cores, processor."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count()
    parts = [accelerator, f"{cores} cores of {_processor()}"]
    return ", ".join(part for part in parts if part)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@contextmanager
def unless_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment variables that the user did not set, and take them back in the end."""
    ours = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def code_digest() -> str:
    """Digest of the package's own source: a commit says nothing of what was edited since."""
    folder = Path(__file__).parent
    sources = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.py")}
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()


def git_commit(folder: Path) -> str:
    """Commit of a checkout, with `-dirty` where tracked files differ; 'unknown' outside of git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *args: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def default_cache_dir() -> Path:
    """`$CXR_CACHE_DIR`, else cxr_mlflow in the user's cache folder."""
    if told := os.environ.get("CXR_CACHE_DIR"):
        return Path(told).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cxr_mlflow"


def default_state_dir() -> Path:
    """`$CXR_STATE_DIR`, else cxr_mlflow in the user's folder of states."""
    if told := os.environ.get("CXR_STATE_DIR"):
        return Path(told).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "cxr_mlflow"
