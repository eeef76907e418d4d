"""`sffbench plan`: which cells are done, and the hours that the missing ones will take.

Hours are arithmetic, not a promise: windows x floating-point operations of a window / a rate. The
operations are counted on the meta device; the rates are what one core or one GPU sustains on models
of this size. A store that already holds runs of the same model and strategy corrects the rate.
"""

from __future__ import annotations

import functools
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sffbench import data, networks
from sffbench.context import StepBudget
from sffbench.data import catalog
from sffbench.store import Record, Store
from sffbench.suite import RunSpec

if TYPE_CHECKING:
    from sffbench.models.base import LTSM

CPU_FLOPS = 40e9  # of one thread, float32, small matrices; an ordinary server core
GPU_FLOPS = 20e12  # of one data-centre GPU in the same models: they are far from filling it
TRAIN_FACTOR = 4.0  # forward, two backward products, dropout and optimiser; measured 3.5 to 4.7
OVERHEAD_S = 0.5  # data set, checkpoint and record of one cell


@dataclass(frozen=True)
class Work:
    """Windows that a cell trains on and evaluates."""

    train: int
    evaluate: int


def overview(specs: list[RunSpec], results: Path) -> dict[str, Any]:
    """Counts by state, and estimated hours of what is missing."""
    store = Store(results)
    states = {spec.key: store.state(spec.key) for spec in specs}
    todo = [spec for spec in specs if states[spec.key] == "missing"]
    # To count the operations of a network it must be built: of large random ones, too dear here.
    missing = [spec for spec in todo if not networks.is_random(spec.cell["model"])]
    done = [record for spec in specs if (record := store.find(spec.key)) is not None]
    hours = {
        "cpu_core_hours": sum(seconds(spec, CPU_FLOPS, done) for spec in missing) / 3600,
        "gpu_hours": sum(seconds(spec, GPU_FLOPS, []) for spec in missing) / 3600,
    }
    return {
        "cells": len(specs),
        "trials": sum("search" in spec.cell for spec in specs),
        "counts": dict(Counter(states.values())),
        "estimate": {name: round(value, 3) for name, value in hours.items()},
        "not_estimated": len(todo) - len(missing),
        "runs": [
            {"key": spec.key, "state": states[spec.key], "run": spec.describe()} for spec in specs
        ],
    }


def text(plan: dict[str, Any]) -> str:
    """The overview for people: groups of runs, then totals."""
    lines = [f"{run['state']:>8}  {run['key'][:12]}  {run['run']}" for run in plan["runs"]]
    counts = ", ".join(f"{count} {state}" for state, count in sorted(plan["counts"].items()))
    estimate = plan["estimate"]
    trials = f" ({plan['trials']} of them trials of a search)" if plan["trials"] else ""
    lines.append(f"{plan['cells']} cells{trials}: {counts}")
    lines.append(
        f"left, by arithmetic: about {estimate['cpu_core_hours']:.1f} CPU-core hours "
        f"(or {estimate['gpu_hours']:.2f} GPU hours)"
    )
    if plan["not_estimated"]:
        lines.append(f"not in these hours: {plan['not_estimated']} cells of random weights")
    return "\n".join(lines)


def seconds(spec: RunSpec, flops_per_s: float, done: list[Record]) -> float:
    """Estimated seconds of one cell on one device of the given rate."""
    work = workload(spec)
    if spec.cell["model"]["name"] == "none" and spec.cell["lr"] is None:  # a naive row
        return OVERHEAD_S
    measured = _measured(spec, done)
    cost = _cell_flops(spec) / flops_per_s
    train_s = measured[0] if measured else cost * TRAIN_FACTOR
    test_s = measured[1] if measured else cost
    timed_s = 0.0 if spec.cell["lr"] is None else spec.cell["protocol"].get("train_s") or 0.0
    return OVERHEAD_S + timed_s + work.train * train_s + work.evaluate * test_s


