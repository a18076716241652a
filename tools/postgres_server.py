"""A real PostgreSQL on loopback, for as long as a test needs one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.mlflow_server import free_port

UNPRIVILEGED = ("postgres", "nobody")
"""PostgreSQL refuses to run as root; it is then started as one of these."""


def find_postgres() -> Path | None:
    """Folder of PostgreSQL's programs; None if it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian's place
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    return next((f for f in folders if (f / "initdb").is_file()), None)


def postgres_uri(port: int) -> str:
    """URI, as MLflow takes it, of the server at a port of this machine."""
    return f"postgresql://cxr@127.0.0.1:{port}/postgres"


@contextmanager
def serve_postgres(port: int | None = None) -> Iterator[str]:
    """Run an empty database server; yield its URI.

    Parameters
    ----------
    port : int, optional
        A free one by default.

    Raises
    ------
    RuntimeError
        If PostgreSQL is not installed.
    CalledProcessError
        If it does not start.
    """
    programs = find_postgres()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = _unprivileged() if os.geteuid() == 0 else None
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="cxr-postgres-") as folder:
        data = Path(folder) / "data"
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)

        def run(program: str, *args: str) -> None:
            subprocess.run(
                [str(programs / program), *args],
                check=True,
                capture_output=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                env={**os.environ, "HOME": folder, "LC_ALL": "C.UTF-8"},
            )

        run("initdb", "-D", str(data), "-U", "cxr", "-A", "trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(Path(folder) / "log")
        run("pg_ctl", "-D", str(data), "-w", "-l", log, "-o", options, "start")
        try:
            yield postgres_uri(port)
        finally:
            run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")


def _unprivileged() -> pwd.struct_passwd:
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is no user to run it as")
