"""How a row compares with a baseline of the same model: the effect, its interval, and transfer.

    baselines = Baselines.of(board)
    against(row, baselines.find(row, "full"), board)       # -> Effect | None
    losses(row, baselines.find(row, "zero-shot"), board)   # -> (cells worse, cells compared)

An effect is a mean log error ratio. Data sets that share a cluster are averaged first, so that two
samplings of one transformer have one voice, in the mean and in the interval alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from sffbench.report import stats
from sffbench.report.board import Board, Cell, Column, Row

__all__ = ["Baselines", "Effect", "against", "leaders", "losses", "ratios"]


@dataclass(frozen=True)
class Effect:
    """A mean log ratio with its 95 % interval, and how many cells and clusters it stands on."""

    interval: stats.Interval
    num_cells: int
    num_clusters: int

    @property
    def percent(self) -> float:
        """Change of the geometric mean error, in percent."""
        return stats.percent(self.interval.centre)

    @property
    def limits(self) -> tuple[float, float] | None:
        """The interval in percent; None where a single cluster gives no spread."""
        low, high = self.interval.low, self.interval.high
        return None if low is None or high is None else (stats.percent(low), stats.percent(high))


class Baselines:
    """Finds the row of a given strategy that has the model, weights and lookback of another."""

    def __init__(self, rows: Mapping[tuple[Hashable, str], list[Row]], sole: Hashable | None):
        self._rows = rows
        self._sole = sole

    @classmethod
    def of(cls, board: Board) -> Baselines:
        """Index `board`. Naive rows borrow the baselines of its model if there is only one."""
        rows: dict[tuple[Hashable, str], list[Row]] = {}
        for row in board.rows:
            rows.setdefault((row.unit, row.strategy), []).append(row)
        units = {row.unit for row in board.rows if not row.is_naive}
        return cls(rows, next(iter(units)) if len(units) == 1 else None)

    def find(self, row: Row, strategy: str) -> Row | None:
        """The baseline row; None where there is none, or where several could be meant."""
        candidates = self.candidates(row, strategy)
        return candidates[0] if len(candidates) == 1 else None

    def candidates(self, row: Row, strategy: str) -> list[Row]:
        """The rows that could be meant by `strategy` as the baseline of `row`.

        Several rows of one strategy (two learning rates, say) are told apart by label: the one that
        is labelled with the strategy's plain name is the baseline. What a search has tuned is
        compared with what was tuned in as many trials, and the untuned with the untuned.
        """
        unit = self._sole if row.is_naive else row.unit
        rows = [one for one in self._rows.get((unit, strategy), []) if _as_tuned(row, one)]
        plain = [one for one in rows if one.label == strategy]
        return plain if len(rows) > 1 and plain else rows


def _as_tuned(row: Row, other: Row) -> bool:
    """Equal numbers of trials; a side that does not train has nothing to be tuned."""
    return row.trials == other.trials or not row.tunable or not other.tunable


def ratios(row: Row, baseline: Row, board: Board) -> dict[str, list[float]]:
    """cluster -> log error ratios of its data sets, for data sets where both rows have a number."""
    by_cluster: dict[str, list[float]] = {}
    for column in board.columns:
        errors, reference = row.cells[column.key].errors, baseline.cells[column.key].errors
        if _comparable(errors) and _comparable(reference):
            ratio = stats.log_ratio(errors, reference)
            by_cluster.setdefault(column.cluster, []).append(ratio)
    return by_cluster


def _comparable(errors: Mapping[int, float]) -> bool:
    """A ratio needs errors above zero; an exact zero is shown but cannot be compared."""
    return bool(errors) and min(errors.values()) > 0


def against(row: Row, baseline: Row | None, board: Board) -> Effect | None:
    """The row's effect against `baseline` within one board; None where nothing can be compared."""
    if baseline is None:
        return None
    by_cluster = ratios(row, baseline, board)
    if not by_cluster:
        return None
    interval = stats.one_way([stats.mean(values) for values in by_cluster.values()])
    return Effect(interval, sum(map(len, by_cluster.values())), len(by_cluster))


def losses(row: Row, baseline: Row | None, board: Board) -> tuple[int, int] | None:
    """(data sets where the row's mean error exceeds the baseline's, data sets compared)."""
    if baseline is None:
        return None
    pairs = [(row.cells[column.key], baseline.cells[column.key]) for column in board.columns]
    both = [(ours, theirs) for ours, theirs in pairs if ours.errors and theirs.errors]
    return (sum(ours.level > theirs.level for ours, theirs in both), len(both)) if both else None


def leaders(board: Board) -> set[tuple[Hashable, tuple[str, str]]]:
    """(row key, column key) of values that lead their column by more than seed spread.

    Among ranked, trained rows whose cell is not leaked: the lowest mean, if it is lower than the
    next by more than the sum of both sample deviations. One row alone leads nothing.
    """
    found = set()
    for column in board.columns:
        cells = [(row.key, row.cells[column.key]) for row in board.rows if _competes(row, column)]
        cells.sort(key=lambda item: item[1].level)
        if len(cells) > 1 and _clear(cells[0][1], cells[1][1]):
            found.add((cells[0][0], column.key))
    return found


def _competes(row: Row, column: Column) -> bool:
    leaked = row.flagged.get("leaked")
    is_leaked = leaked is not None and (not leaked or column.label in leaked)
    return row.ranked and row.trained and not is_leaked


def _clear(first: Cell, second: Cell) -> bool:
    if first.spread is None or second.spread is None:
        return False
    return second.level - first.level > first.spread + second.spread
