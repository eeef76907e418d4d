"""Records as the report sees them: dictionaries read from `R/runs/<key>/<performance key>.json`.

    records = load("results/local")        # every record, ok or not, in a stable order
    current = newest(records)              # one record per accuracy key
    planned = with_missing(current, cells) # plus a `missing` entry per planned cell not run

The store writes these files; nothing here writes, and nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sffbench.errors import InputError

__all__ = ["SCHEMA", "Record", "is_ok", "load", "newest", "preferred", "with_missing"]

Record = dict[str, Any]

SCHEMA = 1
"""The newest record schema that this version reads."""

# One step for each schema that was ever written: UPGRADES[n] turns schema n into schema n + 1.
UPGRADES: dict[int, Callable[[Record], Record]] = {}


def _to_stderr(line: str) -> None:
    print(f"sffbench: {line}", file=sys.stderr)


def load(
    results_dir: str | os.PathLike[str], *, warn: Callable[[str], None] = _to_stderr
) -> list[Record]:
    """All records under `results_dir`, ordered by key, then performance key.

    Temporary files (a leading dot, or another ending than `.json`) are skipped. A file that is no
    record costs one call of `warn` with one line; it never stops the others.

    Raises:
        InputError: the folder does not exist, or a record is newer than this version can read.
    """
    root = Path(results_dir)
    if not root.is_dir():
        raise InputError(f"no results folder {str(root)!r}; `sffbench run SUITE` makes one")
    records = []
    for path in _record_files(root / "runs"):
        record = _read(path, warn)
        if record is not None:
            records.append(record)
    return records


def _record_files(runs: Path) -> Iterator[str]:
    """Paths of runs/*/*.json in order; os.scandir, because pathlib is slow over 10,000 files."""
    if not runs.is_dir():
        return
    with os.scandir(runs) as folders:
        keys = sorted(entry.path for entry in folders if entry.is_dir())
    for key in keys:
        for name in sorted(os.listdir(key)):
            if name.endswith(".json") and not name.startswith("."):
                yield os.path.join(key, name)


def _read(path: str, warn: Callable[[str], None]) -> Record | None:
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read())
    except (OSError, ValueError) as error:
        warn(f"skipped {path}: unreadable ({error})")
        return None
    if not isinstance(record, dict) or not {"schema", "status", "key", "cell"} <= record.keys():
        warn(f"skipped {path}: not a run record (schema, status, key and cell are required)")
        return None
    return _upgraded(record, path)


def _upgraded(record: Record, path: str) -> Record:
    schema = record["schema"]
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise InputError(
            f"{path}: record schema {schema!r}, but this version reads up to {SCHEMA}; "
            "upgrade sffbench"
        )
    for step in range(schema, SCHEMA):
        record = UPGRADES[step](record)
    return record


def is_ok(record: Record) -> bool:
    """Whether the run ended with metrics."""
    return bool(record["status"] == "ok")


def _preference(record: Record) -> tuple[bool, bool, str, str]:
    """ok first, any outcome before `missing`, then the newest; the last item breaks ties."""
    finished = record.get("finished_at") or record.get("started_at") or ""
    outcome = record["status"] != "missing"
    return is_ok(record), outcome, finished, record.get("performance_key") or ""


def preferred(records: Iterable[Record]) -> Record:
    """The record that stands for several of the same cell: the newest ok one, else the newest."""
    return max(records, key=_preference)


def newest(records: Iterable[Record]) -> list[Record]:
    """One record per accuracy key (see `preferred`), in order of first appearance."""
    by_key: dict[str, list[Record]] = {}
    for record in records:
        by_key.setdefault(record["key"], []).append(record)
    return [preferred(same) for same in by_key.values()]


def with_missing(records: list[Record], expected: Iterable[Mapping[str, Any]]) -> list[Record]:
    """`records` plus one entry of status `missing` per expected cell that has no record.

    An expected cell is `record["cell"]` with its accuracy `key` and, where known, its `label`
    beside the other entries: `{"key": ..., "label": ..., "model": {...}, "data": {...}, ...}`.
    """
    present = {record["key"] for record in records}
    return records + [_missing(cell) for cell in expected if cell["key"] not in present]


def _missing(cell: Mapping[str, Any]) -> Record:
    body = {name: value for name, value in cell.items() if name != "key"}
    return {
        "schema": SCHEMA,
        "status": "missing",
        "reason": "planned, not run",
        "key": cell["key"],
        "label": cell.get("label"),
        "cell": body,
    }
