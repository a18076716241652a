"""What a run tells, on this machine's disk before MLflow hears of it. Knows no MLflow.

A journal is a folder: `records`, one line each with its checksum; `files`, what goes to the run's
artifacts; `sent`, how many records were sent; `refused.json`, the first that was not taken;
`remote.json`, what the other side answered.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_mlflow.data.storage import copy_whole, explained, make_folder, sync, write_whole
from cxr_mlflow.errors import InputError
from cxr_mlflow.stopping import unbroken

ADVICE = "name another folder with $CXR_STATE_DIR"


@dataclass(frozen=True)
class Record:
    """One thing a run told."""

    number: int
    """From 0, in the order told."""
    verb: str
    time: int
    """Milliseconds since 1970, when it was told."""
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """The first record that the other side did not take."""

    number: int
    why: str


class DamagedJournal(InputError):
    """A line of it is not what was written: what came behind it cannot be told in order."""


class Journal:
    """Records of one run. What `append` has returned from survives the death of this process.

    Parameters
    ----------
    folder : Path
        Made if it is not there; else the journal is read and goes on. A last line that was cut off
        in mid-write is dropped: nobody was told that it was kept.

    Raises
    ------
    DamagedJournal
        If an earlier line is damaged.
    InputError
        If the disk is full or closed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changed = threading.Condition()
        with explained(folder, ADVICE):
            make_folder(folder / "files")
            self._path = folder / "records"
            self._records, whole = read_records(self._path)
            with self._path.open("ab") as file:
                file.truncate(whole)
            sync(folder)

    @unbroken()
    def append(self, verb: str, told: Mapping[str, Any]) -> Record:
        """Add a record; durable on return."""
        with self._changed:
            record = Record(len(self._records), verb, int(time.time() * 1000), told)
            line, whole = _line(record), self._path.stat().st_size
            try:
                with explained(self.folder, ADVICE), self._path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                self._records.append(record)
            except BaseException:  # a full disk, or a signal while the disk is busy
                if len(self._records) == record.number:
                    with suppress(OSError):  # a closed disk took nothing
                        os.truncate(self._path, whole)
                raise
            self._changed.notify_all()
        return record

    @unbroken()
    def keep(self, name: str, content: bytes | Path) -> str:
        """Keep a file, or a copy of a file or folder; return its name within the journal.

        Whatever is there under the name is replaced; records that mean the old content are about to
        be followed by one that means the new.
        """
        target = self.folder / "files" / name
        if isinstance(content, Path) and content.is_dir():
            copy_whole(content, target, ADVICE)
        else:
            with write_whole(target, ADVICE) as part:
                if isinstance(content, Path):
                    shutil.copyfile(content, part)
                else:
                    part.write_bytes(content)
        return name

    def path(self, name: str) -> Path:
        """Where a kept file is."""
        return self.folder / "files" / name

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records))

    def after(self, number: int, *, seconds: float) -> Record | None:
        """Return the record of that number, waiting for it a while; None if it does not come."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._records) > number, timeout=seconds)
            return self._records[number] if len(self._records) > number else None

    def wake(self) -> None:
        """End the waiting of `after`."""
        with self._changed:
            self._changed.notify_all()

    @property
    def sent(self) -> int:
        """How many records were sent; all have arrived but those from `refused` on."""
        try:
            return int((self.folder / "sent").read_text())
        except (OSError, ValueError):  # then they are sent again, which changes nothing
            return 0

    @sent.setter
    def sent(self, number: int) -> None:
        with write_whole(self.folder / "sent", ADVICE) as part:
            part.write_text(str(number))

    @property
    def all_sent(self) -> bool:
        """Whether everything told has arrived."""
        return self.sent >= len(self) and self.refused is None

    @property
    def refused(self) -> Refused | None:
        """First record that the other side did not take; None if there is none."""
        try:
            return Refused(**json.loads((self.folder / "refused.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def skip(self, number: int, why: str) -> None:
        """Note that the other side did not take a record, and go on behind it."""
        if self.refused is None:
            with write_whole(self.folder / "refused.json", ADVICE) as part:
                part.write_text(json.dumps({"number": number, "why": why}), encoding="utf-8")
        self.sent = number + 1

    def send_again(self) -> None:
        """Go back to the first record that was not taken, if there is one."""
        if refused := self.refused:
            self.sent = min(self.sent, refused.number)
            (self.folder / "refused.json").unlink()

    @property
    def remote(self) -> dict[str, str]:
        """What the other side answered: the run's id, the version of its model."""
        try:
            found: dict[str, str] = json.loads((self.folder / "remote.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def remember(self, **answers: str) -> None:
        """Keep what the other side answered; an empty text forgets."""
        known = {name: value for name, value in {**self.remote, **answers}.items() if value}
        with write_whole(self.folder / "remote.json", ADVICE) as part:
            part.write_text(json.dumps(known), encoding="utf-8")


def _line(record: Record) -> bytes:
    told = [record.number, record.verb, record.time, record.told]
    text = json.dumps(told, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_records(path: Path) -> tuple[list[Record], int]:
    """Records of a file, and how many of its bytes they take; the file stays as it is.

    Raises
    ------
    DamagedJournal
        If a line before the last is damaged.
    """
    records: list[Record] = []
    whole = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for place, line in enumerate(lines):
        checksum, _, text = line.partition(b" ")
        if line.endswith(b"\n") and checksum == b"%08x" % zlib.crc32(text.rstrip(b"\n")):
            records.append(Record(*json.loads(text)))
            whole += len(line)
        elif place < len(lines) - 1:
            raise DamagedJournal(
                f"{path}: line {place + 1} is damaged; --fresh true starts the run over"
            )
    return records, whole
