"""Device and summary of the speed benchmarks; see bench_training.py."""

from __future__ import annotations

from typing import Any

import device as timing
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


@pytest.fixture(scope="session", autouse=True)
def machine(device: torch.device) -> dict[str, Any]:
    """Copy bandwidth and matrix rate, measured before anything else."""
    return timing.machine(device)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Device, driver, versions, clocks and limits go into `--benchmark-json`."""
    machine_info["sffbench"] = timing.machine(torch.device(config.getoption("--device")))


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
    """Lines for each kernel: microseconds of every side, how often ours goes into them, shares."""
    if not infos:
        return
    limits = timing.machine(where)
    terminalreporter.write_sep("=", f"medians of turns, {device_name(where)}")
    terminalreporter.write_line(
        f"copy {limits['copy_bytes_per_s'] / 1e9:,.1f} GB/s, "
        f"matrices {limits['matrix_flop_per_s'] / 1e12:,.3f} TFLOP/s"
    )
    for info in infos:
        sides = "  ".join(f"{name} {1e6 * s:,.0f} us" for name, s in info["seconds"].items())
        ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in info["ratios"].items())
        share = info.get("share_of_copy_bandwidth")
        shares = "" if share is None else f"\n    share of copy bandwidth {share:.2f}"
        terminalreporter.write_line(f"{info['title']}\n    {sides}\n    {ratios}{shares}")
