"""Registered versions: who may enter, and who is the champion."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import filelock
import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cxr_mlflow.errors import InputError
from cxr_mlflow.evaluation.intervals import Interval
from cxr_mlflow.evaluation.model_card import DESCRIPTION_LIMIT
from cxr_mlflow.tracking.comparison import NotComparable, compare_tests
from cxr_mlflow.tracking.locks import hold, lock_of, sqlite_file
from cxr_mlflow.tracking.run import DEFAULT_URI, use_tracking_uri

CHALLENGER = "challenger"
CHAMPION = "champion"
LOCK_SECONDS = 300.0
TRIES = 3
CUT = "\n\n(Cut here for length: see README.md among the artifacts of the run.)\n"


class Gate(Protocol):
    """What the gate found, see `serving.gate.GateReport`."""

    @property
    def ok(self) -> bool:
        """Whether the model may be registered."""

    @property
    def reasons(self) -> Sequence[str]:
        """Why not."""

    def tags(self) -> dict[str, str]:
        """Tags of the version that say what was checked."""


class NotRegistered(RuntimeError):
    """The model did not pass the gate; the registry is as it was."""


@dataclass(frozen=True)
class Promotion:
    """Whether a version became the champion, and why."""

    promoted: bool
    reason: str
    champion: str | None
    """Version that is the champion now; None if there is none."""
    compared_with: str | None = None
    """Version it was compared with."""
    difference: Interval | None = None
    """Macro F1 of the version minus the champion's, with its 95 % interval, if it was measured."""


def register(
    model_uri: str,
    *,
    name: str,
    gate: Gate,
    tags: Mapping[str, str] | None = None,
    description: str | None = None,
) -> str:
    """Register a logged model that passed the gate, as the challenger.

    Parameters
    ----------
    model_uri : str
        `models:/m-...`, of `serving.package.log_model`.
    name : str
        Registered model; made if it is not there.
    gate : GateReport
        Of this very model.
    tags : mapping of str to str, optional
        Tags of the version; those of the gate are added.
    description : str, optional
        Markdown text on the version's page.

    Returns
    -------
    str
        The version.

    Raises
    ------
    NotRegistered
        If the gate was not passed: the reasons are told, nothing is registered, no alias moves.
    """
    if not gate.ok:
        raise NotRegistered(f"{model_uri} is not registered: {'; '.join(gate.reasons)}")
    told = {**(tags or {}), **gate.tags()}
    with _locked(default_lock()):  # MLflow counts versions and inserts aliases: two at once fail
        version = find_version(model_uri, name)
        if version is None:  # a process may have died between this and what follows
            version = str(mlflow.register_model(model_uri, name, tags=told).version)
        client = mlflow.MlflowClient()
        if description:
            client.update_model_version(name, version, _fitting(description))
        client.set_registered_model_alias(name, CHALLENGER, version)
    return version


def find_version(model_uri: str, name: str) -> str | None:
    """Find the version that a logged model `models:/m-...` was registered as; None if it was not.

    Parameters
    ----------
    model_uri, name : str
        Logged model, and registered model.
    """
    for found in mlflow.MlflowClient().search_model_versions(f"name = '{name}'"):
        if found.source == model_uri:  # MLflow 3.17 leaves `model_id` empty here
            return str(found.version)
    return None


