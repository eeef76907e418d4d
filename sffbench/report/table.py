"""The leaderboard as text: `render(records, format="md")`.

    from sffbench.report import records, table
    print(table.render(records.load("results/local")))

A pure function of the records: the same files give the same bytes. A view is an entry of `VIEWS`:
`accuracy` prints what build.py, effects.py and overall.py compute, `cost` what costs.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sffbench.errors import unknown
from sffbench.report import cost_view, costs, identity
from sffbench.report.build import build
from sffbench.report.exports import csv_text, json_text
from sffbench.report.markdown import markdown
from sffbench.report.overall import summarise
from sffbench.report.records import Record

__all__ = ["FORMATS", "VIEWS", "render"]

FORMATS = ("md", "csv", "json")
Cells = Sequence[Mapping[str, Any]]


def render(
    records: Iterable[Record],
    format: str = "md",
    *,
    view: str | None = None,
    expected: Iterable[Mapping[str, Any]] | None = None,
) -> str:
    """One view of `records`.

    Args:
        records: as `records.load` returns them.
        format: one of `FORMATS`.
        view: one of `VIEWS`; left out, accuracy, unless all weights were random.
        expected: cells of a suite, each `record["cell"]` with its accuracy key as `key`; those
            without a record are shown as `missing`.

    Raises:
        InputError: an unknown view or format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    everything, planned = list(records), list(expected or ())
    if view is None:
        view = "cost" if everything and all(map(identity.untrained, everything)) else "accuracy"
    if view not in VIEWS:
        raise unknown("view", view, VIEWS)
    return VIEWS[view](everything, planned, format)


def _accuracy(records: list[Record], expected: Cells, format: str) -> str:
    """Random weights are left out: their errors would look like a model's."""
    shown = [record for record in records if not identity.untrained(record)]
    planned = [cell for cell in expected if not identity.untrained({"cell": cell})]
    boards = build(shown, expected=planned)
    if format == "csv":
        return csv_text(boards)
    if format == "json":
        return json_text(boards, summarise(boards))
    text = markdown(boards, summarise(boards))
    if num_left := len(records) - len(shown):
        text += f"\nNot shown: {num_left} runs from random weights; `--view cost` has them.\n"
    return text


def _cost(records: list[Record], expected: Cells, format: str) -> str:
    tables = costs.build(records, expected=expected)
    formats = {"md": cost_view.markdown, "csv": cost_view.csv_text, "json": cost_view.json_text}
    return formats[format](tables)


VIEWS: dict[str, Callable[[list[Record], Cells, str], str]] = {
    "accuracy": _accuracy,
    "cost": _cost,
}
