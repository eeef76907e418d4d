"""A worker process: reads cells from stdin, runs them, writes records, answers on stdout.

    python -m sffbench.engines.worker RESULTS DEVICE THREADS

One JSON line in, `{"cell": ...}`; JSON lines out, `{"step": 50, "total": 300}` while it trains and
`{"status": "ok", ...}` when its record is on disk, `{"error": ...}` when it cannot be. When stdin
closes the parent is gone, and so is the worker: a killed driver leaves nothing running.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from sffbench.errors import InputError
from sffbench.store import Store
from sffbench.suite import Places, RunSpec


def encode(spec: RunSpec) -> str:
    """A spec as one JSON line."""
    return json.dumps(
        {
            "cell": spec.cell,
            "label": spec.label,
            "model_source": spec.model_source,
            "weights_file": spec.weights_file,
            "places": {"data": spec.places.data, "plugins": spec.places.plugins},
        }
    )


def decode(line: str) -> RunSpec:
    """The inverse of `encode`."""
    raw = json.loads(line)
    places = Places(raw["places"]["data"], tuple(raw["places"]["plugins"]))
    return RunSpec(raw["cell"], raw["label"], raw["model_source"], raw["weights_file"], places)


def main() -> None:
    """Serve until stdin closes."""
    root, device_name, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store, under_way = Store(root), set[str]()
    answers = _private_stdout()

    def say_goodbye() -> None:
        for key in under_way:
            store.forgive(key)

    lines = _watch_stdin(say_goodbye)

    import torch

    from sffbench import runner

    torch.set_num_threads(threads)
    device = torch.device(device_name)

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def serve(spec: RunSpec) -> None:
        store.mark_started(spec.key)
        under_way.add(spec.key)
        record = runner.run(spec, device, lambda step, total: answer(step=step, total=total))
        store.write(record)
        under_way.discard(spec.key)
        answer(status=record["status"], reason=record["reason"], mse=record["metrics"].get("mse"))

    try:
        for line in lines:
            serve(decode(line))
    except InputError as error:  # the store cannot be written: no other cell will fare better
        answer(error=str(error))


def _private_stdout() -> TextIO:
    """Keep the pipe for answers; whatever a plug-in prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _watch_stdin(say_goodbye: Callable[[], None]) -> Iterator[str]:
    """Lines of stdin, read in a thread that ends the process the moment the parent goes away.

    The cell under way did not kill anybody, so its start is no attempt: `say_goodbye` says so.
    """
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        with contextlib.suppress(Exception):
            say_goodbye()
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == "__main__":
    main()
