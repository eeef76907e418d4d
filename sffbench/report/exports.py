"""Boards for programs: JSON with everything the tables show, CSV with one line per cell and seed.

    json_text(boards, summarise(boards))
    csv_text(boards)

Full precision in both. docs/columns.md describes every field.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sffbench.report import identity, stats
from sffbench.report.board import Board, Cell, Column, Row
from sffbench.report.effects import Baselines, Effect, against, leaders, losses
from sffbench.report.notes import notes, summary_notes, summary_title, title
from sffbench.report.overall import Summary, SummaryRow
from sffbench.report.records import Record

__all__ = ["CSV_COLUMNS", "SCHEMA", "csv_text", "effect_json", "json_text"]

SCHEMA = 1
"""Version of the JSON layout; raised with every incompatible change."""

METRICS = ("mse", "mae", "mase")


def json_text(boards: Sequence[Board], summaries: Sequence[Summary]) -> str:
    """{"schema": 1, "tables": [...], "summaries": [...]}; never NaN or infinity."""
    document = {
        "schema": SCHEMA,
        "tables": [_board(board, boards) for board in boards],
        "summaries": [_summary(summary, boards) for summary in summaries],
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _board(board: Board, boards: Sequence[Board]) -> dict[str, Any]:
    baselines, bold = Baselines.of(board), leaders(board)
    return {
        "title": title(board, boards),
        "task": board.task,
        "protocol": board.protocol,
        "source": board.source,
        "precision": board.precision,
        "columns": [_column(column) for column in board.columns],
        "devices": list(board.devices),
        "cost_device": board.cost_device,
        "rows": [_row(row, board, baselines, bold) for row in board.rows],
        "notes": notes(board),
    }


def _column(column: Column) -> dict[str, Any]:
    return {
        "label": column.label,
        "name": column.name,
        "sha256": column.key[1] or None,
        "cluster": column.cluster,
        "official": column.official,
        "num_windows": list(column.num_windows),
    }


def _row(row: Row, board: Board, baselines: Baselines, bold: set[Any]) -> dict[str, Any]:
    cell = row.sample["cell"]
    full, zero_shot = baselines.find(row, "full"), baselines.find(row, "zero-shot")
    return {
        "model": cell["model"],
        "strategy": cell["strategy"],
        "label": row.label,
        "suffix": row.suffix,
        "lookback": None if row.is_naive else cell.get("lookback"),
        "lr": cell.get("lr"),
        "trials": row.trials,
        "complete": row.complete,
        "ranked": row.ranked,
        "unranked": row.unranked,
        "flags": {flag: list(labels) for flag, labels in row.flagged.items()},
        "cells": {
            column.label: _cell(row.cells[column.key], (row.key, column.key) in bold)
            for column in board.columns
        },
        "is_full": row is full,
        "is_zero_shot": row is zero_shot,
        "vs_full": effect_json(against(row, full, board)),
        "worse_than_zero_shot": _counts(losses(row, zero_shot, board)),
        "num_seeds": list(row.seed_counts),
        "cost": {
            "device": row.cost.device or None,
            "num_steps": row.cost.num_steps,
            "train_s": row.cost.train_s,
            "train_cpu_s": row.cost.train_cpu_s,
            "train_windows_per_s": row.cost.train_windows_per_s,
            "test_windows_per_s": row.cost.test_windows_per_s,
            "train_windows_per_cpu_s": row.cost.train_windows_per_cpu_s,
            "test_windows_per_cpu_s": row.cost.test_windows_per_cpu_s,
            "peak_memory_bytes": row.cost.peak_memory_bytes,
        },
        "devices": list(row.devices),
    }


def _cell(cell: Cell, leads: bool) -> dict[str, Any]:
    return {
        "status": cell.status,
        "seeds": list(cell.seeds),
        "reasons": cell.reasons,
        "leads": leads,
        **{name: _metric(cell.metric(name)) for name in METRICS},
    }


def _metric(values: dict[int, float]) -> dict[str, Any] | None:
    if not values:
        return None
    by_seed = {str(seed): value for seed, value in values.items()}
    errors = values.values()
    return {"mean": stats.mean(errors), "sd": stats.sample_sd(errors), "by_seed": by_seed}


def effect_json(effect: Effect | None) -> dict[str, Any] | None:
    """An effect with its interval, as a log ratio and in percent."""
    if effect is None:
        return None
    interval = effect.interval
    return {
        "log_ratio": interval.centre,
        "log_low": interval.low,
        "log_high": interval.high,
        "percent": effect.percent,
        "percent_limits": effect.limits,
        "level": 0.95,
        "df": interval.df,
        "num_cells": effect.num_cells,
        "num_clusters": effect.num_clusters,
    }


def _counts(counts: tuple[int, int] | None) -> dict[str, int] | None:
    return None if counts is None else {"num_worse": counts[0], "num_compared": counts[1]}


def _summary(summary: Summary, boards: Sequence[Board]) -> dict[str, Any]:
    return {
        "title": summary_title(summary, boards),
        "models": list(summary.models),
        "horizons": list(summary.horizons),
        "rows": [_summary_row(row) for row in summary.rows],
        "notes": summary_notes(summary),
    }


def _summary_row(row: SummaryRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "is_full": row.is_full,
        "is_zero_shot": row.is_zero_shot,
        "vs_full": effect_json(row.effect),
        "worse_than_zero_shot": _counts(row.worse),
        "num_models": row.num_models,
        "num_cells": row.num_cells,
        "num_possible": row.num_possible,
        "flags": list(row.flags),
    }


Reader = Callable[[Record], Any]


def _at(*path: str) -> Reader:
    """A reader of one nested entry; None where any step is absent."""

    def read(record: Record) -> Any:
        value: Any = record
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    return read


def _as_json(*path: str) -> Reader:
    read = _at(*path)
    return lambda record: identity.canonical(read(record))


def _flag(name: str) -> Reader:
    return lambda record: name in identity.flags(record)


_COST = (
    "num_steps",
    "train_s",
    "prepare_s",
    "prepare_cpu_s",
    "validate_s",
    "test_s",
    "train_windows",
    "test_windows",
    "train_windows_per_s",
    "test_windows_per_s",
    "train_cpu_s",
    "test_cpu_s",
    "train_windows_per_cpu_s",
    "test_windows_per_cpu_s",
    "warm_up_s",
    "warm_up_windows",
    "train_batch",
    "test_batch",
    "peak_memory_bytes",
    "train_peak_memory_bytes",
    "test_peak_memory_bytes",
    "num_parameters",
    "num_trained",
)
_ENVIRONMENT = (
    "device",
    "device_name",
    "threads",
    "torch",
    "python",
    "sffbench",
    "commit",
    "dirty",
)

CSV_COLUMNS: dict[str, Reader] = {
    "status": _at("status"),
    "reason": _at("reason"),
    "task": _at("cell", "task", "name"),
    "horizon": _at("cell", "task", "horizon"),
    "task_json": _as_json("cell", "task"),
    "protocol": _at("cell", "protocol", "name"),
    "protocol_version": _at("cell", "protocol", "version"),
    "protocol_json": _as_json("cell", "protocol"),
    "source": _at("cell", "data", "source"),
    "precision": _at("cell", "precision"),
    "model": _at("cell", "model", "name"),
    "preset": _at("cell", "model", "preset"),
    "model_config": _at("cell", "model", "config"),
    "model_weights": _at("cell", "model", "weights"),
    "model_options_json": _as_json("cell", "model", "options"),
    "lookback": _at("cell", "lookback"),
    "lr": _at("cell", "lr"),
    "strategy": _at("cell", "strategy", "name"),
    "label": identity.label,
    "strategy_version": _at("cell", "strategy", "version"),
    "strategy_fields_json": _as_json("cell", "strategy", "fields"),
    "strategy_plugin": _at("cell", "strategy", "plugin"),
    "trials": _at("cell", "search", "trials"),
    "trial": _at("search", "trial"),
    "trial_point_json": _as_json("search", "point"),
    "dataset": _at("cell", "data", "name"),
    "cluster": identity.cluster,
    "data_sha256": _at("cell", "data", "sha256"),
    "data_official": _at("official"),
    "seed": _at("cell", "seed"),
    **{name: _at("metrics", name) for name in (*METRICS, "num_windows", "num_starts")},
    "oracle_mse": _at("metrics", "oracle", "mse"),
    "selected_step": _at("validation", "selected_step"),
    "validation_mse": _at("validation", "mse"),
    **{name: _at("cost", name) for name in _COST},
    **{name: _at("environment", name) for name in _ENVIRONMENT},
    **{name: _flag(name) for name in identity.FLAGS},
    "warnings": lambda record: "; ".join(record.get("warnings") or ()),
    "started_at": _at("started_at"),
    "finished_at": _at("finished_at"),
    "key": _at("key"),
    "performance_key": _at("performance_key"),
}
"""CSV column -> how it is read from a record. `unranked` is added per row."""


def csv_text(boards: Sequence[Board]) -> str:
    """One line per table cell and seed, missing ones included, in table order."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, "unranked"])
    for board in boards:
        for row, record in _lines(board):
            values = [read(record) for read in CSV_COLUMNS.values()]
            writer.writerow([*values, row.unranked])
    return buffer.getvalue()


def _lines(board: Board) -> Iterator[tuple[Row, Record]]:
    for row in board.rows:
        for column in board.columns:
            cell = row.cells[column.key]
            for seed in cell.seeds:
                yield row, cell.by_seed.get(seed) or _absent(row, column, seed)


def _absent(row: Row, column: Column, seed: int) -> Record:
    """What a cell without any record is called: the row's identity in another column."""
    data = {
        "name": column.name,
        "sha256": column.key[1] or None,
        "cluster": column.cluster,
        "official": column.official,
        "source": row.sample["cell"]["data"].get("source"),
    }
    cell = {**row.sample["cell"], "data": data, "seed": seed}
    return {"status": "missing", "label": row.label, "cell": cell}
