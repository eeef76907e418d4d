"""The command line: exit codes, one-line errors, data on stdout, and no torch where none is due."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sffbench import cli
from sffbench.store import Store
from sffbench.suite import RunSpec

Call = Callable[..., tuple[int, str, str]]

SUITE = """
name = "small"
protocol = "quick"
data = "synthetic"
models = [{{ name = "ttm", source = "{source}" }}]
datasets = ["ETTh1"]
horizons = [8]
strategies = {strategies}
"""


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Call:
    """call("plan", "quick"): (exit code, stdout, stderr) of one command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SFFBENCH_DATA", raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sffbench", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def suite(small_ttm: Path, tmp_path: Path) -> Callable[[str], str]:
    """suite('["full"]'): a suite file with these strategies."""

    def write(strategies: str = '["last-value"]') -> str:
        path = tmp_path / "small.toml"
        path.write_text(SUITE.format(source=small_ttm, strategies=strategies))
        return str(path)

    return write


def one_line(err: str) -> str:
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("sffbench: ")
    return line


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runn", "quick"], "runn"),
        (["--wrong"], "--wrong"),
        (["list", "things"], "things.*models"),
        (["list"], "(?i)kind"),
        (["run"], "(?i)suite"),
        (["run", "quik"], "unknown suite 'quik'; did you mean 'quick'"),
        (["run", "nothing.toml"], "no such file"),
        (["run", "x" * 5000 + ".toml"], "File name too long"),
        (["run", "quick", "--jobs", "0"], "--jobs"),
        (["run", "quick", "--jobs", "many"], "--jobs"),
        (["run", "quick", "--engine", "rai"], "unknown engine 'rai'.*local"),
        (["run", "quick", "--frobnicate"], "--frobnicate"),
        (["plan", "quick", "extra"], "extra"),
        (["run", "quick", "--plugin", "absent.py"], "'absent.py': no such file"),
        (["run", "ttm-r2"], "--data-dir or SFFBENCH_DATA|no weights of ttm"),
        (["table"], "no results folder 'results/local'.*sffbench run"),
        (["table", "--results", "nowhere"], "no results folder"),
        (["show", "abc"], "no results folder"),
        (["show"], "(?i)run"),
        (["table", "--results", ".", "--format", "xyz"], "unknown format 'xyz'"),
        (["show", "abc", "--results", "."], "no run 'abc'"),
        (["compare", "sff"], "(?i)'b'"),
        (["compare", "sff", "full"], "no results folder"),
        (["compare", "sff", "full", "--results", "."], "holds no records"),
        (["fetch", "ETTh3", "--from", "."], "unknown dataset 'ETTh3'; did you mean"),
        (["fetch", "ttm:r2-513-96"], "unknown preset of ttm 'r2-513-96'; did you mean 'r2-512-96'"),
        (["fetch", "ttm"], "'ttm' is a model: name a preset"),
        (["fetch", "timer:1.0"], "not on the hub: get Timer_forecast_1.0.ckpt from .*--from"),
        (["pretrain", "ttm:r2-512-96"], "not packaged"),
        (["pretrain", "tmm:tiny"], "unknown model 'tmm'; did you mean 'ttm'"),
        (["pretrain", "ttm:tiny", "--steps", "0"], "--steps"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(call: Call, words: list[str], message: str) -> None:
    import re

    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert re.search(message, one_line(err))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "5/2"], "shard '5/2'"),
        (["--shard", "²/3"], "shard"),
        (["--shard", ""], "shard|1/4"),
        (["--device", "gpu"], "unknown device 'gpu'.*cuda"),
        (["--device", "cpu:foo"], "unknown device 'cpu:foo'"),
        (["--device", "cuda:99"], "torch sees \\d+ CUDA devices"),
        (["--results", "small.toml"], "cannot write"),
        (["--results", "/proc/sffbench"], "cannot write"),
        (["--plugin", "loud.py"], "RuntimeError: boom"),
        (["--plugin", "empty.py"], "registers no strategy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_of_run_is_one_line_and_exit_code_2(
    call: Call, suite: Callable[[], str], tmp_path: Path, options: list[str], message: str
) -> None:
    import re

    (tmp_path / "loud.py").write_text("raise RuntimeError('boom\\n  and\\n  more')\n")
    (tmp_path / "empty.py").write_text("")
    code, out, err = call("run", suite(), *options)
    assert code == 2
    assert out == ""
    assert re.search(message, one_line(err))


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_asking_for_a_gpu_where_there_is_none_is_one_line(
    call: Call, suite: Callable[[], str], tmp_path: Path
) -> None:
    code, out, err = call("run", suite(), "--device", "cuda")
    assert (code, out) == (2, "")
    assert "torch sees 0 CUDA devices" in one_line(err)


