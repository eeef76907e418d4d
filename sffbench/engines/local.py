"""The default engine: N worker processes on this machine, each taking the next cell when free.

On the CPU a worker has one thread, because small models train fastest that way. A worker that dies
(a crash, an out-of-memory kill) costs its cell one attempt: the cell is tried again by a new worker
and recorded as failed after the third time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sffbench.engines.worker import encode
from sffbench.errors import InputError
from sffbench.store import MAX_ATTEMPTS, Store
from sffbench.suite import RunSpec


@dataclass(frozen=True)
class Event:
    """News of one cell: progress (`step` of `total`), or its end (`status`)."""

    spec: RunSpec
    status: str | None = None
    reason: str | None = None
    mse: float | None = None
    step: int = 0
    total: int = 0


@dataclass
class _Pool:
    """Cells to do, workers doing them, and the events they send."""

    store: Store
    device: str
    threads: int
    todo: queue.SimpleQueue[RunSpec]
    events: queue.SimpleQueue[Event | BaseException | None] = field(
        default_factory=queue.SimpleQueue
    )
    processes: set[subprocess.Popen[str]] = field(default_factory=set)
    under_way: set[str] = field(default_factory=set)
    deaths: Counter[str] = field(default_factory=Counter)
    deadline: float = math.inf  # of time.monotonic: no cell starts after it
    closing: bool = False

    def work(self) -> None:
        """Body of one thread: keep one worker process alive and fed until nothing is left."""
        worker: subprocess.Popen[str] | None = None
        try:
            while not self.closing and time.monotonic() < self.deadline:
                try:
                    spec = self.todo.get_nowait()
                except queue.Empty:
                    break
                worker = worker or self._spawn()
                if not self._run(worker, spec):
                    worker = None
        except BaseException as error:  # handed to the caller's thread
            self.events.put(error)
        finally:
            if worker is not None:
                self._stop(worker)
            self.events.put(None)

    def _spawn(self) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "sffbench.engines.worker",
                str(self.store.root),
                self.device,
                str(self.threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(self.threads)},
            start_new_session=True,  # Ctrl-C reaches the driver alone, which then stops the workers
        )
        self.processes.add(worker)
        return worker

    def _run(self, worker: subprocess.Popen[str], spec: RunSpec) -> bool:
        """Run one cell; False when the worker died over it."""
        assert worker.stdin is not None
        assert worker.stdout is not None
        with contextlib.suppress(OSError):
            worker.stdin.write(encode(spec) + "\n")
            worker.stdin.flush()
        self.under_way.add(spec.key)
        for line in worker.stdout:
            message = json.loads(line)
            if "error" in message:
                raise InputError(message["error"])
            event = Event(spec, **message)
            if event.status is not None:
                self.under_way.discard(spec.key)
            self.events.put(event)
            if event.status is not None:
                return True
        self._stop(worker)
        if not self.closing:
            self._died(spec, worker.returncode)
        return False

    def _died(self, spec: RunSpec, code: int) -> None:
        self.deaths[spec.key] += 1  # a worker may die before it can leave a marker
        if max(self.deaths[spec.key], self.store.attempts(spec.key)) < MAX_ATTEMPTS:
            self.todo.put(spec)
            return
        self.events.put(Event(spec, **write_off(self.store, spec, self.device, code)))

    def _stop(self, worker: subprocess.Popen[str]) -> None:
        with contextlib.suppress(OSError):
            assert worker.stdin is not None
            worker.stdin.close()
        worker.wait()
        self.processes.discard(worker)

    def close(self) -> None:
        """Stop at once; cells under way are not counted as attempts, for this was on purpose."""
        self.closing = True
        for worker in list(self.processes):
            worker.kill()
            worker.wait()
        with contextlib.suppress(OSError, InputError):  # a broken store must not hide why we stop
            for key in list(self.under_way):
                self.store.forgive(key)


def write_off(store: Store, spec: RunSpec, device: str, code: int | None = None) -> dict[str, Any]:
    """Record a cell that took its process down too often; returns what the event says of it."""
    import torch

    from sffbench import runner

    cause = "" if code is None else f", last with exit code {code}"
    reason = f"its process died {MAX_ATTEMPTS} times{cause}"
    store.write(runner.failed(spec, torch.device(device), reason))
    return {"status": "failed", "reason": reason}


def run_local(
    specs: Sequence[RunSpec],
    results: Path,
    device: str,
    jobs: int,
    threads: int,
    time_limit_s: float = math.inf,
) -> Generator[Event, None, None]:
    """Run cells on `jobs` workers; yields events as they come. Closing the iterator stops all.

    After `time_limit_s` no further cell starts; those under way are finished.
    """
    store = Store(results)
    todo: queue.SimpleQueue[RunSpec] = queue.SimpleQueue()
    for spec in specs:
        todo.put(spec)
    pool = _Pool(store, device, threads, todo, deadline=time.monotonic() + time_limit_s)
    active = [threading.Thread(target=pool.work, daemon=True) for _ in range(min(jobs, len(specs)))]
    for thread in active:
        thread.start()
    running = len(active)
    try:
        while running:
            event = pool.events.get()
            if event is None:
                running -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield event
    finally:
        if running:
            pool.close()
        for thread in active:
            thread.join(timeout=10)
