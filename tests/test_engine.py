"""The local engine: workers that finish, die, are killed, or are told to stop."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sffbench.engines import local, worker
from sffbench.engines.local import Event, run_local
from sffbench.errors import InputError
from sffbench.store import MAX_ATTEMPTS, Store
from sffbench.suite import Places, RunSpec

Cells = Callable[..., list[RunSpec]]

PLUGIN = '''
import os
import pathlib
import signal
import time
from typing import ClassVar

from sffbench.strategies import Strategy

print("hello from the import")


class Noisy(Strategy):
    """Prints where the answers go."""

    name: ClassVar[str] = "noisy"

    def prepare(self, model, ctx):
        print("hello from prepare", flush=True)
        os.write(1, b"not json\\\\n")
        os.system("echo hello from a child")
        return model


class Deadly(Strategy):
    """Kills its process, `times` times."""

    name: ClassVar[str] = "deadly"

    times: int = 1

    def prepare(self, model, ctx):
        log = pathlib.Path(__file__).with_suffix(f".{self.times}")
        died = len(log.read_text()) if log.exists() else 0
        if died < self.times:
            log.write_text("x" * (died + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return model


class Slow(Strategy):
    """Takes its time."""

    name: ClassVar[str] = "slow"

    pause_s: float = 1.0

    def step(self, model, batch, ctx):
        time.sleep(self.pause_s)
        return super().step(model, batch, ctx)
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return str(path)


def records(root: Path) -> dict[str, Path]:
    return {path.parent.name: path for path in (root / "runs").glob("*/*.json")}


def litter(root: Path) -> list[Path]:
    """Whatever a finished or well-stopped run must not leave: markers and temporary files."""
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and ("started" in path.parts or path.name.startswith("."))
    ]


def processes(root: Path) -> list[int]:
    """Processes whose command line names the results folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(root) in words and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], Any], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def finished(events: Iterator[Event]) -> dict[str, Event]:
    return {event.spec.label: event for event in events if event.status is not None}


@pytest.mark.usefixtures("forget_strategies")
def test_two_workers_run_every_cell_once_whatever_a_plugin_prints(
    cells_of: Cells, plugin: str, tmp_path: Path
) -> None:
    specs = cells_of(plugins=(plugin,), strategies=["last-value", "zero-shot", "noisy", "full"])
    root = tmp_path / "results"
    events = list(run_local(specs, root, "cpu", 2, 1))
    ends = [event for event in events if event.status is not None]
    assert sorted(event.spec.label for event in ends) == sorted(spec.label for spec in specs)
    assert {event.status for event in ends} == {"ok"}
    steps = [event.step for event in events if event.spec.label == "full" and not event.status]
    assert steps == [2, 4]
    assert set(records(root)) == {spec.key for spec in specs}
    for event in ends:
        record = Store(root).find(event.spec.key)
        assert record is not None
        assert record["metrics"]["mse"] == event.mse
        assert record["environment"]["threads"] == 1
    assert litter(root) == []
    assert processes(root) == []


@pytest.mark.usefixtures("forget_strategies")
def test_a_cell_whose_worker_dies_once_is_tried_again(
    cells_of: Cells, plugin: str, tmp_path: Path
) -> None:
    specs = cells_of(plugins=(plugin,), strategies=["deadly", "last-value"])
    root = tmp_path / "results"
    ends = finished(run_local(specs, root, "cpu", 1, 1))
    assert {label: event.status for label, event in ends.items()} == {
        "deadly": "ok",
        "last-value": "ok",
    }
    assert (tmp_path / "plugin.1").read_text() == "x"
    assert litter(root) == []


@pytest.mark.slow
@pytest.mark.usefixtures("forget_strategies")
def test_a_cell_that_kills_three_workers_is_recorded_as_failed(
    cells_of: Cells, plugin: str, tmp_path: Path
) -> None:
    specs = cells_of(plugins=(plugin,), strategies=[{"name": "deadly", "times": 99}, "last-value"])
    root = tmp_path / "results"
    ends = finished(run_local(specs, root, "cpu", 1, 1))
    assert {label: event.status for label, event in ends.items()} == {
        "deadly times=99": "failed",
        "last-value": "ok",
    }
    assert (tmp_path / "plugin.99").read_text() == "x" * MAX_ATTEMPTS
    record = Store(root).find(ends["deadly times=99"].spec.key)
    assert record is not None
    assert "its process died 3 times" in record["reason"]
    assert f"exit code {-signal.SIGKILL}" in record["reason"]
    assert json.loads(json.dumps(record))["metrics"] == {}
    assert litter(root) == []


