"""Boards as Markdown: complete rows, incomplete rows below, footnotes below those.

print(markdown(boards, summarise(boards)))
"""

from __future__ import annotations

from collections.abc import Sequence

from sffbench.report import identity
from sffbench.report.board import Board, Cell, Row
from sffbench.report.effects import Baselines, Effect, against, leaders, losses
from sffbench.report.notes import notes, rate_unit, summary_notes, summary_title, title
from sffbench.report.overall import Summary, SummaryRow

__all__ = ["effect_text", "error_text", "markdown", "pipe_table", "quantity"]


MAX_MIXED = 16
"""Complete rows up to which ranked and unranked ones share a table."""


def markdown(boards: Sequence[Board], summaries: Sequence[Summary]) -> str:
    """All boards and summaries as one document."""
    sections = [_summary_section(summary, boards) for summary in summaries]
    sections += [_board_section(board, boards) for board in boards]
    return "\n".join(sections) if sections else "No records.\n"


def _board_section(board: Board, boards: Sequence[Board]) -> str:
    parts = [f"### {title(board, boards)}", ""]
    for heading, rows in _sections(board):
        parts += [*([heading, ""] if heading else []), _board_table(board, rows), ""]
    return "\n".join(parts + [f"- {line}" for line in notes(board)]) + "\n"


def _sections(board: Board) -> list[tuple[str, list[Row]]]:
    """Rows by what may be concluded from them; a short table is easier to read as one."""
    complete = [row for row in board.rows if row.complete]
    incomplete = [row for row in board.rows if not row.complete]
    first, hints = complete, [row for row in complete if row.unranked]
    if len(hints) == len(complete) or len(complete) <= MAX_MIXED:
        hints = []
    else:
        first = [row for row in complete if not row.unranked]
    sections = [
        ("", first),
        (f"Complete, not ranked ({', '.join(_why(hints))}):", hints),
        ("Incomplete, not ranked:", incomplete),
    ]
    return [(heading, rows) for heading, rows in sections if rows]


def _why(rows: Sequence[Row]) -> list[str]:
    return sorted({row.unranked for row in rows if row.unranked})


def _board_table(board: Board, rows: Sequence[Row]) -> str:
    labels = [column.label for column in board.columns]
    headers = ["model", "strategy", *labels, "vs full", "worse than zero-shot", "seeds"]
    baselines, bold = Baselines.of(board), leaders(board)
    body = []
    for row in rows:
        cells = [
            _cell_text(row.cells[column.key], (row.key, column.key) in bold)
            for column in board.columns
        ]
        body.append(
            [row.model, row.title, *cells, *_comparison(row, baselines, board), *_cost(row, board)]
        )
    headers += _cost_headers(board)
    alignment = ["left"] * 2 + ["right"] * (len(headers) - 4) + ["left"] * 2
    return pipe_table(headers, body, alignment)


def _cost_headers(board: Board) -> list[str]:
    unit = rate_unit(board)
    spent = ["steps", f"train {unit}"] if board.uneven else []
    return [*spent, f"train windows/{unit}", f"test windows/{unit}", "peak MiB", "device", "flags"]


def pipe_table(headers: Sequence[str], body: list[list[str]], alignment: Sequence[str]) -> str:
    """A Markdown table; nothing in a cell can end it."""
    from tabulate import tabulate

    safe = [[text.replace("|", "\\|") for text in line] for line in body]
    return tabulate(safe, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def error_text(value: float) -> str:
    """Four decimals; four digits where a sentinel or a divergence makes the error huge."""
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"


def _cell_text(cell: Cell, bold: bool) -> str:
    if not cell.errors:
        return cell.status
    text = error_text(cell.level)
    text = f"**{text}**" if bold else text
    if cell.spread is not None:
        text += f" ±{error_text(cell.spread)}"
    if cell.num_lost:
        text += f" ({len(cell.errors)}/{len(cell.seeds)} seeds)"
    return text


def effect_text(effect: Effect | None, num_cells: int) -> str:
    """`-1.20% [-3.00, +0.60]`, with `(4/6)` where cells are lacking; `n/a` without a baseline."""
    if effect is None:
        return "n/a"
    limits = effect.limits
    inside = f"{limits[0]:+.2f}, {limits[1]:+.2f}" if limits else "no interval: one cluster"
    part = f" ({effect.num_cells}/{num_cells})" if effect.num_cells < num_cells else ""
    return f"{effect.percent:+.2f}% [{inside}]{part}"


def _comparison(row: Row, baselines: Baselines, board: Board) -> list[str]:
    full, zero_shot = baselines.find(row, "full"), baselines.find(row, "zero-shot")
    effect = effect_text(against(row, full, board), len(board.columns))
    worse = losses(row, zero_shot, board)
    fewest, most = row.seed_counts
    return [
        "reference" if row is full else effect,
        "reference" if row is zero_shot else _fraction(worse),
        str(most) if fewest == most else f"{fewest}-{most}",
    ]


def _fraction(counts: tuple[int, int] | None) -> str:
    return "n/a" if counts is None else f"{counts[0]}/{counts[1]}"


def _cost(row: Row, board: Board) -> list[str]:
    cost = row.cost
    mebibytes = None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 2**20
    train, test = (
        (cost.train_windows_per_cpu_s, cost.test_windows_per_cpu_s)
        if board.cost_on_cpu
        else (cost.train_windows_per_s, cost.test_windows_per_s)
    )
    seconds = cost.train_cpu_s if board.cost_on_cpu else cost.train_s
    spent = [quantity(cost.num_steps), quantity(seconds)] if board.uneven else []
    return [
        *spent,
        quantity(train),
        quantity(test),
        quantity(mebibytes),
        _devices(row, board) or "n/a",
        _flags(row),
    ]


def quantity(value: float | None) -> str:
    """Whole numbers with commas from 100 on, three digits below; `n/a` for None."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _devices(row: Row, board: Board) -> str:
    several = len(board.devices) > 1
    return ", ".join(
        identity.device_name(device) + ("*" if several and device == board.cost_device else "")
        for device in row.devices
    )


def _flags(row: Row) -> str:
    parts = [
        f"[{flag}: {', '.join(labels)}]" if labels else f"[{flag}]"
        for flag, labels in row.flagged.items()
    ]
    if row.unranked:
        parts.append(f"[unranked: {row.unranked}]")
    return " ".join(parts)


def _summary_section(summary: Summary, boards: Sequence[Board]) -> str:
    headers = ["strategy", "vs full", "worse than zero-shot", "models", "cells", "flags"]
    body = [_summary_line(row) for row in summary.rows]
    alignment = ["left", *["right"] * 4, "left"]
    lines = [f"- {line}" for line in summary_notes(summary)]
    parts = [
        f"### {summary_title(summary, boards)}",
        "",
        pipe_table(headers, body, alignment),
        "",
        *lines,
    ]
    return "\n".join(parts) + "\n"


def _summary_line(row: SummaryRow) -> list[str]:
    return [
        row.label,
        "reference" if row.is_full else effect_text(row.effect, row.num_possible),
        "reference" if row.is_zero_shot else _fraction(row.worse),
        str(row.num_models),
        f"{row.num_cells}/{row.num_possible}",
        " ".join(f"[{flag}]" for flag in row.flags),
    ]
