"""The leaderboard as text: `render(records, format="md")`.

    from sffbench.report import records, table
    print(table.render(records.load("results/local")))

A pure function of the records: the same files give the same bytes. Later views and formats are new
entries of `FORMATS`; what they print comes from build.py, effects.py and overall.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sffbench.errors import unknown
from sffbench.report.board import Board
from sffbench.report.build import build
from sffbench.report.exports import csv_text, json_text
from sffbench.report.markdown import markdown
from sffbench.report.overall import summarise
from sffbench.report.records import Record

__all__ = ["FORMATS", "render"]

FORMATS: dict[str, Callable[[Sequence[Board]], str]] = {
    "md": lambda boards: markdown(boards, summarise(boards)),
    "csv": csv_text,
    "json": lambda boards: json_text(boards, summarise(boards)),
}


def render(
    records: Iterable[Record],
    format: str = "md",
    *,
    expected: Iterable[Mapping[str, Any]] | None = None,
) -> str:
    """The accuracy view of `records`.

    Args:
        records: as `records.load` returns them.
        format: one of `FORMATS`.
        expected: cells of a suite, each `record["cell"]` with its accuracy key as `key`; those
            without a record are shown as `missing`.

    Raises:
        InputError: an unknown format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return FORMATS[format](build(records, expected=expected))
