"""The command as a process: what it imports, how fast it answers, pipes and full disks."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sffbench.store import Store


def one_line(err: str) -> str:
    assert "Traceback" not in err
    (line,) = err.splitlines()
    assert line.startswith("sffbench: ")
    return line


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one record."""
    import torch

    from sffbench import cells, runner
    from sffbench.suite import Places, Suite

    root = tmp_path_factory.mktemp("results")
    suite = Suite(
        name="one",
        protocol="quick",
        data="synthetic",
        models=("unused",),  # type: ignore[arg-type]
        datasets=("ETTh1",),
        horizons=(8,),
        strategies=("last-value",),  # type: ignore[arg-type]
    ).model_copy(update={"models": ()})
    for spec in cells.expand(suite, Places()):
        Store(root).write(runner.run(spec, torch.device("cpu")))
    return root


def python(code: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["run", "--help"],
        ["table"],
        ["table", "--format", "csv"],
        ["table", "--json"],
        ["show", ""],
        ["list", "protocols"],
        ["list", "datasets"],
        ["list", "suites"],
    ],
    ids=" ".join,
)
def test_no_torch_is_imported_by_the_package_its_help_or_its_tables(
    results: Path, words: list[str]
) -> None:
    code = (
        "import sys, sffbench\n"
        "from sffbench import cli\n"
        "try:\n"
        "    sys.argv[1:] and cli.main()\n"
        "finally:\n"
        "    heavy = {'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    if words and words[0] in ("table", "show"):
        words = [*words, "--results", str(results)]
    done = python(code, *words)
    assert done.returncode == 0, done.stderr
    assert bool(done.stdout) == bool(words)


def test_help_answers_within_a_second_and_a_half_of_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("from sffbench.cli import main; main()", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for verb in ("list", "fetch", "plan", "run", "table", "show", "pretrain"):
        assert verb in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.5  # half a second on an idle machine, start of the interpreter included


def _main(*words: str, **options: Any) -> "subprocess.Popen[str]":
    code = "from sffbench.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, **options
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    process = _main("list", "protocols", "--json", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert (process.wait(), err) == (0, "")


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        process = _main("list", "protocols", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 2
    assert "No space left on device" in one_line(err)


def test_the_command_is_installed_under_its_name() -> None:
    script = Path(sys.executable).with_name("sffbench")
    if not script.exists():
        pytest.skip("the package is not installed as a command")
    done = subprocess.run([script, "list", "suites"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quick" in done.stdout
    assert os.access(script, os.X_OK)