@pytest.mark.parametrize(
    "text", ["name = ", "\x00", "name = 'x'\nprotcol = 'quick'\n", "[search]\n", ""]
)
def test_a_broken_suite_file_is_one_line(call: Call, tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.toml").write_text(text)
    for verb in ("plan", "run"):
        code, out, err = call(verb, "broken.toml")
        assert (code, out) == (2, "")
        assert "broken.toml" in one_line(err)


def test_an_unexpected_error_of_ours_is_not_hidden(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kind: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("sffbench.listing.rows", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call("list", "models")


# -- good input ------------------------------------------------------------------------------------


def test_without_words_the_help_is_printed_and_the_code_says_that_it_was_no_command(
    call: Call,
) -> None:
    code, out, err = call()
    assert code == 2
    assert "Usage" in out + err
    assert "sffbench:" not in err


@pytest.mark.parametrize("kind", ["models", "datasets", "strategies", "protocols", "suites"])
def test_list_prints_rows_for_people_and_for_programs(call: Call, kind: str) -> None:
    code, text, err = call("list", kind)
    assert (code, err) == (0, "")
    code, out, err = call("list", kind, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert rows
    first = next(iter(rows[0].values()))
    assert str(first) in text


def test_plan_counts_the_cells_and_writes_nothing(
    call: Call, suite: Callable[[str], str], tmp_path: Path
) -> None:
    path = suite('["last-value", "full", "sff"]')
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call("plan", path, "--json")
    assert (code, err) == (0, "")
    overview = json.loads(out)
    assert (overview["cells"], overview["counts"]) == (3, {"missing": 3})
    assert [run["state"] for run in overview["runs"]] == ["missing"] * 3
    assert set(overview["estimate"]) == {"cpu_core_hours", "gpu_hours"}
    code, text, _ = call("plan", path, "--shard", "1/3")
    assert code == 0
    assert "1 cells: 1 missing" in text
    assert sorted(tmp_path.rglob("*")) == before


NOISY = '''
from typing import ClassVar
from sffbench.strategies import Strategy

print("hello")


class Mine(Strategy):
    """Fails, for the test."""

    name: ClassVar[str] = "mine"

    def prepare(self, model, ctx):
        print("hello again")
        raise RuntimeError("whoops")
'''


@pytest.mark.usefixtures("forget_strategies")
def test_run_exits_1_when_a_cell_failed_and_its_json_alone_is_on_stdout(
    call: Call, suite: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    words = ["run", suite('["last-value", "mine"]'), "--plugin", "noisy.py", "--results", "R"]
    code, out, err = call(*words, "--jobs", "1", "--json")
    summary = json.loads(out)
    assert code == 1
    assert summary["counts"] == {"ok": 1, "failed": 1}
    assert summary["ran"] == 2
    assert summary["failed"] == ["ttm:custom ETTh1 H=8 mine seed 0: RuntimeError: whoops"]
    assert "MSE" in err

    code, out, _ = call(*words, "--json")  # a failure is not retried on its own
    assert (code, json.loads(out)["ran"]) == (1, 0)
    code, out, _ = call(*words, "--shard", "1/2", "--json")  # last-value alone
    assert (code, json.loads(out)) == (
        0,
        {"cells": 1, "ran": 0, "left": 0, "counts": {"ok": 1}, "failed": []},
    )
    code, out, err = call("table", "--results", "R")
    assert (code, err) == (0, "")
    assert "last-value" in out


@pytest.mark.usefixtures("forget_strategies")
def test_retry_failed_runs_what_failed_and_nothing_else(
    call: Call,
    suite: Callable[[str], str],
    cells_of: Callable[..., list[RunSpec]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sffbench import driver

    given: list[str] = []

    def fake(specs: list[RunSpec], *_: Any) -> Any:
        given.extend(spec.label for spec in specs)
        yield from ()

    monkeypatch.setattr(driver, "run_local", fake)
    specs = cells_of(strategies=["last-value", "full", "sff", "zero-shot"])
    store = Store(tmp_path / "R")
    for spec, status in zip(specs, ("ok", "failed", "n/a", None), strict=True):
        if status:
            record = {"key": spec.key, "performance_key": "p", "status": status, "reason": "r"}
            store.write(record | {"finished_at": "2026"})
    driver.run_suite(specs, store.root, device="cpu", jobs=1)
    assert given == ["zero-shot"]
    given.clear()
    driver.run_suite(specs, store.root, device="cpu", jobs=1, retry_failed=True)
    assert given == ["full", "zero-shot"]


def test_a_cell_that_took_its_process_down_three_times_is_written_off_at_the_next_start(
    cells_of: Callable[..., list[RunSpec]], tmp_path: Path
) -> None:
    from sffbench import driver

    (spec,) = cells_of()
    store = Store(tmp_path)
    for _ in range(3):
        store.mark_started(spec.key)
    summary = driver.run_suite([spec], tmp_path, device="cpu", jobs=1)
    assert summary["counts"] == {"failed": 1}
    assert summary["ran"] == 0
    assert "its process died 3 times" in summary["failed"][0]
    assert store.attempts(spec.key) == 0
