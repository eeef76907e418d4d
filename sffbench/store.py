"""Records on disk: one immutable JSON file a run, so that nothing finished is ever lost.

    R/runs/<accuracy key>/<performance key>.json    a finished run
    R/started/<accuracy key>.json                   a run in progress, or one whose process died

A record is written to a temporary file, fsynced and renamed, so a reader sees all of it or
nothing. A store is merged by copying files.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sffbench.errors import InputError

SCHEMA = 1
MAX_ATTEMPTS = 3  # a run that took its process down this often is recorded as failed

Record = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """The records below one folder."""

    root: Path

    def find(self, key: str, performance_key: str | None = None) -> Record | None:
        """The best record of an accuracy key: an ok one if any, else the newest; else None.

        With a performance key, that very record.
        """
        if performance_key is not None:
            return read_record(self.root / "runs" / key / f"{performance_key}.json")
        records = self._read_all(key)
        records.sort(key=lambda r: (r["status"] == "ok", r["finished_at"]))
        return records[-1] if records else None

    def state(self, key: str, performance_key: str | None = None) -> str:
        """`ok`, `n/a`, `failed`, or `missing`; with a performance key, of that very record."""
        record = self.find(key, performance_key)
        return "missing" if record is None else str(record["status"])

    def write(self, record: Record) -> Path:
        """Write a record for good; the marker of its start goes away afterwards."""
        folder = self.root / "runs" / record["key"]
        path = folder / f"{record['performance_key']}.json"
        write_json(path, record)
        if record["status"] == "ok":
            self._remove_superseded(path)
        self._marker(record["key"]).unlink(missing_ok=True)
        return path

    def mark_started(self, key: str) -> int:
        """Leave a marker that a run has begun; returns which attempt this is, from 1."""
        attempt = self.attempts(key) + 1
        write_json(self._marker(key), {"attempt": attempt})
        return attempt

    def forgive(self, key: str) -> None:
        """The run was stopped on purpose: this start was no attempt."""
        earlier = self.attempts(key) - 1
        if earlier > 0:
            write_json(self._marker(key), {"attempt": earlier})
        else:
            self._marker(key).unlink(missing_ok=True)

    def forgive_all(self, key: str) -> None:
        """Forget every attempt: somebody asked for another try."""
        self._marker(key).unlink(missing_ok=True)

    def attempts(self, key: str) -> int:
        """How many earlier attempts at this run ended with neither a record nor a goodbye."""
        try:
            return int(json.loads(self._marker(key).read_text())["attempt"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _marker(self, key: str) -> Path:
        return self.root / "started" / f"{key}.json"

    def _read_all(self, key: str) -> list[Record]:
        paths = (self.root / "runs" / key).glob("*.json")
        return [record for path in paths if (record := read_record(path)) is not None]

    def _remove_superseded(self, path: Path) -> None:
        """A success replaces the failures of the same cell; other devices' successes stay."""
        for other in path.parent.glob("*.json"):
            record = read_record(other) if other != path else None
            if record is not None and record["status"] == "failed":
                other.unlink(missing_ok=True)


def read_record(path: Path) -> Record | None:
    """The record in a file, or None where it is no whole record (it is then run again)."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and {"status", "key", "finished_at"} <= record.keys()
    return record if whole else None


def check_writable(root: Path) -> None:
    """Fail before hours of work, not after: one line where records cannot be written."""
    probe = root / "started" / f".probe.{os.getpid()}"
    write_json(probe, {})
    probe.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that the file is either absent or whole, also after a power cut."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {str(path)!r}: {error.strerror}") from error
