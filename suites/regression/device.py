"""How the kernel benchmarks time their sides, and what the machine can do at most.

    seconds = in_turns(benchmark, device, {"ours": ours, "rival": rival})      # medians

On a GPU a time lies between two events of the stream, and the cache is emptied before; on a CPU it
is that of the thread, which other processes do not lengthen. `machine` measures copy bandwidth and
matrix rate: shares of them say how much is left to gain.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sffbench.measure import environment

ROUNDS, WARM_UPS = 15, 3
FLUSH_BYTES = 1 << 28  # several times any GPU's second-level cache
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}
MATRIX = {"cuda": (8192, torch.bfloat16), "cpu": (512, torch.float32)}
CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
Side = Callable[[], object]


def in_turns(benchmark: Any, device: torch.device, sides: Mapping[str, Side]) -> dict[str, float]:
    """Median seconds of each side; the others have their turns in the set-up of the first."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    ours, *rivals = sides

    def rival_turns() -> None:
        for name in rivals:
            times[name].append(seconds(sides[name], device))

    def our_turn() -> None:
        times[ours].append(seconds(sides[ours], device))

    benchmark.pedantic(our_turn, setup=rival_turns, rounds=ROUNDS, warmup_rounds=WARM_UPS)
    return {name: statistics.median(values[-ROUNDS:]) for name, values in times.items()}


def seconds(side: Side, device: torch.device) -> float:
    """Device time of one call, or time of this thread."""
    if device.type != "cuda":
        start = time.thread_time()
        side()
        return time.thread_time() - start
    _flush_buffer(device).zero_()  # meanwhile the host queues what is timed
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    side()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def wall_seconds(side: Side, device: torch.device) -> float:
    """Median time on the wall of one call and its wait: what Python and the launches add."""
    times = []
    for _ in range(ROUNDS):
        _wait(device)
        start = time.perf_counter()
        side()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def extra_bytes(side: Side, device: torch.device) -> int | None:
    """Device memory that one call takes beyond what was there: None on a CPU."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    side()
    return torch.cuda.max_memory_allocated(device) - before


@functools.cache
def machine(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, clocks, and the measured limits of this machine."""
    return environment(device) | {
        "triton": _version("triton"),
        "clocks": _clocks() if device.type == "cuda" else None,
        "copy_bytes_per_s": _copy_bytes_per_s(device),
        "matrix_flop_per_s": _matrix_flop_per_s(device),
    }


def _copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and bytes written a second by the copy of a large tensor."""
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(lambda: target.copy_(source), device)


def _matrix_flop_per_s(device: torch.device) -> float:
    """2 n^3 operations of a square product: bf16 on a GPU, float32 on one thread of a CPU."""
    size, dtype = MATRIX[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / _median(lambda: torch.mm(left, right, out=out), device)


def _median(side: Side, device: torch.device) -> float:
    return statistics.median([seconds(side, device) for _ in range(WARM_UPS + ROUNDS)][WARM_UPS:])


@functools.cache
def _flush_buffer(device: torch.device) -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _clocks() -> dict[str, str] | None:
    command = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        line = done.stdout.splitlines()[0]
        return dict(zip(CLOCKS.split(","), map(str.strip, line.split(",")), strict=True))
    return None
