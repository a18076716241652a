"""Write conda.yaml: the direct dependencies of pyproject.toml at the versions of the lock.

`make lock` calls it; a test says whether the three files agree.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = """\
# Written by tools/write_conda.py from pyproject.toml and requirements.lock (`make lock`).
# For users with conda, and for `mlflow run . --env-manager uv`, which reads it without conda.
"""


def locked_versions(text: str) -> dict[str, str]:
    """Package name -> version, of every line `name==version` in a lock."""
    return dict(re.findall(r"^([a-zA-Z0-9._-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def direct_dependencies(pyproject: dict) -> list[str]:
    """Names of the packages the project itself imports, as pyproject.toml lists them."""
    return [re.split(r"[<>=!~\[; ]", line)[0] for line in pyproject["project"]["dependencies"]]


def render() -> str:
    """Return the text of conda.yaml."""
    locked = locked_versions((ROOT / "requirements.lock").read_text())
    names = direct_dependencies(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    pins = "".join(f"      - {name}=={locked[name]}\n" for name in names)
    return (
        f"{HEADER}name: cxr-mlflow\nchannels:\n  - conda-forge\ndependencies:\n"
        f"  - python=3.11\n  - pip\n  - pip:\n{pins}"
    )


if __name__ == "__main__":
    (ROOT / "conda.yaml").write_text(render())
