"""The cost view as text: Markdown, CSV and JSON of the tables that costs.py makes.

markdown(tables)
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sffbench.report import identity
from sffbench.report.costs import MEDIANS, PEAKS, CostRow, CostTable
from sffbench.report.exports import SCHEMA
from sffbench.report.markdown import pipe_table, quantity
from sffbench.report.notes import protocol_line, title

__all__ = ["CSV_COLUMNS", "csv_text", "json_text", "markdown"]

CSV_COLUMNS = (
    *("task", "horizon", "protocol", "protocol_version", "source", "precision", "device"),
    *("model", "strategy", "lookback", "status", "reason", "num_runs", *MEDIANS, *PEAKS, "flags"),
)


def markdown(tables: Sequence[CostTable]) -> str:
    """All tables as one document."""
    sections = [_section(table, tables) for table in tables]
    return "\n".join(sections) if sections else "No records.\n"


def _section(table: CostTable, tables: Sequence[CostTable]) -> str:
    unit = _unit(table)
    headers = ["model", "strategy", "parameters", "trained", "lookback"]
    headers += [f"train windows/{unit}", f"test windows/{unit}"]
    headers += ["train peak MiB", "test peak MiB", "train batch", "test batch", "device", "flags"]
    alignment = ["left"] * 2 + ["right"] * 9 + ["left"] * 2
    parts = [f"### {_title(table, tables)}", ""]
    parts += [pipe_table(headers, [_line(row, table) for row in table.rows], alignment), ""]
    return "\n".join(parts + [f"- {line}" for line in _notes(table)]) + "\n"


def _title(table: CostTable, tables: Sequence[CostTable]) -> str:
    rules = title(table.board, [one.board for one in tables])
    return f"Cost: {rules} · {_device(table)}"


def _device(table: CostTable) -> str:
    return "no device yet" if table.device is None else identity.device_name(table.device)


def _unit(table: CostTable) -> str:
    return "CPU-s" if table.on_cpu else "s"


def _line(row: CostRow, table: CostTable) -> list[str]:
    cost, kind = row.cost, "cpu_s" if table.on_cpu else "s"
    blank = "n/a" if row.num_runs else row.status
    numbers: list[float | None] = [cost["num_parameters"], cost["num_trained"], row.lookback]
    rates = [cost[f"{part}_windows_per_{kind}"] for part in ("train", "test")]
    peaks = [_mebibytes(cost[f"{part}_peak_memory_bytes"]) for part in ("train", "test")]
    batches = [cost["train_batch"], cost["test_batch"]]
    return [
        row.row.model,
        row.row.title,
        *("n/a" if value is None else f"{value:,.0f}" for value in numbers),
        *(blank if value is None else quantity(value) for value in (*rates, *peaks)),
        *("n/a" if value is None else f"{value:,.0f}" for value in batches),
        _device(table),
        " ".join(f"[{flag}]" for flag in row.row.flagged),
    ]


def _mebibytes(value: float | None) -> float | None:
    return None if value is None else value / 2**20


def _notes(table: CostTable) -> Iterator[str]:
    seconds = "processor seconds" if table.on_cpu else "seconds of wall clock"
    protocol = table.board.protocol
    yield (
        "Windows (start, channel) per second: median over runs. Train: optimiser steps alone, the "
        f"first ones left out as warm-up. Test: forecasts. {seconds.capitalize()}."
    )
    yield (
        "Peak: the largest over runs, in 2^20 bytes, "
        + ("resident in the process, Python and torch included." if table.on_cpu else "allocated.")
        + " Batch: windows in memory at once."
    )
    yield f"Protocol {protocol['name']}: {protocol_line(table.board)}."
    if any("untrained" in row.row.flagged for row in table.rows):
        yield "[untrained]: weights drawn at random: what it costs is real, what it forecasts not."
    for row in table.rows:
        if row.reason and not row.num_runs:
            yield f"{row.row.name}: {row.status}: {row.reason}"


def csv_text(tables: Sequence[CostTable]) -> str:
    """One line per table and row, full precision."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in tables:
        writer.writerows(_csv_line(row, table) for row in table.rows)
    return buffer.getvalue()


def _csv_line(row: CostRow, table: CostTable) -> dict[str, Any]:
    board = table.board
    shared = {
        "task": board.task["name"],
        "horizon": board.horizon,
        "protocol": board.protocol["name"],
        "protocol_version": board.protocol.get("version", 1),
        "source": board.source,
        "precision": board.precision,
        "device": table.device,
    }
    own = {"model": row.row.model, "strategy": row.row.title, "lookback": row.lookback}
    outcome = {"status": row.status, "reason": row.reason, "num_runs": row.num_runs}
    return shared | own | outcome | dict(row.cost) | {"flags": " ".join(row.row.flagged)}


def json_text(tables: Sequence[CostTable]) -> str:
    """{"schema": 1, "view": "cost", "tables": [...]}; never NaN or infinity."""
    document = {
        "schema": SCHEMA,
        "view": "cost",
        "tables": [_json_table(table, tables) for table in tables],
    }
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _json_table(table: CostTable, tables: Sequence[CostTable]) -> dict[str, Any]:
    board = table.board
    return {
        "title": _title(table, tables),
        "task": board.task,
        "protocol": board.protocol,
        "source": board.source,
        "precision": board.precision,
        "device": table.device,
        "on_cpu": table.on_cpu,
        "rows": [_json_row(row) for row in table.rows],
        "notes": list(_notes(table)),
    }


def _json_row(row: CostRow) -> dict[str, Any]:
    cell = row.row.sample["cell"]
    return {
        "model": cell["model"],
        "strategy": cell["strategy"],
        "label": row.row.label,
        "suffix": row.row.suffix,
        "lookback": row.lookback,
        "status": row.status,
        "reason": row.reason,
        "num_runs": row.num_runs,
        "flags": {flag: list(labels) for flag, labels in row.row.flagged.items()},
        "cost": dict(row.cost),
    }
