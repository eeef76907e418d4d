"""Reading one CSV file in the Autoformer layout: column `date`, then a numeric column a channel.

    table = read(path, entry)                  # InputError, one line, where the file is unusable
    oddities(table, entry, path, sha256)       # one line for each thing that is odd but usable

Nothing is repaired: a benchmark that mends its data is no longer the benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sffbench.data.catalog import Entry
from sffbench.data.checksum import recorded
from sffbench.errors import InputError

Dates = NDArray[np.datetime64]


@dataclass(frozen=True, eq=False)
class Table:
    """values float64 [T, C], dates [T], columns (C names)."""

    values: NDArray[np.float64]
    dates: Dates
    columns: tuple[str, ...]


def read(path: Path, entry: Entry) -> Table:
    """The whole file as float64, or InputError naming the first thing that makes it unusable."""
    try:
        # Weather's header holds bytes that are no UTF-8 in some copies: only channel names are
        # affected.
        frame = pd.read_csv(path, encoding="utf-8", encoding_errors="replace")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{entry.name}: {path.name} is no CSV table ({reason})") from None
    if not len(frame.columns) or frame.columns[0] != "date":
        given = list(map(str, frame.columns[:3]))
        raise InputError(f"{entry.name}: first column of {path.name} must be 'date', not {given}")
    if len(frame.columns) < 2 or frame.empty:
        raise InputError(f"{entry.name}: {path.name} has no values (shape {frame.shape})")
    channels = frame.iloc[:, 1:]
    return Table(
        values=_numbers(channels, entry),
        dates=_dates(frame["date"], entry),
        columns=tuple(map(str, channels.columns)),
    )


def _numbers(channels: pd.DataFrame, entry: Entry) -> NDArray[np.float64]:
    for column in channels.columns:
        if channels[column].dtype.kind not in "iuf":
            cells = channels[column]
            bad = cells[pd.to_numeric(cells, errors="coerce").isna()]
            where = f": {bad.iloc[0]!r} in {_row(int(bad.index[0]))}" if len(bad) else ""
            raise InputError(f"{entry.name}: column {column!r} is not numeric{where}")
    values = np.ascontiguousarray(channels.to_numpy(np.float64))
    if not np.isfinite(values).all():
        row, channel = np.argwhere(~np.isfinite(values))[0]
        column = channels.columns[channel]
        raise InputError(f"{entry.name}: {values[row, channel]} in {_row(row)}, column {column!r}")
    return values


def _dates(column: pd.Series, entry: Entry) -> Dates:
    try:
        stamps = pd.to_datetime(column.astype(str))
    except ValueError as error:
        raise InputError(f"{entry.name}: unreadable date ({str(error).splitlines()[0]})") from None
    dates = stamps.to_numpy("datetime64[s]")
    if np.isnat(dates).any():
        raise InputError(f"{entry.name}: no date in {_row(np.flatnonzero(np.isnat(dates))[0])}")
    backward = np.flatnonzero(np.diff(dates) < np.timedelta64(0, "s"))
    if len(backward):
        later, earlier = column.iloc[backward[0]], column.iloc[backward[0] + 1]
        row = _row(backward[0] + 1)
        raise InputError(f"{entry.name}: dates decrease in {row}: {earlier} after {later}")
    return dates


def _row(index: int | np.integer) -> str:
    """Row of the table as a line number of the file: the header is line 1."""
    return f"line {int(index) + 2}"


def oddities(table: Table, entry: Entry, path: Path, sha256: str) -> tuple[str, ...]:
    """Warnings about digest, shape, sentinels and stamps, a line each; none for a clean file."""
    return (
        *_digest_warnings(entry, path, sha256),
        *_shape_warnings(table, entry),
        *_sentinel_warnings(table, entry),
        *_stamp_warnings(table.dates, entry),
    )


def _digest_warnings(entry: Entry, path: Path, sha256: str) -> list[str]:
    if entry.sha256:
        if sha256 in entry.sha256:
            return []
        return [f"{path.name} is not the catalog's file (SHA-256 {sha256[:12]}...)"]
    if recorded(path) not in (None, sha256):
        return [f"{path.name} has changed since it was fetched (SHA-256 {sha256[:12]}...)"]
    return [f"no digest of {entry.name} is published: this file cannot be called official"]


def _shape_warnings(table: Table, entry: Entry) -> list[str]:
    num_rows, num_channels = table.values.shape
    found = []
    if entry.num_rows not in (None, num_rows):
        found.append(f"{num_rows} rows, the catalog says {entry.num_rows}")
    if entry.num_channels not in (None, num_channels):
        found.append(f"{num_channels} channels, the catalog says {entry.num_channels}")
    return found


def _sentinel_warnings(table: Table, entry: Entry) -> list[str]:
    found = []
    for sentinel in entry.sentinels:
        counts = (table.values == sentinel).sum(axis=0)
        cells = [f"{table.columns[c]} {counts[c]}" for c in np.flatnonzero(counts)]
        if cells:
            found.append(f"sentinels {sentinel:g}: {', '.join(cells)}")
    return found


def _stamp_warnings(dates: Dates, entry: Entry) -> list[str]:
    alias = entry.frequency
    step = np.timedelta64(pd.Timedelta(alias if alias[0].isdigit() else f"1{alias}"))
    steps = np.diff(dates)
    duplicate = np.flatnonzero(steps == np.timedelta64(0, "s"))
    gaps = np.flatnonzero(steps > step)
    short = (steps > np.timedelta64(0, "s")) & (steps < step)
    found = []
    if len(duplicate):
        found.append(
            f"{_times(len(duplicate), 'duplicate stamp')}, first {_stamp(dates[duplicate[0]])}"
        )
    if len(gaps):
        longest = gaps[np.argmax(steps[gaps])]
        minutes = int(steps[longest] / np.timedelta64(1, "m"))
        end = _stamp(dates[longest + 1])
        found.append(f"{_times(len(gaps), 'gap')}, longest {minutes} minutes until {end}")
    if short.any():
        found.append(f"{int(short.sum())} steps shorter than the frequency {alias!r}")
    return found


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _stamp(date: np.datetime64) -> str:
    return str(date.astype("datetime64[m]")).replace("T", " ")
