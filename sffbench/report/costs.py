"""What rows cost, one table a device: speed, memory and size, in place of accuracy.

    tables = build(records)              # one for each board and each device that ran any of it

A rate is the median over a row's ok runs on the device, a peak the largest: never a mixture of
devices. Data sets and seeds share a row, for they change no cost worth a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from sffbench.report import build as boards
from sffbench.report import identity
from sffbench.report.board import Board, Row, finite
from sffbench.report.records import Record, is_ok, preferred
from sffbench.report.trials import fold_by_device

__all__ = ["MEDIANS", "PEAKS", "CostRow", "CostTable", "build"]

MEDIANS = (
    "num_parameters",
    "num_trained",
    "train_windows_per_s",
    "test_windows_per_s",
    "train_windows_per_cpu_s",
    "test_windows_per_cpu_s",
    "train_windows",
    "warm_up_windows",
    "test_windows",
)
PEAKS = (
    "train_batch",
    "test_batch",
    "train_peak_memory_bytes",
    "test_peak_memory_bytes",
    "peak_memory_bytes",
)


@dataclass(frozen=True)
class CostRow:
    """One row of a board on one device; a value is None where no ok run there measured it."""

    row: Row
    status: str
    reason: str | None
    num_runs: int
    cost: Mapping[str, float | None]

    @property
    def lookback(self) -> int | None:
        """Values of context in a window; a row without a model has none of its own."""
        return None if self.row.is_naive else self.row.sample["cell"].get("lookback")


@dataclass(frozen=True)
class CostTable:
    """A board as one device saw it; no device where nothing has run yet."""

    board: Board
    device: str | None
    on_cpu: bool
    rows: Sequence[CostRow]


def build(
    records: Iterable[Record], *, expected: Iterable[Mapping[str, Any]] | None = None
) -> list[CostTable]:
    """Tables in the order of boards, then of devices; arguments as of the accuracy view."""
    everything = list(records)
    by_board = boards.grouped(fold_by_device(everything), identity.board_key)
    return [
        _table(board, device, by_board.get(board.key, []))
        for board in boards.build(everything, expected=expected)
        for device in _devices(by_board.get(board.key, []))
    ]


def _devices(records: Sequence[Record]) -> list[str | None]:
    return [*sorted({identity.device(record) for record in records})] or [None]


def _table(board: Board, device: str | None, records: Sequence[Record]) -> CostTable:
    here = [record for record in records if identity.device(record) == device]
    by_row = boards.grouped(here, identity.row_key)
    rows = [_row(row, by_row.get(row.key, [])) for row in board.rows]
    return CostTable(board, device, any(identity.on_cpu(record) for record in here), rows)


def _row(row: Row, records: Sequence[Record]) -> CostRow:
    ok = [record.get("cost") or {} for record in records if is_ok(record)]
    last = preferred(records) if records else {"status": "missing"}

    def values(name: str) -> list[float]:
        return [cost[name] for cost in ok if finite(cost.get(name))]

    cost: dict[str, float | None] = {
        name: median(values(name)) if values(name) else None for name in MEDIANS
    }
    cost |= {name: max(values(name), default=None) for name in PEAKS}
    return CostRow(row, last["status"], last.get("reason"), len(ok), cost)