def test_workers_that_cannot_even_start_are_given_up_on(
    cells_of: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave no marker, and must not be started for ever."""
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    (spec,) = cells_of(strategies=["last-value"])
    ends = finished(run_local([spec], tmp_path, "cpu", 1, 1))
    assert ends["last-value"].status == "failed"
    assert Store(tmp_path).state(spec.key) == "failed"


def test_no_cells_start_no_worker(tmp_path: Path) -> None:
    assert list(run_local([], tmp_path, "cpu", 2, 1)) == []


@pytest.mark.usefixtures("forget_strategies")
def test_closing_the_events_stops_the_workers_and_forgives_the_cell_under_way(
    cells_of: Cells, plugin: str, tmp_path: Path
) -> None:
    specs = cells_of(plugins=(plugin,), strategies=[{"name": "slow", "pause_s": 0.5}])
    root = tmp_path / "results"
    events = run_local(specs, root, "cpu", 1, 1)
    assert (next(events).step, Store(root).attempts(specs[0].key)) == (2, 1)
    events.close()
    assert processes(root) == []
    assert litter(root) == []
    assert records(root) == {}


def test_a_spec_survives_the_trip_to_a_worker(cells_of: Cells) -> None:
    (spec,) = cells_of(strategies=["sff"])
    sent = RunSpec(spec.cell, "a label", "/some/where", "w.safetensors", Places("d", ("p.py",)))
    line = worker.encode(sent)
    assert "\n" not in line
    assert worker.decode(line) == sent
    assert worker.decode(line).key == spec.key


# -- the driver, as a process ----------------------------------------------------------------------


@pytest.fixture
def suite_file(suite_fields: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """suite_file(**changes): the small suite as a TOML file."""

    def write(**changes: Any) -> Path:
        fields = suite_fields(**changes)
        budget = fields.pop("budget")
        lines = [f"{name} = {_toml(value)}" for name, value in fields.items()]
        lines += ["[budget]", *(f"{name} = {value}" for name, value in budget.items())]
        path = tmp_path / "small.toml"
        path.write_text("\n".join(lines))
        return path

    return write


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


# A shell that starts us in the background has SIGINT ignored, and children inherit that.
LISTENING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "


def start(suite: Path, root: Path, *options: str, **popen: Any) -> "subprocess.Popen[str]":
    code = LISTENING + "from sffbench.cli import main; main()"
    return subprocess.Popen(
        [
            *[sys.executable, "-c", code, "run", str(suite)],
            *["--results", str(root), "--jobs", "1", "--device", "cpu", *options],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,
    )


def fingerprints(root: Path) -> dict[str, tuple[int, int]]:
    stats = {key: path.stat() for key, path in records(root).items()}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


SLOW_SUITE = ["last-value", "zero-shot", {"name": "slow", "pause_s": 0.7}, "sff"]


@pytest.mark.usefixtures("forget_strategies")
def test_a_driver_killed_in_the_middle_goes_on_where_it_was_and_repeats_nothing(
    cells_of: Cells, suite_file: Callable[..., Path], plugin: str, tmp_path: Path
) -> None:
    from sffbench import runner

    root, suite = tmp_path / "results", suite_file(strategies=SLOW_SUITE)
    driver = start(suite, root, "--plugin", plugin)
    wait_for(lambda: len(records(root)) >= 2 and list((root / "started").glob("*.json")))
    driver.kill()
    driver.communicate()
    wait_for(lambda: not processes(root))  # nothing is left running
    assert litter(root) == []  # and the cell under way was no attempt
    before = fingerprints(root)
    assert 2 <= len(before) < len(SLOW_SUITE)

    again = start(suite, root, "--plugin", plugin, "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    summary = json.loads(out)
    assert summary["counts"] == {"ok": 4}
    assert summary["ran"] == 4 - len(before)
    after = fingerprints(root)
    assert {key: after[key] for key in before} == before

    import torch

    for spec in cells_of(plugins=(plugin,), strategies=SLOW_SUITE):  # as if never interrupted
        record = Store(root).find(spec.key)
        expected = runner.run(spec, torch.device("cpu"))
        assert record is not None
        assert record["metrics"] == expected["metrics"]
    assert litter(root) == []


def test_ctrl_c_exits_130_and_leaves_a_clean_store(
    suite_file: Callable[..., Path], plugin: str, tmp_path: Path
) -> None:
    root = tmp_path / "results"
    suite = suite_file(strategies=["last-value", {"name": "slow", "pause_s": 30.0}])
    driver = start(suite, root, "--plugin", plugin)
    wait_for(lambda: len(records(root)) == 1 and list((root / "started").glob("*.json")))
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("sffbench: interrupted")
    assert processes(root) == []
    assert litter(root) == []
    assert len(records(root)) == 1


def test_a_full_disk_stops_the_run_with_one_line(
    suite_file: Callable[..., Path], tmp_path: Path
) -> None:
    """A limit on file sizes lets the small markers through and no record."""
    root = tmp_path / "results"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, 256))

    suite = suite_file(strategies=["last-value", "seasonal-naive"])
    driver = start(suite, root, preexec_fn=limit)
    out, err = driver.communicate(timeout=100)
    assert driver.returncode == 2, err
    assert out == ""
    assert err.startswith("sffbench: cannot write")
    assert len(err.splitlines()) == 1
    assert records(root) == {}
    assert litter(root) == []
    assert processes(root) == []


def test_an_error_of_the_store_reaches_the_caller(cells_of: Cells, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    (spec,) = cells_of(strategies=["last-value"])
    with pytest.raises(InputError, match="cannot write"):
        list(run_local([spec], tmp_path / "results", "cpu", 1, 1))
