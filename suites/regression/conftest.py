"""Device and summary of the speed benchmarks; see bench_training.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sffbench.measure import device_name


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device cpu|cuda`."""
    parser.addoption("--device", default="cpu", help="cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where both sides run; one thread on a CPU."""
    torch.set_num_threads(1)
    return torch.device(request.config.getoption("--device"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line a benchmark: both rates and how often ours goes into the rival's."""
    session = getattr(config, "_benchmarksession", None)
    infos = [b.extra_info for b in session.benchmarks if b.extra_info] if session else []
    if not infos:
        return
    where = torch.device(config.getoption("--device"))
    _print_turns(terminalreporter, [info for info in infos if "ratios" in info], where)
    infos = [info for info in infos if "network" in info]
    if not infos:
        return
    unit = "CPU-second, 1 thread" if where.type == "cpu" else "second"
    terminalreporter.write_sep("=", f"windows per {unit}, {device_name(where)}")
    for info in infos:
        low, high = info["ratio_range"]
        terminalreporter.write_line(
            f"{info['phase']:>9}  {info['network']:<30} ours {info['ours_windows_per_s']:>9,.0f}"
            f"  rival {info['rival_windows_per_s']:>9,.0f}  ratio {info['ratio']:.2f}"
            f"  [{low:.2f}, {high:.2f}]"
        )


def _print_turns(terminalreporter: Any, infos: list[dict[str, Any]], where: torch.device) -> None:
    """Two lines a kernel: microseconds of every side, and how often ours goes into them."""
    if not infos:
        return
    terminalreporter.write_sep("=", f"medians of turns, {device_name(where)}")
    for info in infos:
        sides = "  ".join(f"{name} {1e6 * s:,.0f} us" for name, s in info["seconds"].items())
        ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in info["ratios"].items())
        terminalreporter.write_line(f"{info['title']}\n    {sides}\n    {ratios}")
