"""The command line: parse, call, print. Nothing is computed here.

Data goes to stdout and progress to stderr; errors are one clear line. Exit codes: 0 ok, 1 finished
with failed cells, 2 bad input, 130 interrupted. Heavy imports stand inside the verbs, so that
`--help`, `table`, `compare` and `show` answer at once.
"""

from __future__ import annotations

import json
import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sffbench import __version__
from sffbench.errors import InputError

app = typer.Typer(
    help="How should a large time series model be fine-tuned? Run, compare, and see.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


DEFAULT_RESULTS = Path("results/local")
INTERRUPTED = 130

Results = Annotated[
    Path, typer.Option("--results", metavar="R", help="Folder of records.", show_default=True)
]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir", envvar="SFFBENCH_DATA", metavar="D", help="Folder of the CSV files."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="Python file with strategies; repeatable."),
]
SuiteName = Annotated[str, typer.Argument(help="A shipped suite or a TOML file.")]


class Kind(StrEnum):
    """What `list` can list."""

    models = "models"
    datasets = "datasets"
    strategies = "strategies"
    protocols = "protocols"
    suites = "suites"


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="Which registry.")], as_json: Json = False
) -> None:
    """Show what is registered, with sources, licences and capabilities."""
    from sffbench import listing

    rows = listing.rows(kind.value)
    _print(json.dumps(rows, indent=1) if as_json else listing.text(rows))


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Data sets and MODEL:PRESET; all data sets when left out."),
    ] = None,
    data_dir: DataDir = None,
    from_dir: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Import from a folder instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download data sets and weights, or import them; every file is checked by its SHA-256."""
    from sffbench import fetching

    files = fetching.fetch(names or [], Path(data_dir or "data"), from_dir)
    _print(json.dumps(files, indent=1) if as_json else fetching.text(files))


@app.command()
def plan(
    suite: SuiteName,
    data_dir: DataDir = None,
    results: Results = DEFAULT_RESULTS,
    plugin: Plugins = None,
    shard: Annotated[str | None, typer.Option(metavar="i/n", help="Only every n-th cell.")] = None,
    as_json: Json = False,
) -> None:
    """Show which runs a suite holds, which are done, and the hours left. Writes nothing."""
    from sffbench import planning

    overview = planning.overview(_specs(suite, data_dir, plugin, shard), results)
    _print(json.dumps(overview, indent=1) if as_json else planning.text(overview))


@app.command()
def run(
    suite: SuiteName,
    data_dir: DataDir = None,
    results: Results = DEFAULT_RESULTS,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    engine: Annotated[str, typer.Option(help="local (ray is not built yet).")] = "local",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Workers; default one a core, or one GPU.")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="i/n", help="Only every n-th cell.")] = None,
    plugin: Plugins = None,
    retry_failed: Annotated[bool, typer.Option(help="Run failed cells again.")] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Start no further cell after this long."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run what is missing of a suite. Safe to stop and repeat: finished cells are never rerun."""
    from sffbench import driver

    if engine != "local":
        from sffbench.errors import unknown

        raise unknown("engine", engine, ["local"])
    summary = driver.run_suite(
        _specs(suite, data_dir, plugin, shard),
        results,
        device=device,
        jobs=jobs,
        retry_failed=retry_failed,
        time_limit_s=math.inf if time_limit is None else time_limit,
    )
    _print(json.dumps(summary, indent=1) if as_json else driver.text(summary, results))
    if summary["failed"]:
        raise typer.Exit(1)


@app.command()
def table(
    results: Results = DEFAULT_RESULTS,
    format: Annotated[str, typer.Option(help="md, csv or json.")] = "md",
    suite: Annotated[
        str | None, typer.Option(help="Show this suite's absent cells as missing.")
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="accuracy or cost; cost for suites that measure speed.")
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print the leaderboards of a results folder: accuracy, change against full, cost."""
    from sffbench import report

    expected = None
    if suite is not None:
        specs = _specs(suite, data_dir)
        expected = [s.cell | {"key": s.key, "label": s.label} for s in specs]
        if view is None and specs[0].measure == "speed":
            view = "cost"
    records = report.load(results)
    _print(report.render(records, "json" if as_json else format, view=view, expected=expected))


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A strategy's label in the table.")],
    b: Annotated[str, typer.Argument(help="The strategy to compare it with.")],
    results: Results = DEFAULT_RESULTS,
    as_json: Json = False,
) -> None:
    """Compare two strategies: effect, interval, cells won and lost, and what may be claimed."""
    from sffbench import report

    _print(report.compare(report.load(results), a, b, as_json=as_json))


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="Key of a run, or its first digits.")],
    results: Results = DEFAULT_RESULTS,
    as_json: Json = False,
) -> None:
    """Show one run: what it was, what came out, what it cost, where it ran."""
    from sffbench import report

    records = report.load(results)
    if as_json:
        _print(json.dumps(report.find(records, run), indent=1))
    else:
        _print(report.show(records, run))


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="Python file with strategies, or a name.")],
    model: Annotated[str, typer.Option(help="Small model to try it on.")] = "ttm:tiny",
    plugin: Plugins = None,
    as_json: Json = False,
) -> None:
    """Try a strategy's conformance on the CPU, in seconds, and say in words what is wrong."""
    from sffbench.conformance import checking

    findings = checking.findings(target, model, tuple(plugin or ()))
    _print(json.dumps(findings, indent=1) if as_json else checking.text(findings))
    if any(row["verdict"] == "failed" for row in findings):
        raise typer.Exit(1)


@app.command()
def pretrain(
    model: Annotated[str, typer.Argument(help="MODEL:PRESET, for example ttm:tiny.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default the package's own.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Default as on its card.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default as on its card.")] = None,
) -> None:
    """Pretrain a small checkpoint on synthetic series, so that everything runs offline."""
    from sffbench import pretrain as pretraining

    folder = pretraining.run(model, out, steps=steps, seed=seed)
    _print(f"wrote {folder}")


def _specs(
    name: str, data_dir: str | None, plugins: list[str] | None = None, part: str | None = None
) -> list[Any]:
    from sffbench import cells
    from sffbench import suite as suites

    places = suites.Places(data=data_dir, plugins=tuple(plugins or ()))
    specs = cells.expand(suites.load(name), places)
    return specs if part is None else suites.shard(specs, part)


def _print(text: str) -> None:
    """To stdout, at once, so that a full disk is seen here; a reader that left has seen enough."""
    if not text:
        return
    try:
        print(text, flush=True)
    except OSError as error:
        # What is still buffered goes nowhere: the interpreter's own last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            raise InputError(f"cannot write to standard output: {error.strerror}") from None


def main() -> NoReturn:
    """Entry point: every expected error becomes one line on stderr and an exit code."""
    try:
        # An Exit inside comes back as its code; an interrupt as 130, or as Abort in older typer.
        code = app(standalone_mode=False) or 0
    except InputError as error:
        _complain(str(error))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "format_message"):
            raise
        _complain(error.format_message())
        code = 2
    if code == INTERRUPTED:
        _complain("interrupted; what had finished is kept, run again to go on")
    sys.exit(code)


def _complain(message: str) -> None:
    """One line on stderr; nothing where there is nothing to say (the help was printed instead)."""
    if line := " ".join(message.split()):
        print(f"sffbench: {line}", file=sys.stderr)
