"""What a table says about itself in words: its title, and footnotes against misreading.

    title(board, boards)    # forecast, H = 96 · standard v1 · real data
    notes(board)            # one plain sentence or two per line
    summary_notes(summary)

If a number can mislead, the sentence belongs here, under the table, and not in the manual alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sffbench.report import identity
from sffbench.report.board import MIN_SEEDS, Board, Row
from sffbench.report.effects import Baselines
from sffbench.report.overall import Summary

__all__ = ["notes", "protocol_line", "summary_notes", "summary_rules", "summary_title", "title"]

MAX_REASONS = 12


def title(board: Board, boards: Sequence[Board]) -> str:
    """What all rows share; protocols of one name but other numbers show the difference."""
    horizon = f", H = {board.horizon}" if board.horizon else ""
    return f"{board.task['name']}{horizon} · {_rules(board, boards)}"


def summary_title(summary: Summary, boards: Sequence[Board]) -> str:
    """What all boards of the summary share."""
    return f"Overall: {summary_rules(summary.boards, boards)}"


def summary_rules(shown: Sequence[Board], boards: Sequence[Board] | None = None) -> str:
    """Task, horizons and rules of boards that differ by horizon alone, among all `boards`."""
    horizons = ", ".join(str(h) for h in sorted({board.horizon for board in shown}) if h)
    rules = _rules(shown[0], boards or shown)
    return f"{shown[0].task['name']}, H = {horizons} · {rules}"


def _rules(board: Board, boards: Sequence[Board]) -> str:
    name, version = board.protocol["name"], board.protocol.get("version", 1)
    variants = {one.key[1]: one.protocol for one in boards if one.protocol["name"] == name}
    protocols = [dict(rules) for rules in variants.values()]
    # the version is printed anyway
    for rules in protocols:
        rules.pop("version", None)
    own = list(variants).index(board.key[1])
    differing = identity.distinguishing(protocols, said_by_all=False)[own]
    parts = [f"{name} v{version}" + (f" ({differing})" if differing else "")]
    parts.append(f"{board.source} data")
    if board.precision != "float32":
        parts.append(board.precision)
    return " · ".join(parts)


def protocol_line(board: Board) -> str:
    """The resolved numbers of the protocol, without what is unset."""
    skipped = {"name", "version", "ranked"}
    numbers = [
        f"{name}={value}"
        for name, value in board.protocol.items()
        if name not in skipped and value is not None
    ]
    return ", ".join(numbers)


def notes(board: Board) -> list[str]:
    """Footnotes of one board, the most important first."""
    parts = (_warnings, _timed, _reading, _windows, _effects, _search, _ranking, _cost, _outcomes)
    return [line for part in parts for line in part(board)]


def _warnings(board: Board) -> Iterator[str]:
    if board.source == "synthetic":
        yield "[synthetic]: seeded twins of the data sets; they say nothing about real data."
    if any("tiny" in row.flagged for row in board.rows):
        yield (
            "[tiny]: a very small network shipped with the package, pretrained on synthetic "
            "series. It stands for no published checkpoint."
        )
    if any("untrained" in row.flagged for row in board.rows):
        yield (
            "[untrained]: weights drawn at random, no checkpoint. What it costs is real; what it "
            "forecasts says nothing."
        )
    if any("unrolled" in row.flagged for row in board.rows):
        yield "[unrolled]: the horizon exceeds the model's own, so it forecasts from its forecasts."
    if any("leaked" in row.flagged for row in board.rows):
        yield "[leaked]: the model's pretraining data overlap with this data set."
    unknown = sorted({row.model for row in board.rows if row.overlap_unknown})
    if unknown:
        yield f"Whether pretraining saw these data sets is not known of: {', '.join(unknown)}."
    for column in board.columns:
        if len(column.num_windows) > 1:
            counts = ", ".join(f"{count:,}" for count in column.num_windows)
            yield f"WARNING: {column.label} was scored on differing numbers of windows ({counts})."
    unofficial = [column.label for column in board.columns if column.official is False]
    if unofficial and board.source == "real":
        yield f"Not the published file, by its hash: {', '.join(unofficial)}."


def _timed(board: Board) -> Iterator[str]:
    rows = [row for row in board.rows if "timed" in row.flagged]
    if not rows:
        return
    seconds = "processor seconds" if board.cost_on_cpu else "seconds"
    yield (
        f"[timed]: every run trained for {board.protocol['train_s']:g} {seconds} of its device, "
        "preparation included and validation not, in as many steps as that allowed. On another "
        "machine the same run has other steps and another error."
    )
    devices = sorted({device for row in rows for device in row.devices})
    if len(devices) > 1:
        yield (
            "WARNING: the timed runs are of several devices, on which equal time is not equal "
            f"work: {', '.join(devices)}. Compare rows of one device only."
        )


def _reading(board: Board) -> Iterator[str]:
    yield (
        "Cells: test MSE of values standardised by the train rows, mean over seeds ± sample "
        "standard deviation where there are two seeds or more. Lower is better."
    )
    yield f"Protocol {board.protocol['name']}: {protocol_line(board)}."


def _windows(board: Board) -> Iterator[str]:
    counts = ", ".join(
        f"{column.label} {column.num_windows[0]:,}"
        for column in board.columns
        if len(column.num_windows) == 1
    )
    if board.protocol.get("num_test") is None:
        rule = "every test window, stride 1, none dropped for an incomplete last batch"
    else:
        rule = "a strided subset of the test windows"
    yield (
        f"A window is a pair (start, channel). Scored: {rule}; every row, last-value and the other "
        f"references included, on the same ones. Windows: {counts or 'none yet'}."
    )


def _effects(board: Board) -> Iterator[str]:
    clusters = sorted({column.cluster for column in board.columns})
    yield (
        "vs full: change of the geometric mean error against `full` of the same model, paired by "
        "seed; negative is better. Data sets of one cluster are averaged first, then the clusters "
        f"({', '.join(clusters)}); in brackets the 95 % t interval over clusters. The claim is "
        "limited to the row's checkpoint."
    )
    if len(board.models) == 1 and any(row.is_naive for row in board.rows):
        yield f"Rows without a model are compared with {board.models[0]}."
    yield (
        "worse than zero-shot: data sets in which the row's mean error exceeds that of the same "
        "model without any training."
    )
    baselines = Baselines.of(board)
    yield from sorted({_ambiguity(row, baselines) for row in board.rows} - {""})
    yield (
        "Not proven: an interval that contains 0 does not show equality; intervals are not "
        "corrected for the number of rows; nothing here speaks of other horizons or models."
    )


def _ambiguity(row: Row, baselines: Baselines) -> str:
    for strategy in ("full", "zero-shot"):
        if len(baselines.candidates(row, strategy)) > 1:
            return (
                f"{row.model} has several rows that could be `{strategy}`: no comparison with it."
            )
    return ""


def _search(board: Board) -> Iterator[str]:
    searched = [row for row in board.rows if row.trials]
    if not searched:
        return
    yield (
        "best of n: each seed and data set has n trials, and the one with the lowest error on all "
        "validation windows is the one that is shown. Steps and train seconds are of all trials "
        "(a failed one's are not known). vs full: against `full` with as many trials, only."
    )
    baselines = Baselines.of(board)
    for row in searched:
        if not baselines.candidates(row, "full"):
            yield f"{row.name}: no `full` has as many trials, so that it is compared with none."
    for row in searched:
        chosen = [record["search"] for record in row.records if "search" in record]
        points = Counter(identity.named(one["point"]) for one in chosen)
        counts = ", ".join(f"{point} ({count})" for point, count in sorted(points.items()))
        failed = sum(len(one["failed"]) for one in chosen)
        lost = f"; {failed} trials failed" if failed else ""
        yield f"{row.name}: chosen {counts or 'nothing yet'}{lost}."


def _ranking(board: Board) -> Iterator[str]:
    reasons = {row.unranked for row in board.rows} - {None}
    if reasons:
        yield (
            f"[unranked]: a ranked row has {MIN_SEEDS} seeds or more under a ranked protocol. "
            "Read such a row as a hint."
        )
    if any(row.ranked and row.trained for row in board.rows):
        yield (
            "Bold: lowest of the ranked trained rows by more than the sum of both deviations over "
            "seeds. Rows stand in a fixed order, not by rank."
        )


def rate_unit(board: Board) -> str:
    """Processor seconds on a CPU, where other work stretches the wall clock; seconds elsewhere."""
    return "CPU-s" if board.cost_on_cpu else "s"


def _cost(board: Board) -> Iterator[str]:
    if board.cost_device is None:
        return
    line = (
        f"train and test windows/{rate_unit(board)}: median over runs, evaluation and preparation "
        f"not counted as training; peak: largest over runs. Measured on {board.cost_device}"
    )
    others = [device for device in board.devices if device != board.cost_device]
    if not others:
        yield f"{line}."
        return
    yield (
        f"{line}, marked * (most records); costs on {', '.join(others)} are not shown beside it. "
        "Errors may come from any device."
    )


def _outcomes(board: Board) -> Iterator[str]:
    lines = [
        f"{row.name}, {column.label}: {cell.status}: {'; '.join(cell.reasons)}"
        for row in board.rows
        for column in board.columns
        if (cell := row.cells[column.key]).status != "ok" and cell.reasons
    ]
    yield from lines[:MAX_REASONS]
    if len(lines) > MAX_REASONS:
        yield f"... and {len(lines) - MAX_REASONS} more; `--format csv` lists all."


def summary_notes(summary: Summary) -> list[str]:
    """Footnotes of one summary."""
    how = (
        "averaged within each model and data cluster, with a 95 % t interval clustered both ways "
        "(df = min(models, clusters) - 1)"
        if len(summary.models) > 1
        else "averaged within each data cluster, with a 95 % t interval over clusters; "
        "the claim is limited to this model"
    )
    lines = [
        f"vs full: change of the geometric mean error against `full` of the same model, {how}.",
        f"Models: {', '.join(summary.models)}. Checkpoints of one family count as one model.",
        "worse than zero-shot, cells: counted over (checkpoint, data set, horizon).",
    ]
    if any(row.num_cells < row.num_possible for row in summary.rows):
        lines.append(
            "A strategy that lacks cells is averaged over those it has: compare it with care."
        )
    return lines
