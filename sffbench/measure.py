"""What a run costs and where it ran: seconds, peak memory, and the environment.

Times are wall-clock seconds with the device synchronised on both sides; on the CPU, processor
seconds stand beside them, because a busy machine slows the wall clock only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sffbench


@dataclass
class Stopwatch:
    """Accumulates wall and processor seconds over the blocks it is entered for."""

    device: torch.device
    wall_s: float = 0.0
    cpu_s: float = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Time one block; work queued on the device before and in it is waited for."""
        _synchronise(self.device)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            _synchronise(self.device)
            self.wall_s += time.perf_counter() - wall
            self.cpu_s += time.process_time() - cpu


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class MemoryMeter:
    """Peak memory of the parts of a run: allocated on a GPU, resident in the process on a CPU.

    What an earlier run of the process left behind is given back first, or it would be counted.
    """

    device: torch.device
    highest: int | None = None

    def __post_init__(self) -> None:
        self._reset()

    def lap(self) -> int | None:
        """Peak since the last lap in bytes, None where nothing tells; a new lap begins."""
        peak = _peak_memory_bytes(self.device)
        if peak is not None:
            self.highest = max(peak, self.highest or 0)
        self._reset()
        return peak

    def _reset(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        with contextlib.suppress(OSError, AttributeError):  # the GNU allocator keeps freed pages
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # Linux: resets the high-water mark of the process
            Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024


def environment(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """Device and software of a run: what its performance key adds to its accuracy key.

    `threads` is given by a driver that asks about its workers.
    """
    facts: dict[str, Any] = {
        "device": device.type,
        "device_name": device_name(device),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "sffbench": sffbench.__version__,
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["driver"] = _driver()
    return facts | _revision()


@functools.cache
def device_name(device: torch.device) -> str:
    """The marketing name of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _output(command)


@functools.cache
def _revision() -> dict[str, Any]:
    """Commit and cleanliness of the checkout this package runs from; None when installed."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    status = _output(["git", "-C", str(root), "status", "--porcelain", "-uno"])
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
