"""Digests of data files: computed, and recorded at the first fetch where none is published.

file_sha256(path)                  # of the bytes on disk
record(path, sha256, origin)       # electricity.csv -> electricity.csv.sha256.json beside it
recorded(path)                     # that digest, or None
"""

import hashlib
import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sffbench.errors import InputError


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(partial(stream.read, 1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def record_path(path: Path) -> Path:
    """Where the digest of a first fetch is kept."""
    return path.with_name(path.name + ".sha256.json")


def record(path: Path, sha256: str, origin: str) -> None:
    """Write the digest of the first fetch of `path`, with its origin and the time, atomically."""
    fetched_at = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"file": path.name, "sha256": sha256, "origin": origin, "fetched_at": fetched_at}
    target = record_path(path)
    temporary = target.with_name(target.name + ".part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, target)


def recorded(path: Path) -> str | None:
    """The digest recorded at the first fetch of `path`, if there is one."""
    source = record_path(path)
    if not source.is_file():
        return None
    try:
        return str(json.loads(source.read_text(encoding="utf-8"))["sha256"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{source} is damaged; delete it and fetch again") from None
