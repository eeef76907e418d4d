"""Lock files of fetched checkpoints: what was fetched first, and whether it still is that.

    lock = measure("chronos:bolt-small", folder, hub=..., revision=..., commit=...)
    write(root / "chronos-bolt-small.lock.json", lock)
    difference(lock.files, measured(folder))            # None, or what is not the same, in words

A lock lies beside its cache entry, holds the commit that a branch meant at the first fetch and the
size and SHA-256 of each file, and is never rewritten: later fetches are compared with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sffbench.data.checksum import file_sha256
from sffbench.errors import InputError


@dataclass(frozen=True)
class Pin:
    """One file as it was first fetched."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Lock:
    """What a preset's folder held at its first fetch, and where that came from.

    `hub`, `revision` (a branch) and `commit` (what it meant then) are None for imported folders.
    """

    preset: str
    origin: str
    hub: str | None
    revision: str | None
    commit: str | None
    fetched_at: str
    files: Mapping[str, Pin]


def path_of(entry: Path) -> Path:
    """The lock of a cache entry: `chronos-bolt-small.lock.json` beside `chronos-bolt-small`."""
    return entry.with_name(entry.name + ".lock.json")


def measured(folder: Path) -> dict[str, Pin]:
    """Size and SHA-256 of each file of a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: Pin(path.stat().st_size, file_sha256(path)) for path in files}


def lock(
    preset: str,
    origin: str,
    files: Mapping[str, Pin],
    *,
    hub: str | None = None,
    revision: str | None = None,
    commit: str | None = None,
) -> Lock:
    """A lock of `files`, fetched now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Lock(preset, origin, hub, revision, commit, now, dict(files))


def difference(locked: Mapping[str, Pin], found: Mapping[str, Pin]) -> str | None:
    """What of a locked folder is absent, new or another file now; None where all is the same."""
    for name in [*locked, *found]:
        if name not in found:
            return f"{name} is gone"
        if name not in locked:
            return f"{name} is new"
        if locked[name] != found[name]:
            old, new = locked[name].sha256[:12], found[name].sha256[:12]
            return f"{name} has SHA-256 {new}..., not {old}..."
    return None


def write(path: Path, lock: Lock) -> None:
    """Write a lock, atomically."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(asdict(lock), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read(path: Path) -> Lock | None:
    """The lock at `path`, None where there is none yet; `InputError` where it is damaged."""
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = {name: Pin(**pin) for name, pin in raw.pop("files").items()}
        return Lock(**raw, files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is damaged; delete it and its folder, then fetch again") from None
