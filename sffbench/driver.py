"""`sffbench run`: what is left of a suite goes to an engine, and news of it to a progress bar."""

from __future__ import annotations

import contextlib
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sffbench import measure, runner
from sffbench.engines.local import Event, run_local, write_off
from sffbench.errors import InputError, unknown
from sffbench.store import MAX_ATTEMPTS, Store, check_writable
from sffbench.suite import RunSpec


def run_suite(
    specs: list[RunSpec],
    results: Path,
    *,
    device: str = "auto",
    jobs: int | None = None,
    retry_failed: bool = False,
    time_limit_s: float = math.inf,
) -> dict[str, Any]:
    """Run the cells without a record; returns counts by status and the failures' reasons.

    After `time_limit_s` no further cell starts: another call goes on with the rest.
    """
    device = _device(device)
    jobs = jobs or _num_workers(specs, device)
    threads = 1 if device == "cpu" else measure.num_cores()
    store = Store(results)
    check_writable(results)
    keys = {spec.key: _performance_key(spec, device, threads) for spec in specs}
    todo = []
    for spec in specs:
        state = store.state(spec.key, keys[spec.key])
        if state == "failed" and retry_failed:
            store.forgive_all(spec.key)
        if state == "missing" or (state == "failed" and retry_failed):
            todo.append(spec)
    runnable = [spec for spec in todo if not _written_off(store, spec, device)]
    events = run_local(runnable, results, device, jobs, threads, time_limit_s)
    with contextlib.closing(events):
        num_ended = _follow(events, len(specs), len(runnable))
    return _summary(store, specs, keys, num_ended, len(runnable) - num_ended)


def _num_workers(specs: list[RunSpec], device: str) -> int:
    """One a core; one alone where time is measured, for neighbours share caches and memory."""
    timed = any(
        spec.measure == "speed" or spec.cell["protocol"].get("train_s") is not None
        for spec in specs
    )
    return measure.num_cores() if device == "cpu" and not timed else 1


def _performance_key(spec: RunSpec, device: str, threads: int) -> str | None:
    """A speed suite is done by runs on this device and software, an accuracy suite by any."""
    if spec.measure == "accuracy":
        return None
    return runner.performance_key(spec, measure.environment(torch.device(device), threads))


def text(summary: dict[str, Any], results: Path) -> str:
    """The summary for people."""
    counts = summary["counts"]
    parts = [f"{count} {status}" for status, count in sorted(counts.items())]
    lines = [f"{summary['cells']} cells: {', '.join(parts)}; {summary['ran']} ran now."]
    lines += [f"  failed: {failure}" for failure in summary["failed"]]
    if summary["left"]:
        lines.append(f"Time limit: {summary['left']} cells left, run again to go on.")
    lines.append(f"See them with: sffbench table --results {results}")
    return "\n".join(lines)


def _device(name: str) -> str:
    if name.split(":")[0] not in ("auto", "cpu", "cuda"):
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    try:
        device = measure.pick_device(name)
    except RuntimeError:  # torch's own words take several lines
        raise unknown("device", name, ["auto", "cpu", "cuda"]) from None
    num_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise InputError(f"device {name!r}: torch sees {num_gpus} CUDA devices here")
    return str(device)


def _written_off(store: Store, spec: RunSpec, device: str) -> bool:
    """A cell that took its process down too often becomes a failure instead of another try."""
    if store.attempts(spec.key) < MAX_ATTEMPTS:
        return False
    write_off(store, spec, device)
    return True


def _summary(
    store: Store, specs: list[RunSpec], keys: dict[str, str | None], ran: int, left: int
) -> dict[str, Any]:
    records = [(spec, store.find(spec.key, keys[spec.key])) for spec in specs]
    counts = Counter("missing" if record is None else record["status"] for _, record in records)
    failed = [
        f"{spec.describe()}: {record['reason']}"
        for spec, record in records
        if record is not None and record["status"] == "failed"
    ]
    return {"cells": len(specs), "ran": ran, "left": left, "counts": dict(counts), "failed": failed}


def _follow(events: Any, num_cells: int, num_todo: int) -> int:
    """Show events as a bar on a terminal, as a line a finished cell elsewhere; count the ends."""
    num_ended = 0
    if num_todo == 0:
        return num_ended
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        whole = bar.add_task("runs", total=num_cells, completed=num_cells - num_todo)
        single: dict[str, Any] = {}
        for event in events:
            task = single.get(event.spec.key)
            if task is None:
                task = single[event.spec.key] = bar.add_task(event.spec.describe(), total=None)
            if event.status is None:
                bar.update(task, completed=event.step, total=event.total)
            else:
                bar.remove_task(task)
                bar.advance(whole)
                bar.console.print(_line(event), highlight=False, markup=False)
                num_ended += 1
    return num_ended


def _line(event: Event) -> str:
    outcome = event.reason if event.mse is None else f"MSE {event.mse:.4f}"
    return f"{event.status:>7}  {event.spec.describe()}  {outcome}"
