"""From records to boards.

    boards = build(records)                     # never mixes protocols, sources, horizons or tasks
    boards = build(records, expected=cells)     # planned cells without a record become `missing`

Accuracy comes from one record per cell (see records.newest), cost from all records of one device;
the trials of a search count as one record in both (see trials.fold).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from sffbench.report import identity
from sffbench.report.board import Board, Cell, Column, Cost, Row, finite
from sffbench.report.records import Record, is_ok, newest, preferred, with_missing
from sffbench.report.trials import fold, fold_by_device

__all__ = ["build", "grouped"]


def build(
    records: Iterable[Record], *, expected: Iterable[Mapping[str, Any]] | None = None
) -> list[Board]:
    """The boards of `records`, ordered by task, protocol, source, precision and horizon.

    Args:
        records: what `records.load` returns; several performance records of one cell are welcome.
        expected: planned cells (see `records.with_missing`); without them a cell counts as missing
            where another row has the data set, or another data set of the row has the seed.
    """
    everything = list(records)
    current = fold(with_missing(newest(everything), expected or ()))
    timed = grouped((r for r in fold_by_device(everything) if is_ok(r)), identity.board_key)
    groups = grouped(current, identity.board_key)
    boards = [_board(key, group, timed.get(key, [])) for key, group in groups.items()]
    return sorted(boards, key=_board_order)


def grouped(
    records: Iterable[Record], key: Callable[[Record], Hashable]
) -> dict[Any, list[Record]]:
    """Records by what `key` says of them, in order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _board_order(board: Board) -> tuple[Any, ...]:
    # real before synthetic; horizons as numbers, so that 96 comes before 192
    name = (str(board.task["name"]), str(board.protocol["name"]), board.protocol.get("version", 0))
    return *name, board.source, board.horizon, board.key


def _board(key: tuple[str, ...], records: list[Record], timed: list[Record]) -> Board:
    columns = _columns(records)
    cost_device = _most_common(identity.device(record) for record in timed)
    by_row = grouped(records, identity.row_key)
    timed_by_row = grouped(timed, identity.row_key)
    samples = {key: _sample(group) for key, group in by_row.items()}
    ordered = sorted(samples, key=lambda row_key: identity.row_order(samples[row_key]))
    suffixes = _suffixes([samples[row_key] for row_key in ordered])
    rows = [
        _row(samples[k], by_row[k], timed_by_row.get(k, []), columns, cost_device or "", suffix)
        for k, suffix in zip(ordered, suffixes, strict=True)
    ]
    task, rules, source, precision = key
    return Board(
        key=key,
        task=json.loads(task),
        protocol=json.loads(rules),
        source=source,
        precision=precision,
        columns=columns,
        rows=rows,
        devices=tuple(sorted({identity.device(record) for record in timed})),
        cost_device=cost_device,
        cost_on_cpu=any(
            identity.on_cpu(record) for record in timed if identity.device(record) == cost_device
        ),
    )


def _sample(records: list[Record]) -> Record:
    """A record with the row's most frequent label: suites may call one strategy by two labels."""
    name = _most_common(identity.label(record) for record in records)
    return next(record for record in records if identity.label(record) == name)


def _most_common(names: Iterable[str]) -> str | None:
    counts = Counter(names)
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _columns(records: list[Record]) -> list[Column]:
    keys = identity.columns_of(records)
    repeated = Counter(name for name, _ in keys)
    by_key = grouped(records, identity.column_key)
    return [
        Column(
            key=key,
            label=key[0] if repeated[key[0]] == 1 else f"{key[0]}@{key[1][:8]}",
            cluster=_first(identity.cluster(r) for r in by_key[key]) or key[0].lower(),
            official=by_key[key][0].get("official"),
            num_windows=_window_counts(by_key[key]),
        )
        for key in keys
    ]


def _first(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if value), None)


def _window_counts(records: list[Record]) -> tuple[int, ...]:
    counts = {(record.get("metrics") or {}).get("num_windows") for record in records}
    return tuple(sorted(count for count in counts if count is not None))


def _suffixes(samples: list[Record]) -> list[str]:
    """For each row, in order, what tells it from its namesakes ('' where nothing needs to)."""
    names = [(identity.model_name(r["cell"]["model"]), identity.label(r)) for r in samples]
    settings = [identity.settings(sample) for sample in samples]
    suffixes = []
    for position, name in enumerate(names):
        namesakes = [other for other, same in enumerate(names) if same == name]
        texts = identity.distinguishing([settings[other] for other in namesakes])
        suffixes.append(texts[namesakes.index(position)])
    return suffixes


def _row(
    sample: Record,
    records: list[Record],
    timed: list[Record],
    columns: Sequence[Column],
    cost_device: str,
    suffix: str,
) -> Row:
    by_column = grouped(records, identity.column_key)
    seeds = tuple(sorted({record["cell"]["seed"] for record in records}))
    devices = {identity.device(record) for record in records if is_ok(record)}
    return Row(
        key=identity.row_key(sample),
        unit=identity.model_unit(sample),
        model=identity.model_name(sample["cell"]["model"]),
        label=identity.label(sample),
        suffix=suffix,
        sample=sample,
        cells={column.key: _cell(by_column.get(column.key, []), seeds) for column in columns},
        cost=_cost([r for r in timed if identity.device(r) == cost_device], cost_device),
        devices=tuple(sorted(devices)),
        flagged=_flagged(by_column, columns),
    )


def _cell(records: list[Record], seeds: tuple[int, ...]) -> Cell:
    by_seed = grouped(records, lambda record: record["cell"]["seed"])
    return Cell({seed: preferred(same) for seed, same in by_seed.items()}, seeds)


def _cost(timed: list[Record], device: str) -> Cost:
    costs = [record.get("cost") or {} for record in timed]
    trained = [cost for cost in costs if cost.get("train_windows")]  # the others take no steps
    peaks = _values(costs, "peak_memory_bytes")
    return Cost(
        device=device,
        num_steps=_middle(_values(trained, "num_steps")),
        train_s=_middle(_spent(trained, "s")),
        train_cpu_s=_middle(_spent(trained, "cpu_s")),
        train_windows_per_s=_middle(_values(costs, "train_windows_per_s")),
        test_windows_per_s=_middle(_values(costs, "test_windows_per_s")),
        train_windows_per_cpu_s=_middle(_values(costs, "train_windows_per_cpu_s")),
        test_windows_per_cpu_s=_middle(_values(costs, "test_windows_per_cpu_s")),
        peak_memory_bytes=int(max(peaks)) if peaks else None,
    )


def _values(costs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [cost[name] for cost in costs if finite(cost.get(name))]


def _spent(costs: Sequence[Mapping[str, Any]], unit: str) -> list[float]:
    """Seconds of preparation and steps; older records lack the former on the processor."""
    known = [cost for cost in costs if finite(cost.get(f"train_{unit}"))]
    return [cost[f"train_{unit}"] + cost.get(f"prepare_{unit}", 0.0) for cost in known]


def _middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _flagged(
    by_column: Mapping[Any, list[Record]], columns: Sequence[Column]
) -> dict[str, tuple[str, ...]]:
    present = [column for column in columns if column.key in by_column]
    raised = {
        column.label: set().union(*(identity.flags(record) for record in by_column[column.key]))
        for column in present
    }
    flagged = {}
    for flag in identity.FLAGS:
        labels = tuple(label for label, found in raised.items() if flag in found)
        if labels:
            flagged[flag] = () if len(labels) == len(present) else labels
    return flagged
