"""Two strategies on the records of one store: the effect of one against the other.

    for found in compare(records, "sff", "full"): ...     # one for each protocol and data source

Cells are paired: same checkpoint, data set, horizon, protocol and seeds. The effect is pooled over
them as in the overall table, and its interval is clustered as there. comparison_view.py prints it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sffbench.errors import InputError
from sffbench.report import identity, overall, stats
from sffbench.report.board import Board, Cell, Column, Row
from sffbench.report.build import build
from sffbench.report.effects import Effect
from sffbench.report.naming import rows_called
from sffbench.report.records import Record

__all__ = ["Comparison", "LeftOut", "Pair", "compare"]


@dataclass(frozen=True)
class Pair:
    """One cell that both strategies have; errors by seed, the same seeds on both sides."""

    model: str
    family: str
    data: str
    cluster: str
    horizon: int
    ours: Mapping[int, float]
    theirs: Mapping[int, float]
    steady: tuple[bool, bool]  # no seed can change this side: its one run stands for every seed

    @property
    def by_seed(self) -> dict[int, float]:
        """seed -> log(ours / theirs)."""
        return {seed: math.log(self.ours[seed] / self.theirs[seed]) for seed in self.ours}

    @property
    def log_ratio(self) -> float:
        """Mean over seeds of log(ours / theirs)."""
        return stats.log_ratio(self.ours, self.theirs)

    @property
    def outcome(self) -> str | None:
        """won, lost or tied: is the gap of the means wider than the sum of both deviations?

        None where a side has one seed of several possible: its spread is not known.
        """
        spreads = [
            0.0 if steady else stats.sample_sd(errors.values())
            for errors, steady in zip((self.ours, self.theirs), self.steady, strict=True)
        ]
        if None in spreads:
            return None
        gap = stats.mean(self.ours.values()) - stats.mean(self.theirs.values())
        if abs(gap) <= sum(spread or 0.0 for spread in spreads):
            return "tied"
        return "won" if gap < 0 else "lost"


@dataclass(frozen=True)
class LeftOut:
    """A cell that one of the two has, or was to have, and why it is not compared."""

    model: str
    data: str
    horizon: int
    why: str


@dataclass(frozen=True)
class Comparison:
    """`a` against `b` under one protocol, on real or on synthetic data."""

    a: str
    b: str
    boards: Sequence[Board]
    rows: Sequence[Row]  # of both
    pairs: Sequence[Pair]
    left_out: Sequence[LeftOut]

    @cached_property
    def effect(self) -> Effect:
        """Mean log ratio over (model, data cluster), with the interval clustered by both."""
        return overall.pooled(self._values([pair.log_ratio for pair in self.pairs]))

    @cached_property
    def over_seeds(self) -> stats.Interval | None:
        """The effect of every seed that all cells share, and a t interval over these numbers.

        The cells are held fixed: it says what other seeds would do, and nothing of other data.
        """
        shared = set.intersection(*(set(pair.ours) for pair in self.pairs))
        if len(shared) < 2:
            return None
        return stats.one_way([self._of_seed(seed) for seed in sorted(shared)])

    def _of_seed(self, seed: int) -> float:
        values = self._values([pair.by_seed[seed] for pair in self.pairs])
        return overall.pooled(values).interval.centre

    def _values(self, ratios: Sequence[float]) -> dict[tuple[str, str], list[float]]:
        values: dict[tuple[str, str], list[float]] = {}
        for pair, ratio in zip(self.pairs, ratios, strict=True):
            values.setdefault((pair.family, pair.cluster), []).append(ratio)
        return values

    def count(self, outcome: str | None) -> int:
        """Cells of one outcome."""
        return sum(pair.outcome == outcome for pair in self.pairs)

    def distinct(self, name: str) -> list[str]:
        """The different values of a field over the pairs, in order."""
        return sorted({str(getattr(pair, name)) for pair in self.pairs})


def compare(records: Iterable[Record], a: str, b: str) -> list[Comparison]:
    """The strategies called `a` and `b`, wherever a checkpoint ran under both.

    Args:
        records: as `records.load` returns them; random weights are left out.
        a: a row's label, or words that mean one row (see naming.py).
        b: the strategy to compare with.

    Raises:
        InputError: no records, an unknown or ambiguous name, one row under both names, or nothing
            that both have.
    """
    shown = [record for record in records if not identity.untrained(record)]
    if not shown:
        raise InputError("nothing to compare: the results folder holds no records of accuracy")
    boards = build(shown)
    rows_a, rows_b = rows_called(a, boards), rows_called(b, boards)
    if {row.key for _, row in rows_a} & {row.key for _, row in rows_b}:
        raise InputError(f"{a!r} and {b!r} are one strategy: name two")
    families: dict[Hashable, list[Board]] = {}
    for board in boards:
        families.setdefault(overall.family(board), []).append(board)
    found = [_comparison(group, rows_a, rows_b) for group in families.values()]
    if not any(one.pairs for one in found):
        raise InputError(
            f"{a!r} and {b!r} share no cell: no data set where one checkpoint has a number for "
            "both under one protocol and with one seed"
        )
    return [one for one in found if one.pairs]


Called = Sequence[tuple[Board, Row]]


def _comparison(boards: Sequence[Board], rows_a: Called, rows_b: Called) -> Comparison:
    names = (rows_a[0][1].title, rows_b[0][1].title)
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    rows: list[Row] = []
    for board in boards:
        of_a, of_b = _by_unit(board, rows_a), _by_unit(board, rows_b)
        rows += [*of_a.values(), *of_b.values()]
        for ours, theirs in _partners(of_a, of_b):
            for column in board.columns:
                pair, lost = _cell(board, column, (ours, theirs), names)
                pairs += [pair] if pair else []
                left_out += lost
    return Comparison(*names, boards, rows, pairs, left_out)


def _by_unit(board: Board, called: Called) -> dict[Hashable, Row]:
    return {row.unit: row for where, row in called if where is board}


def _partners(
    of_a: Mapping[Hashable, Row], of_b: Mapping[Hashable, Row]
) -> Iterator[tuple[Row | None, Row | None]]:
    """Rows of one checkpoint; a row without a model is the partner of every checkpoint."""
    units = dict.fromkeys([*of_a, *of_b])
    if len(units) > 1:
        units.pop("none", None)
    for unit in units:
        yield of_a.get(unit, of_a.get("none")), of_b.get(unit, of_b.get("none"))


Sides = tuple[Row | None, Row | None]


def _cell(
    board: Board, column: Column, sides: Sides, names: tuple[str, str]
) -> tuple[Pair | None, list[LeftOut]]:
    """The pair of one data set, and what of it cannot be paired."""
    ours, theirs = sides
    told = next(row for row in _models_first(sides))
    where = (told.model, column.label, board.horizon)
    if ours is None or theirs is None:
        return None, [LeftOut(*where, f"no run of {names[0] if ours is None else names[1]}")]
    cells = (ours.cells[column.key], theirs.cells[column.key])
    steady = (ours.is_reference, theirs.is_reference)
    errors = _same_seeds(cells, steady)
    lost = [LeftOut(*where, why) for why in _losses(names, cells, steady, errors)]
    if not errors[0] or min(min(values.values()) for values in errors) <= 0:
        return None, lost
    family = overall.model_family(told)
    pair = Pair(told.model, family, column.label, column.cluster, board.horizon, *errors, steady)
    return pair, lost


Errors = tuple[dict[int, float], dict[int, float]]


def _losses(
    names: tuple[str, str], cells: tuple[Cell, Cell], steady: tuple[bool, bool], errors: Errors
) -> Iterator[str]:
    """Runs that ended without a number, then seeds that the other side lacks."""
    for name, cell in zip(names, cells, strict=True):
        because = f": {'; '.join(cell.reasons)}" if cell.reasons else ""
        if not cell.errors:
            yield f"{name} {cell.status}{because}"
        elif cell.num_lost:
            yield f"{name}: {cell.num_lost} of {len(cell.seeds)} seeds have no number{because}"
    if not all(cell.errors for cell in cells):
        return
    for name, cell, is_steady in zip(names, cells, steady, strict=True):
        if alone := [str(seed) for seed in cell.errors if seed not in errors[0] and not is_steady]:
            yield f"{name}: seed {', '.join(alone)} without a partner"
    if errors[0] and min(min(values.values()) for values in errors) <= 0:
        yield "an error of exactly 0 has no ratio"


def _models_first(sides: Sides) -> list[Row]:
    return sorted((row for row in sides if row is not None), key=lambda row: row.is_naive)


def _same_seeds(cells: tuple[Cell, Cell], steady: tuple[bool, bool]) -> Errors:
    """The errors of both for the seeds of both; one run without a seed serves for every seed."""
    ours, theirs = cells[0].errors, cells[1].errors
    if steady[0]:
        ours = {seed: error for seed in theirs for error in ours.values()}
    elif steady[1]:
        theirs = {seed: error for seed in ours for error in theirs.values()}
    shared = sorted(ours.keys() & theirs.keys())
    return {seed: ours[seed] for seed in shared}, {seed: theirs[seed] for seed in shared}
