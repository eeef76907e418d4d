"""Which rows a user means by a word: a label as a table prints it, or a strategy with its fields.

rows_called("sff", boards)              # [(board, row), ...]: one strategy, in every table
rows_called("sff alpha=0.7", boards)    # the same where a suite labelled it otherwise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sffbench.errors import InputError, unknown
from sffbench.report import identity
from sffbench.report.board import Board, Row

__all__ = ["rows_called"]

Found = list[tuple[Board, Row]]


def rows_called(given: str, boards: Sequence[Board]) -> Found:
    """The rows that `given` means; never rows of two different strategies.

    Tried in this order: the title in a table (`sff (alpha=0.9)`), the label in the suite, the
    registry name with the fields it names (`sff alpha=0.9`; without fields, any).

    Raises:
        InputError: nothing is called so, or several strategies are.
    """
    everything = [(board, row) for board in boards for row in board.rows]
    name, *words = given.split() or [""]
    rules: list[Callable[[Row], bool]] = [
        lambda row: row.title == given,
        lambda row: row.label == given,
        lambda row: row.strategy == name and all(word in _fields(row) for word in words),
    ]
    for means in rules:
        if found := [(board, row) for board, row in everything if means(row)]:
            return _one_strategy(given, found)
    titles = dict.fromkeys(row.title for _, row in everything)
    raise unknown("strategy in these records", given, titles)


def _fields(row: Row) -> set[str]:
    fields = row.sample["cell"]["strategy"].get("fields") or {}
    return {f"{field}={value}" for field, value in fields.items()}


def _one_strategy(given: str, found: Found) -> Found:
    """Refuse a word that means two settings, in one table or in two."""
    settings = {identity.strategy_key(row.sample): row for _, row in found}
    places = {(board.key, row.unit): row for board, row in found}
    if len(settings) == 1 and len(places) == len(found):
        return found
    titles = sorted({row.title for _, row in found})
    if len(titles) == 1:  # of different tables, where nothing had to tell them apart
        texts = identity.distinguishing(
            [identity.settings(row.sample) for row in settings.values()]
        )
        titles = [f"{titles[0]} ({text})" for text in texts]
    raise InputError(f"{given!r} could mean any of: {', '.join(titles)}")
