"""One store, one lock: for every spelling of it, every folder, and every user of the machine."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import filelock
import pytest

from cxr_mlflow.tracking.locks import hold, lock_of

NOBODY = 65534


@pytest.fixture(autouse=True)
def lock_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_LOCK_DIR", str(tmp_path / "locks"))
    for place in (tmp_path, *tmp_path.parents):  # pytest keeps others out
        if place.stat().st_uid == os.getuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | stat.S_IXOTH)
    return tmp_path / "locks"


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("http://h:5000", "http://h:5000/"),
        ("https://H.example/mlflow/", "https://h.example/mlflow"),
        ("postgresql://a:secret@h:5432/db", "postgresql+psycopg2://b:other@h:5432/db"),
    ],
)
def test_every_spelling_of_a_store_is_the_same_lock(one, same):
    assert lock_of(one, "start") == lock_of(same, "start")
    assert lock_of(one, "start") != lock_of(one, "registry")
    assert lock_of(one, "start") != lock_of("http://elsewhere:5000", "start")


def test_an_sqlite_store_has_it_beside_it_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = lock_of("sqlite:///mlflow.db", "start")
    assert here == tmp_path / "mlflow.db.start.lock"
    monkeypatch.chdir("/")
    assert lock_of(f"sqlite:///{tmp_path}/mlflow.db?timeout=9", "start") == here


def test_the_folder_does_not_follow_the_jobs_own_temporary_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CXR_LOCK_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # as $TMPDIR, for a new process
    assert not lock_of("http://h:5000", "start").is_relative_to(tmp_path)


def as_nobody(work) -> str:
    """Do something as another user; return its error output."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 2)
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            work()
            os._exit(0)
        except filelock.Timeout:
            os._exit(3)
        except BaseException:
            os._exit(4)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reader) as told:
        return f"{code} {told.read()}"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_second_user_can_hold_it_and_is_kept_out_while_the_first_does(capfd):
    path = lock_of("http://h:5000", "registry")

    def take():
        with hold(path, seconds=0.2):
            pass

    take()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o1777
    assert as_nobody(take).startswith("0 ")
    with hold(path):
        assert as_nobody(take).startswith("3 ")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_where_it_is_forbidden_the_work_is_done_without_and_said(tmp_path):
    path = lock_of("http://h:5000", "registry")
    path.touch(mode=0o600)

    def take():
        import sys

        sys.stderr = os.fdopen(2, "w")
        for _ in range(2):
            with hold(path):
                os.write(2, b"done ")
        sys.stderr.flush()

    told = as_nobody(take)
    assert told.startswith("0 ")
    assert told.count("done") == 2
    assert told.count("Permission denied; goes on without this lock") == 1