def _measured(spec: RunSpec, done: list[Record]) -> tuple[float, float] | None:
    """Seconds of a training and of a test window, medians over finished runs like this one."""
    same = [
        record["cost"]
        for record in done
        if record["status"] == "ok"
        and record["cell"]["model"] == spec.cell["model"]
        and record["cell"]["strategy"]["name"] == spec.cell["strategy"]["name"]
    ]
    if not same:
        return None
    train = [1 / c["train_windows_per_s"] for c in same if c.get("train_windows_per_s")]
    test = [1 / c["test_windows_per_s"] for c in same if c.get("test_windows_per_s")]
    return statistics.median(train or [0.0]), statistics.median(test or [0.0])


def workload(spec: RunSpec) -> Work:
    """Windows trained on and evaluated, from the closed forms; none trained on by the clock."""
    cell, protocol = spec.cell, spec.cell["protocol"]
    train, validation, test = num_windows(spec)
    tested = min(protocol["num_test"] or test, test)
    from sffbench.protocol import Protocol

    rules = Protocol(**protocol)
    if cell["lr"] is None:
        return Work(0, validation * rules.selects + tested)
    budget = StepBudget.resolve(rules, train)
    trained = 0 if rules.train_s else budget.num_steps * budget.batch_size
    if not rules.selects:
        return Work(trained, tested)
    checks = (rules.num_checks or budget.num_steps // budget.validate_every) + 1
    sample = min(protocol["num_validation"] or validation, validation)
    finals = protocol["num_snapshots"] * validation if sample < validation else 0
    oracle = checks * tested if protocol["oracle"] else 0
    evaluated = checks * sample + finals + tested + oracle
    return Work(trained, evaluated)


def num_windows(spec: RunSpec) -> tuple[int, int, int]:
    """Windows of train, validation and test: starts x channels, before any file is read."""
    entry = data.get(spec.cell["data"]["name"])
    lookback, horizon = spec.cell["lookback"], spec.cell["task"]["horizon"]
    train, validation, test = _rows(entry, spec.cell["data"]["source"])
    channels = _channels(entry, spec.cell["data"]["source"])
    starts = (train - lookback - horizon + 1, validation - horizon + 1, test - horizon + 1)
    return tuple(max(0, count) * channels for count in starts)  # type: ignore[return-value]


def _rows(entry: catalog.Entry, source: str) -> tuple[int, int, int]:
    from sffbench.data import synthetic

    if source == "synthetic":
        ends = entry.proportional_borders(synthetic.NUM_ROWS)
    else:
        ends = entry.borders(entry.num_rows or 0)
    return ends[0], ends[1] - ends[0], ends[2] - ends[1]


def _channels(entry: catalog.Entry, source: str) -> int:
    from sffbench.data import synthetic

    channels = entry.num_channels or 1
    return min(channels, synthetic.MAX_CHANNELS) if source == "synthetic" else channels


def _model_key(spec: RunSpec) -> tuple[str, str | None, str]:
    model = spec.cell["model"]
    name = model["name"] if model["preset"] == "custom" else f"{model['name']}:{model['preset']}"
    return name, spec.model_source, spec.weights_file


def _cell_flops(spec: RunSpec) -> float:
    """Operations of one forecast of a cell, by its model or by the network of its strategy."""
    cell, horizon = spec.cell, spec.cell["task"]["horizon"]
    if cell["model"]["name"] != "none":
        return window_flops(_model_key(spec), horizon)
    from sffbench import strategies

    strategy = strategies.get(cell["strategy"]["name"], **cell["strategy"]["fields"])
    num_rows = _rows(data.get(cell["data"]["name"]), cell["data"]["source"])[0]
    network = strategy.network  # type: ignore[attr-defined]
    return _count_flops(network(cell["lookback"], horizon, num_rows, cell["seed"]), horizon)


@functools.cache
def window_flops(model: tuple[str, str | None, str], horizon: int) -> float:
    """Floating-point operations of one forecast of one window (two for a multiply-add).

    0 where suites have no such window (`n/a`).
    """
    from sffbench import models

    built = models.load(model[0], model[1], weights=model[2], horizon=horizon)
    if built.num_channels not in (None, 1):
        return 0.0
    return _count_flops(built, horizon)


def _count_flops(built: LTSM, horizon: int) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    built.eval().requires_grad_(False)  # the counter hooks what wants gradients, and finds none
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        built._forecast(torch.zeros(1, 1, built.lookback), horizon)
    return float(counter.get_total_flops())
