"""Paces: a budget of time on a clock that the test turns, and one on the real one."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from sffbench import planning, report, runner
from sffbench.context import Context, Phase
from sffbench.models.base import LTSM
from sffbench.pace import MAX_BURST, Pace, by_time
from sffbench.protocol import Protocol
from sffbench.strategies import Strategy
from sffbench.suite import RunSpec

Cells = Callable[..., list[RunSpec]]
TIMED = {"train_s": 10.0, "num_checks": 5}


def timed(**fields: Any) -> Protocol:
    return Protocol(**({"name": "test", "batch_size": 16} | TIMED | fields))


class Machine:
    """A device whose steps take what the test says; what it did is kept."""

    def __init__(self, step_s: Iterator[float], prepared_s: float = 0.0) -> None:
        self.step_s, self.now = step_s, prepared_s
        self.factors: list[float] = []
        self.begun: list[float] = []
        self.bursts: list[int] = []
        self.checks: list[float] = []

    def drive(self, paces: list[Pace]) -> None:
        for pace in paces:
            while pace.unfinished:
                factors = pace.factors()
                self.bursts.append(len(factors))
                for factor in factors:
                    self.factors.append(factor)
                    self.begun.append(self.now)
                    self.now += next(self.step_s)
                pace.ran()
                if pace.due():
                    self.checks.append(self.now)


def trained(protocol: Protocol, machine: Machine, *shares: float) -> Machine:
    phases = [Phase(share=share) for share in shares or (1.0,)]
    machine.drive(by_time(protocol, phases, lambda: machine.now))
    return machine


@pytest.mark.parametrize("step_s", [0.001, 0.09, 0.7])
def test_steps_fill_the_time_to_half_a_step(step_s: float) -> None:
    machine = trained(timed(), Machine(itertools.repeat(step_s)))
    assert abs(machine.now - 10.0) <= 0.5 * step_s + 1e-9
    assert len(machine.factors) == round(10.0 / step_s)


def test_validation_comes_at_even_fractions_of_the_time() -> None:
    machine = trained(timed(), Machine(itertools.repeat(0.03)))
    assert machine.checks == pytest.approx([2.0, 4.0, 6.0, 8.0, 10.0], abs=0.016)


def test_the_learning_rate_is_a_cosine_of_the_share_of_time_that_is_over() -> None:
    machine = trained(timed(), Machine(itertools.repeat(0.03)))
    expected = [0.5 * (1 + math.cos(math.pi * now / 10.0)) for now in machine.begun]
    assert machine.factors == pytest.approx(expected, abs=1e-9)


def test_the_halving_schedule_takes_stretches_of_time_for_epochs() -> None:
    machine = trained(timed(schedule="halving"), Machine(itertools.repeat(0.03)))
    by_stretch = [
        {
            f
            for f, now in zip(machine.factors, machine.begun, strict=True)
            if k + 0.1 < now < k + 1.9
        }
        for k in range(0, 10, 2)
    ]
    assert by_stretch == [{1.0}, {1.0}, {0.5}, {0.25}, {0.125}]


def test_a_clock_is_read_between_bursts_only() -> None:
    machine = trained(timed(), Machine(itertools.repeat(0.001)))
    assert machine.bursts[0] == 1  # until the time of a step is known
    assert max(machine.bursts) == round(MAX_BURST * 10.0 / 0.001)
    assert len(machine.bursts) < 1.2 / MAX_BURST


def test_slow_first_steps_and_jitter_cost_little() -> None:
    steps = itertools.chain([1.5, 0.4], itertools.cycle([0.01, 0.03, 0.02]))
    machine = trained(timed(), Machine(steps))
    assert abs(machine.now - 10.0) < 0.1
    # at 1.5 s the next step, as long again, would have gone further beyond 2.0
    assert machine.checks == pytest.approx([1.5, 4.0, 6.0, 8.0, 10.0], abs=0.1)


def test_preparation_is_part_of_the_time() -> None:
    machine = trained(timed(), Machine(itertools.repeat(0.05), prepared_s=4.0))
    assert machine.now == pytest.approx(10.0, abs=0.026)
    assert len(machine.factors) == pytest.approx(120, abs=1)
    assert machine.factors[0] == 1.0


def test_phases_share_the_time_and_each_has_its_own_schedule() -> None:
    machine = trained(timed(), Machine(itertools.repeat(0.02)), 1.0, 3.0)
    starts = [now for f, now in zip(machine.factors, machine.begun, strict=True) if f == 1.0]
    assert starts == pytest.approx([0.0, 2.5], abs=0.02)


@pytest.mark.parametrize("prepared_s", [0.0, 25.0])
def test_every_phase_takes_a_step_and_a_long_one_is_checked_once(prepared_s: float) -> None:
    machine = trained(timed(), Machine(itertools.repeat(30.0), prepared_s))
    assert (len(machine.factors), machine.factors, len(machine.checks)) == (1, [1.0], 1)


# -- the protocol and its key ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "num_checks"), [("standard", 6), ("quick", 3), ("full-shot", 10)]
)
def test_a_budget_of_time_keeps_the_number_of_checks(
    cells_of: Cells, protocol: str, num_checks: int
) -> None:
    (spec,) = cells_of(protocol=protocol, budget={"train_s": 2.0})
    rules = spec.cell["protocol"]
    assert (rules["train_s"], rules["num_checks"]) == (2.0, num_checks)
    assert rules["max_steps"] is rules["epochs"] is rules["validate_every"] is None
    (other,) = cells_of(protocol=protocol, budget={"train_s": 3.0})
    assert spec.key != other.key


def test_a_budget_of_steps_says_nothing_of_time_in_its_key(cells_of: Cells) -> None:
    assert not {"train_s", "num_checks"} & cells_of()[0].cell["protocol"].keys()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"train_s": 0.0}, "train_s = 0.0: must be a positive"),
        ({"train_s": math.inf}, "train_s = inf: must be a positive"),
        ({"train_s": 1.0, "max_steps": 3}, "exactly one of max_steps, epochs and train_s"),
        ({"train_s": 1.0, "num_checks": 0}, "num_checks = 0: must be at least 1"),
        ({"train_s": 1.0, "validate_every": 5}, "with train_s, set num_checks"),
        ({"num_checks": 5}, "num_checks divides train_s"),
    ],
)
def test_a_wrong_budget_of_time_is_one_line(
    cells_of: Cells, budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cells_of(budget=budget)


# -- runs ------------------------------------------------------------------------------------------


def test_a_timed_run_ends_in_time_and_says_so(cells_of: Cells) -> None:
    budget = {"train_s": 0.4, "num_checks": 2, "batch_size": 16, "num_validation": 64}
    full, zero_shot = (
        runner.run(spec, torch.device("cpu"))
        for spec in cells_of(strategies=["full", "zero-shot"], budget=budget)
    )
    cost = full["cost"]
    assert full["status"] == zero_shot["status"] == "ok"
    assert (full["flags"]["timed"], zero_shot["flags"]["timed"]) == (True, False)
    assert cost["train_cpu_s"] + cost["prepare_cpu_s"] > 0.9 * 0.4
    assert cost["num_steps"] == full["curve"][-1]["step"]
    assert cost["train_windows"] == 16 * cost["num_steps"]
    assert len(full["curve"]) == 3
    text = report.render([full, zero_shot])
    assert text.count("[timed]") == 2  # the row of full and the line below
    assert "trained for 0.4 processor seconds" in text


def test_strategies_see_how_many_steps_are_expected(fit: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []

    class Watch(Strategy):
        def step(self, model: LTSM, batch: Any, ctx: Context) -> Any:
            seen.append((ctx.step, ctx.budget.num_steps))
            return super().step(model, batch, ctx)

    budget = {"max_steps": None, "validate_every": None, "train_s": 0.3, "num_checks": 2}
    fit(Watch(), protocol=budget)
    assert all(step < expected for step, expected in seen[:-1])
    half = len(seen) // 2
    assert seen[half][1] == pytest.approx(len(seen), rel=0.5)


def test_a_plan_counts_the_seconds_of_the_budget(cells_of: Cells) -> None:
    (spec,) = cells_of(budget={"train_s": 7200.0})
    assert planning.workload(spec).train == 0
    assert planning.seconds(spec, 1e18, []) == pytest.approx(7200 + planning.OVERHEAD_S, abs=1)
    (zero_shot,) = cells_of(budget={"train_s": 7200.0}, strategies=["zero-shot"])
    assert planning.seconds(zero_shot, 1e18, []) < 10
