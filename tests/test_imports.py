"""The shape of the house: imports point one way, files stay short, the report needs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "sffbench").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")])
MAX_LINES = 400


def module_of(path: Path) -> str:
    base = ROOT / "kernels" if (ROOT / "kernels") in path.parents else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not _type_checking(child):
            yield child
            yield from _run_time(child)


def imported(path: Path, *, with_types: bool = False) -> set[str]:
    """Modules that a file imports anywhere, `from a import b` as both `a` and `a.b`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if with_types else _run_time(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _inside(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _files(*packages: str) -> list[Path]:
    return [path for path in SOURCES if _inside(module_of(path), *packages)]


LOWER = ("sffkernels", "sffbench.data", "sffbench.models", "sffbench.strategies")
UPPER = (
    "sffbench.runner",
    "sffbench.engines",
    "sffbench.report",
    "sffbench.driver",
    "sffbench.planning",
    "sffbench.cells",
    "sffbench.cli",
    "sffbench.store",
)


def test_the_walker_sees_the_whole_house() -> None:
    modules = {module_of(path) for path in SOURCES}
    assert {*LOWER, *UPPER} <= modules
    assert "sffbench.strategies.sff" in modules
    assert "torch" in imported(ROOT / "sffbench" / "training.py")
    assert "sffbench.runner" in imported(ROOT / "sffbench" / "engines" / "worker.py")


@pytest.mark.parametrize("path", _files(*LOWER), ids=module_of)
def test_what_lies_below_knows_nothing_of_what_lies_above(path: Path) -> None:
    upward = {m for m in imported(path, with_types=True) if _inside(m, *UPPER)}
    assert not upward


@pytest.mark.parametrize("path", _files("sffkernels"), ids=module_of)
def test_the_kernels_know_torch_and_nothing_of_sffbench(path: Path) -> None:
    assert not {m for m in imported(path, with_types=True) if _inside(m, "sffbench")}


@pytest.mark.parametrize("path", _files("sffbench.report"), ids=module_of)
def test_the_report_imports_no_torch_and_only_what_imports_none(path: Path) -> None:
    names = imported(path, with_types=True)
    assert not {m for m in names if _inside(m, "torch", "sffkernels")}
    allowed = ("sffbench.report", "sffbench.errors", "sffbench.data.catalog", "sffbench.store")
    foreign = {m for m in names if _inside(m, "sffbench") and m.count(".") > 0}
    assert {m for m in foreign if not _inside(m, *allowed)} <= {"sffbench.data"}


def test_importing_the_whole_report_brings_in_no_torch() -> None:
    modules = [module_of(path) for path in _files("sffbench.report", "sffbench.store")]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["data", "models"])
def test_data_and_models_do_not_know_the_strategies(package: str) -> None:
    for path in _files(f"sffbench.{package}"):
        names = imported(path, with_types=True)
        assert not {m for m in names if _inside(m, "sffbench.strategies", "sffbench.training")}


def test_only_the_command_line_and_the_driver_print_or_draw_bars() -> None:
    for path in _files("sffbench.training", "sffbench.runner", "sffbench.strategies"):
        assert "print(" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_every_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "a module says in its docstring what it is"