def promote(
    name: str,
    version: str,
    *,
    lock_path: Path | None = None,
    samples: int = 2000,
    seed: int = 0,
    force: bool = False,
) -> Promotion:
    """Make a version the champion if it beats the present one on the same test images.

    It does if the 95 % interval of the paired bootstrap of macro F1 lies above 0. The first version
    needs nobody to beat. The alias is read, compared and set under a file lock, and read again just
    before it is set, for whoever works from another machine. The verdict and its evidence become
    tags of the version.

    Parameters
    ----------
    name, version : str
        A registered version.
    lock_path : Path, optional
        File of the lock; `default_lock()` if None.
    samples, seed : int
        Of the bootstrap.
    force : bool
        Move the alias whatever the comparison says; the version's tag tells so.

    Returns
    -------
    Promotion
        Different test images, or a missing table of predictions, are told as the reason.

    Raises
    ------
    InputError
        If there is no such version.
    """
    client = mlflow.MlflowClient()
    challenger = get_version(client, name, version)
    with _locked(lock_path or default_lock()):
        for _ in range(TRIES):
            champion = champion_of(client, name)
            verdict = _compare(client, challenger, champion, samples, seed)
            if force and not verdict.promoted and champion != str(version):
                verdict = Promotion(
                    True,
                    f"moved by hand, although: {verdict.reason}",
                    str(version),
                    verdict.compared_with,
                    verdict.difference,
                )
            if verdict.promoted:
                if champion_of(client, name) != champion:
                    continue  # another machine moved it meanwhile: compare with that one
                client.set_registered_model_alias(name, CHAMPION, str(version))
            _tag(client, name, str(version), verdict)
            return verdict
    raise RuntimeError(f"the alias {CHAMPION} of {name} was moved {TRIES} times while comparing")


def use_registry() -> str:
    """Point MLflow at the store in use, which must be there: nothing is made by a reader.

    Returns
    -------
    str
        The tracking URI.

    Raises
    ------
    InputError
        If there is no store, or it does not answer.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    file = sqlite_file(uri)
    if file and not file.is_file():
        raise InputError(
            f"{uri}: no such tracking store; go to the folder where you trained, or set "
            "MLFLOW_TRACKING_URI"
        )
    return use_tracking_uri()


def describe_versions_of(run_id: str, description: str, tags: Mapping[str, str]) -> None:
    """Set description and tags of every version that a run made."""
    client = mlflow.MlflowClient()
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        client.update_model_version(version.name, version.version, _fitting(description))
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)


def _fitting(description: str) -> str:
    """A description cut at the end of a line, where the registry would refuse its length."""
    if len(description) <= DESCRIPTION_LIMIT:
        return description
    kept = description[: DESCRIPTION_LIMIT - len(CUT)]
    return (kept.rpartition("\n")[0] or kept) + CUT


def champion_of(client: mlflow.MlflowClient, name: str) -> str | None:
    """Version with the alias champion, None if there is none."""
    found = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if found is None else str(found)


def get_version(client: mlflow.MlflowClient, name: str, version: str) -> ModelVersion:
    """Read a registered version.

    Raises
    ------
    InputError
        If it does not exist.
    """
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        raise InputError(f"no version {version} of a registered model {name}") from error


def default_lock() -> Path:
    """Lock file of the registry in use."""
    return lock_of(mlflow.get_registry_uri(), "registry")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        with hold(path, seconds=LOCK_SECONDS):
            yield
    except filelock.Timeout as error:
        raise InputError(
            f"{path}: another process has held it for {LOCK_SECONDS:g} seconds; is one hanging?"
        ) from error


def _compare(
    client: mlflow.MlflowClient,
    challenger: ModelVersion,
    champion: str | None,
    samples: int,
    seed: int,
) -> Promotion:
    own = str(challenger.version)
    if champion is None:
        return Promotion(True, "the first champion: there was none to beat", own)
    if champion == own:
        return Promotion(False, "it is the champion already", own)
    stays = f"version {champion} stays champion"
    other = get_version(client, challenger.name, champion)
    try:
        found, images = compare_tests(client, challenger, other, samples=samples, seed=seed)
    except NotComparable as error:
        return Promotion(False, f"{stays}: {error}", champion, champion)
    told = (
        f"macro F1 {found.value:+.4f} (95 % interval {found.low:+.4f} to {found.high:+.4f}) "
        f"against version {champion} on the same {images:,} test images"
    )
    if found.low > 0:
        return Promotion(True, told, own, champion, found)
    return Promotion(False, f"{stays}: {told}", champion, champion, found)


def _tag(client: mlflow.MlflowClient, name: str, version: str, verdict: Promotion) -> None:
    tags = {"promotion": ("champion: " if verdict.promoted else "challenger: ") + verdict.reason}
    if verdict.compared_with:
        tags["compared_with"] = verdict.compared_with
    if verdict.difference:
        for end in ("value", "low", "high"):
            tags[f"f1_macro_difference_{end}"] = f"{getattr(verdict.difference, end):.6f}"
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
