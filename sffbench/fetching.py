"""What `sffbench fetch` does: data sets and presets of models, brought and reported together.

    rows = fetch(["ETTh1", "chronos:bolt-small"], Path("data"), None)
    print(text(rows))

A name with a colon is a preset, whose weights go to the cache; any other is a data set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sffbench import models
from sffbench.errors import InputError

Row = dict[str, Any]


def fetch(names: Sequence[str], root: Path, from_dir: Path | None) -> list[Row]:
    """One row for each name, data sets first; without names, of all data sets.

    What can be had is brought, then `InputError` says what could not, one line a failure.
    """
    presets = [name for name in names if ":" in name]
    datasets = [name for name in names if ":" not in name]
    if models_alone := [name for name in datasets if name in models.names()]:
        raise InputError(
            f"{models_alone[0]!r} is a model: name a preset of it, as `sffbench list models` does"
        )
    rows: list[Row] = []
    failures: list[str] = []
    try:
        rows += _datasets(datasets, root, from_dir) if datasets or not names else []
    except InputError as error:
        failures.append(str(error))
    try:
        rows += _weights(presets, from_dir) if presets else []
    except InputError as error:
        failures.append(str(error))
    if failures:
        raise InputError("\n".join(failures))
    return rows


def text(rows: Sequence[Row]) -> str:
    """A line for each row: what was done, the name, the file or folder."""
    return "\n".join(f"{row['action']:>10}  {row['name']}  {row['file']}" for row in rows)


def _datasets(names: Sequence[str], root: Path, from_dir: Path | None) -> list[Row]:
    from sffbench.data.fetch import fetch

    return [
        {"name": f.name, "file": str(f.path), "sha256": f.sha256, "action": f.action}
        for f in fetch(names, root, from_dir=from_dir)
    ]


def _weights(names: Sequence[str], from_dir: Path | None) -> list[Row]:
    from sffbench.models.fetch import fetch

    _quiet()
    found = fetch(names, from_dir=from_dir)
    for each in found:
        if each.note:
            print(f"sffbench: {each.name}: {each.note}", file=sys.stderr)
    return [
        {
            "name": each.name,
            "file": str(each.path),
            "sha256": each.sha256,
            "action": each.action,
            "commit": each.commit,
        }
        for each in found
    ]


def _quiet() -> None:
    """The hub's client says on stderr only what a person is there to read: bars, no advice."""
    from huggingface_hub import utils

    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]
