"""One line per strategy over all models, data sets and horizons of a protocol.

    for summary in summarise(boards): ...

Built where there is something to summarise: two models, or two horizons of one. Log ratios to
`full` are averaged over seeds, then over all that a model and a data cluster share (horizons,
checkpoints of the family, samplings of one source). What remains is a model x data-cluster table,
and its mean has an interval clustered both ways.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

from sffbench.report import identity, stats
from sffbench.report.board import Board, Row
from sffbench.report.effects import Baselines, Effect, losses, ratios

__all__ = ["Summary", "SummaryRow", "family", "model_family", "pooled", "summarise"]


@dataclass(frozen=True)
class SummaryRow:
    """One strategy over all models. `cells` counts (checkpoint, data set, horizon)."""

    label: str
    effect: Effect | None
    worse: tuple[int, int] | None
    is_full: bool  # the baseline of the effect
    is_zero_shot: bool  # the baseline of `worse`
    num_models: int
    num_clusters: int
    num_cells: int
    num_possible: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """The boards of one task, protocol, source and precision, and one row per strategy."""

    boards: Sequence[Board]
    models: tuple[str, ...]
    horizons: tuple[int, ...]
    rows: Sequence[SummaryRow]


def summarise(boards: Sequence[Board]) -> list[Summary]:
    """A summary for every group of boards that differ by horizon alone and hold enough to pool."""
    groups: dict[Hashable, list[Board]] = {}
    for board in boards:
        groups.setdefault(family(board), []).append(board)
    summaries = [_summary(group) for group in groups.values()]
    return [one for one in summaries if len(one.models) > 1 or len(one.horizons) > 1]


def family(board: Board) -> Hashable:
    """What boards must share to be summarised together: all but the horizon."""
    task = {name: value for name, value in board.task.items() if name != "horizon"}
    return identity.canonical(task), *board.key[1:]


def _summary(boards: list[Board]) -> Summary:
    models = {model_family(row) for board in boards for row in board.rows if not row.is_naive}
    strategies: dict[Hashable, list[tuple[Board, Row]]] = {}
    for board in boards:
        for row in board.rows:
            if not row.is_naive:
                key = identity.strategy_key(row.sample)
                strategies.setdefault(key, []).append((board, row))
    ordered = sorted(strategies.values(), key=_strategy_order)
    baselines = {id(board): Baselines.of(board) for board in boards}
    possible = _num_possible(boards)
    return Summary(
        boards=boards,
        models=tuple(sorted(models)),
        horizons=tuple(sorted({board.horizon for board in boards})),
        rows=[_summary_row(members, baselines, possible) for members in ordered],
    )


def model_family(row: Row) -> str:
    """The model without its preset: checkpoints of one family are not independent of each other."""
    return str(row.sample["cell"]["model"]["name"])


def _strategy_order(members: list[tuple[Board, Row]]) -> tuple[object, ...]:
    _, _, order, label, key = identity.row_order(members[0][1].sample)
    return order, label, str(key)


def _num_possible(boards: list[Board]) -> int:
    """(checkpoint, data set, horizon) combinations that the boards span."""
    return sum(
        len({row.unit for row in board.rows if not row.is_naive}) * len(board.columns)
        for board in boards
    )


def _summary_row(
    members: list[tuple[Board, Row]], baselines: dict[int, Baselines], possible: int
) -> SummaryRow:
    full = [(board, row, baselines[id(board)].find(row, "full")) for board, row in members]
    zero_shot = [
        (board, row, baselines[id(board)].find(row, "zero-shot")) for board, row in members
    ]
    effect = _effect(full)
    counts = [losses(row, baseline, board) for board, row, baseline in zero_shot]
    known = [count for count in counts if count is not None]
    flags = [flag for flag in identity.FLAGS if any(flag in row.flagged for _, row in members)]
    unranked = sorted({f"unranked: {row.unranked}" for _, row in members if row.unranked})
    return SummaryRow(
        label=members[0][1].label,
        effect=effect,
        worse=(sum(k for k, _ in known), sum(n for _, n in known)) if known else None,
        is_full=all(row is baseline for _, row, baseline in full),
        is_zero_shot=all(row is baseline for _, row, baseline in zero_shot),
        num_models=len({model_family(row) for _, row in members}),
        num_clusters=effect.num_clusters if effect else 0,
        num_cells=sum(row.num_ok for _, row in members),
        num_possible=possible,
        flags=(*flags, *unranked),
    )


def _effect(members: list[tuple[Board, Row, Row | None]]) -> Effect | None:
    values: dict[tuple[str, str], list[float]] = {}
    for board, row, baseline in members:
        for cluster, found in (ratios(row, baseline, board) if baseline else {}).items():
            values.setdefault((model_family(row), cluster), []).extend(found)
    return pooled(values) if values else None


def pooled(values: Mapping[tuple[str, str], Collection[float]]) -> Effect:
    """Average within (model, cluster), then over those cells; clustered by data if one model."""
    num_cells = sum(map(len, values.values()))
    cells: dict[tuple[Hashable, Hashable], float] = {
        cell: stats.mean(found) for cell, found in values.items()
    }
    models, clusters = {model for model, _ in cells}, {cluster for _, cluster in cells}
    if len(models) == 1:
        return Effect(stats.one_way(cells.values()), num_cells, len(clusters))
    return Effect(stats.two_way(cells), num_cells, len(clusters))
