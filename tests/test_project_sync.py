"""Files that say the same thing say the same thing: options, pins, paths."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

from cxr_mlflow.cli import main
from cxr_mlflow.config import flag
from tools.write_conda import direct_dependencies, locked_versions
from tools.write_conda import render as render_conda
from tools.write_mlproject import ENTRY_POINTS, render


def parameters_of(words: str) -> dict[str, click.Parameter]:
    command: click.Command = main
    for word in words.split():
        command = command.commands[word]
    return {p.name: p for p in command.params}


def test_mlproject_is_what_the_config_says(repo):
    assert (repo / "MLproject").read_text() == render(), "run: python tools/write_mlproject.py"


@pytest.mark.parametrize("entry_point", sorted(ENTRY_POINTS))
def test_mlproject_and_command_line_agree(repo, entry_point):
    declared = yaml.safe_load((repo / "MLproject").read_text())["entry_points"][entry_point]
    command = ENTRY_POINTS[entry_point][0]
    parameters = parameters_of(command)
    assert set(declared["parameters"]) == set(parameters)
    for name, told in declared["parameters"].items():
        parameter = parameters[name]
        if isinstance(parameter, click.Argument):
            assert f"{command} {{{name}}}" in declared["command"]
            continue
        assert f"--{flag(name)} {{{name}}}" in declared["command"]
        assert f"--{flag(name)}" in parameter.opts
        assert told["help"].startswith(parameter.help)
        default = parameter.default
        assert told["default"] == (
            str(default).lower() if parameter.type is click.BOOL else default
        )
        if isinstance(parameter.type, click.Choice):
            assert ", ".join(parameter.type.choices) in told["help"]


def test_mlproject_has_no_empty_default(repo):
    project = yaml.safe_load((repo / "MLproject").read_text())
    for entry in project["entry_points"].values():
        assert all(p["default"] not in (None, "") for p in entry["parameters"].values())


def test_conda_pins_are_the_locks(repo):
    assert (repo / "conda.yaml").read_text() == render_conda(), "run: make lock"


def test_lock_satisfies_pyproject(repo):
    pyproject = tomllib.loads((repo / "pyproject.toml").read_text())
    locked = locked_versions((repo / "requirements.lock").read_text())
    wanted = pyproject["project"]["dependencies"]
    wanted += pyproject["project"]["optional-dependencies"]["dev"]
    for line in wanted:
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[requirement.name.lower()]), line


def test_this_environment_is_the_locked_one(repo):
    from importlib import metadata

    locked = locked_versions((repo / "requirements.lock").read_text())
    pyproject = tomllib.loads((repo / "pyproject.toml").read_text())
    for name in direct_dependencies(pyproject):
        assert metadata.version(name).split("+")[0] == locked[name], f"{name}: run make install"


def test_lock_is_for_every_python_we_allow(repo):
    for line in (repo / "requirements.lock").read_text().splitlines():
        marker = Requirement(line).marker
        if marker and "python_full_version" in str(marker):
            environment = default_environment() | {"sys_platform": "linux"}
            assert marker.evaluate(environment | {"python_full_version": "3.11.0"}), line


def tracked(repo: Path) -> list[Path]:
    done = subprocess.run(["git", "-C", str(repo), "ls-files", "-z"], capture_output=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [repo / name for name in done.stdout.decode().split("\0") if name]


def test_no_committed_file_names_a_registry_host_or_this_machine(repo):
    words = ("py" + "pi.org", "python" + "hosted", "npm" + "js.org", "/" + "work/")
    forbidden = re.compile("|".join(map(re.escape, words)))
    for path in tracked(repo):
        if path.suffix in {".png", ".jpg"} or not path.exists():
            continue
        found = forbidden.search(path.read_text(errors="replace"))
        assert not found, f"{path.relative_to(repo)}: {found}"


def test_no_data_or_weights_are_committed(repo):
    for path in tracked(repo):
        assert path.suffix not in {".pth", ".safetensors", ".onnx", ".npy", ".npz", ".db"}, path
        assert path.relative_to(repo).parts[0] != "data", path


def test_help_does_not_load_the_heavy_packages():
    code = (
        "import sys; from click.testing import CliRunner; from cxr_mlflow.cli import main\n"
        "for args in (['--help'], ['train', '--help'], ['data', '--help'], ['compare', '--help'],\n"
        "             ['experiment', 'run', '--help']):\n"
        "    assert CliRunner().invoke(main, args).exit_code == 0\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
