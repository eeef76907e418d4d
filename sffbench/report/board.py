"""What a table consists of: one board is one table, its rows are strategies, its columns data sets.

A board holds full-precision values and no text. build.py makes boards from records, effects.py and
overall.py compare their rows, markdown.py and exports.py print them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sffbench.report import identity, stats
from sffbench.report.records import Record, is_ok

__all__ = ["MIN_SEEDS", "Board", "Cell", "Column", "Cost", "Row", "finite"]

MIN_SEEDS = 3
"""Seeds that a ranked row needs in every data set (honesty rule 4)."""

# No seed can change these: one run is all there is, and they are references, not competitors.
REFERENCES = frozenset({"last-value", "window-mean", "seasonal-naive", "zero-shot"})


@dataclass(frozen=True)
class Column:
    """One data set. `label` carries a piece of the hash where one name has several contents."""

    key: tuple[str, str]
    label: str
    cluster: str
    official: bool | None
    num_windows: tuple[
        int, ...
    ]  # distinct counts of scored test windows; more than one is a defect

    @property
    def name(self) -> str:
        """The data set's name in the catalog."""
        return self.key[0]


@dataclass(frozen=True)
class Cell:
    """One row in one data set: the record of each seed, and the seeds that ought to be there."""

    by_seed: Mapping[int, Record]
    seeds: tuple[int, ...]

    @cached_property
    def errors(self) -> dict[int, float]:
        """seed -> test MSE, for runs that ended with a finite one."""
        return self.metric("mse")

    @property
    def level(self) -> float:
        """Mean error over seeds; only where there is one."""
        return stats.mean(self.errors.values())

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the error over seeds; None for fewer than two."""
        return stats.sample_sd(self.errors.values())

    def metric(self, name: str) -> dict[int, float]:
        """seed -> metric, finite values of ok runs only."""
        values: dict[int, Any] = {
            seed: (record.get("metrics") or {}).get(name)
            for seed, record in sorted(self.by_seed.items())
            if is_ok(record)
        }
        return {seed: value for seed, value in values.items() if finite(value)}

    @property
    def num_lost(self) -> int:
        """Seeds that failed or are missing beside others that succeeded."""
        return len(self.seeds) - len(self.errors)

    @property
    def status(self) -> str:
        """ok: every seed has a number; partial: some have; else failed, n/a or missing."""
        if self.errors:
            return "partial" if self.num_lost else "ok"
        outcomes = {record["status"] for record in self.by_seed.values()}
        if outcomes & {
            "failed",
            "ok",
        }:  # an ok run without a finite error is a failure of some kind
            return "failed"
        return "n/a" if "n/a" in outcomes else "missing"

    @property
    def reasons(self) -> list[str]:
        """Why seeds have no number, each reason once."""
        told = (record.get("reason") for record in self.by_seed.values() if not is_ok(record))
        return sorted({reason for reason in told if reason})


def finite(value: Any) -> bool:
    """Whether a value is a number that can be averaged."""
    return isinstance(value, int | float) and math.isfinite(value)


@dataclass(frozen=True)
class Cost:
    """Costs of a row on one device; None where no run of the row measured it there.

    Steps and seconds of training (preparation included) are medians over runs; a run that is a
    search has those of all its trials.

    Rates are windows a wall-clock second, and, on a CPU, a processor second: other work on the
    machine stretches the former and not the latter, so the latter is what tables print there.
    """

    device: str
    num_steps: float | None
    train_s: float | None
    train_cpu_s: float | None
    train_windows_per_s: float | None
    test_windows_per_s: float | None
    train_windows_per_cpu_s: float | None
    test_windows_per_cpu_s: float | None
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Row:
    """One model (or none) under one strategy."""

    key: Hashable
    unit: Hashable
    model: str
    label: str
    suffix: str  # the settings that tell it from a row with the same label
    sample: Record  # any of its records: identity fields are equal in all
    cells: Mapping[tuple[str, str], Cell]
    cost: Cost
    devices: tuple[str, ...]
    flagged: Mapping[str, tuple[str, ...]]  # flag -> labels of the flagged data sets; () means all

    @property
    def strategy(self) -> str:
        """The strategy's registry name."""
        return str(self.sample["cell"]["strategy"]["name"])

    @property
    def is_naive(self) -> bool:
        """Whether the row needs no model."""
        return self.model == "none"

    @property
    def trials(self) -> int | None:
        """How many settings a search tried for it; None where its settings were given."""
        search = self.sample["cell"].get("search")
        return None if search is None else int(search["trials"])

    @property
    def tunable(self) -> bool:
        """Whether it trains, so that a search could set its fields."""
        return identity.trains(self.sample)

    @property
    def is_reference(self) -> bool:
        """Whether no seed can change it: one run is all there is."""
        return self.strategy in REFERENCES

    @property
    def name(self) -> str:
        """Model, label and what tells the row from its namesakes, in one phrase."""
        return f"{self.model} {self.title}"

    @property
    def title(self) -> str:
        """The label, with the settings that tell it from a row with the same label."""
        return f"{self.label} ({self.suffix})" if self.suffix else self.label

    @property
    def records(self) -> list[Record]:
        """Those that the cells show, one a data set and seed."""
        return [record for cell in self.cells.values() for record in cell.by_seed.values()]

    @property
    def trained(self) -> bool:
        """Whether any run of the row saw training windows."""
        return any((record.get("cost") or {}).get("train_windows") for record in self.records)

    @property
    def overlap_unknown(self) -> bool:
        """Whether some cell's overlap with the pretraining data is not known."""
        return any(identity.overlap_unknown(record) for record in self.records)

    @property
    def complete(self) -> bool:
        """Whether every data set of the table has all its seeds."""
        return all(cell.status == "ok" for cell in self.cells.values())

    @property
    def num_ok(self) -> int:
        """Data sets with all their seeds."""
        return sum(cell.status == "ok" for cell in self.cells.values())

    @property
    def seed_counts(self) -> tuple[int, int]:
        """Fewest and most seeds with a number, over the data sets that have any."""
        counts = [len(cell.errors) for cell in self.cells.values() if cell.errors]
        return (min(counts), max(counts)) if counts else (0, 0)

    @property
    def unranked(self) -> str | None:
        """Why the row cannot be ranked; None for ranked rows and for references."""
        protocol = self.sample["cell"]["protocol"]
        if "untrained" in self.flagged:
            return "random weights"
        if not protocol.get("ranked", protocol["name"] != "quick"):
            return f"{protocol['name']} protocol"
        if not self.is_reference and 0 < self.seed_counts[0] < MIN_SEEDS:
            return f"fewer than {MIN_SEEDS} seeds"
        return None

    @property
    def ranked(self) -> bool:
        """Whether the row competes: complete, enough seeds, a ranked protocol, no reference."""
        return self.complete and self.unranked is None and not self.is_reference


@dataclass(frozen=True)
class Board:
    """One table: everything in it shares task, horizon, resolved protocol, source and precision."""

    key: tuple[str, ...]
    task: Mapping[str, Any]
    protocol: Mapping[str, Any]
    source: str
    precision: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    devices: tuple[str, ...]
    cost_device: str | None
    cost_on_cpu: bool

    @property
    def timed(self) -> bool:
        """Whether the budget is a time, so that the results depend on the machine."""
        return self.protocol.get("train_s") is not None

    @property
    def uneven(self) -> bool:
        """Whether rows differ in steps or seconds by the rules, so that a reader must see both."""
        return self.timed or any(row.trials for row in self.rows)

    @property
    def horizon(self) -> int:
        """Steps forecast (0 for tasks without a horizon)."""
        return int(self.task.get("horizon") or 0)

    @property
    def models(self) -> list[str]:
        """The distinct models, without the naive rows."""
        return sorted({row.model for row in self.rows if not row.is_naive})
