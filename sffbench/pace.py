"""How long a phase trains, how its learning rate falls, and when validation is due.

A pace goes by steps, or by the seconds that preparation and steps take on the device. It gives the
learning-rate factors of the next burst of steps and is told when they are done:

    while pace.unfinished:
        run(pace.factors())
        pace.ran()
        if pace.due(): validate()

Time is read between bursts, where the device is waited for anyway: no step waits for a clock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sffbench.context import UNKNOWN_STEPS, Phase, StepBudget
from sffbench.protocol import Protocol

MAX_BURST = 0.01
"""Longest burst of a timed run, as a share of its time: what a misjudged step can cost."""


def cosine(over: float, whole: float) -> float:
    """(1 + cos(pi t / T)) / 2, t of T steps or seconds of the phase being over."""
    return 0.5 * (1.0 + math.cos(math.pi * over / whole))


def halving(epoch: int) -> float:
    """1 in epochs 1 and 2, then halved each epoch (the SFF authors' schedule)."""
    return 0.5 ** max(0, epoch - 1)


def shares(phases: Sequence[Phase], num_steps: int) -> list[int]:
    """Steps of each phase; they add up to the budget exactly."""
    ends = _ends(phases)
    marks = [round(num_steps * end / ends[-1]) for end in ends]
    return [after - before for before, after in itertools.pairwise(marks)]


def _ends(phases: Sequence[Phase]) -> list[float]:
    """0, then where each phase ends, in units of their shares."""
    return list(itertools.accumulate((phase.share for phase in phases), initial=0.0))


@dataclass
class StepPace:
    """`num_steps` steps after `begun` steps of earlier phases; a burst ends where a check is."""

    protocol: Protocol
    budget: StepBudget
    num_steps: int
    begun: int
    done: int = 0
    _burst: int = 0

    @property
    def unfinished(self) -> bool:
        """Whether the phase goes on."""
        return self.done < self.num_steps

    def factors(self) -> list[float]:
        """Learning-rate factors of the steps until validation or the end of the phase."""
        every = self.budget.validate_every
        until_check = every - (self.begun + self.done) % every
        self._burst = min(until_check, self.num_steps - self.done)
        return [self._factor(self.done + i) for i in range(self._burst)]

    def _factor(self, step: int) -> float:
        if self.protocol.schedule == "cosine":
            return cosine(step, self.num_steps)
        return halving(step // self.budget.epoch_steps)

    def ran(self) -> None:
        """The burst is done."""
        self.done += self._burst

    def due(self) -> bool:
        """Every `validate_every` steps, and after the last of the budget."""
        step = self.begun + self.done
        return step % self.budget.validate_every == 0 or step >= self.budget.num_steps

    def expected_steps(self) -> int:
        """Steps of the whole run."""
        return self.budget.num_steps


@dataclass
class Clock:
    """The time of a run: what is spent, what a step takes, how many checks are behind us."""

    spent_s: Callable[[], float]  # seconds of preparation and steps so far
    total_s: float
    num_checks: int
    step_s: float = 0.0  # of a step in the last burst; 0 before the first burst of a phase
    num_steps: int = 0
    num_checked: int = 0
    _before_s: float = 0.0

    def reached(self, mark_s: float) -> bool:
        """Whether another step would end further from the mark than we are now."""
        return self.spent_s() + 0.5 * self.step_s >= mark_s

    def burst(self, end_s: float) -> int:
        """Steps until the next check or `end_s`; one, until the time of a step is known."""
        self._before_s = self.spent_s()
        if self.step_s == 0.0:
            return 1
        next_check_s = self.total_s * (self.num_checked + 1) / self.num_checks
        left = round((min(next_check_s, end_s) - self._before_s) / self.step_s)
        return max(1, min(left, int(MAX_BURST * self.total_s / self.step_s)))

    def ran(self, num_steps: int) -> None:
        """A burst is done: its time is what the next steps are expected to take."""
        self.num_steps += num_steps
        self.step_s = (self.spent_s() - self._before_s) / num_steps

    def passed_checks(self) -> bool:
        """Whether a check was reached since the last call; several at once are one."""
        share = (self.spent_s() + 0.5 * self.step_s) / self.total_s
        before = self.num_checked
        self.num_checked = max(before, int(share * self.num_checks + 1e-9))
        return self.num_checked > before

    def expected_steps(self) -> int:
        """Steps of the whole run, if they go on as the last ones did."""
        left_s = max(0.0, self.total_s - self.spent_s())
        return self.num_steps + round(left_s / self.step_s) if self.step_s else UNKNOWN_STEPS


@dataclass
class TimePace:
    """Steps from `begin_s` to `end_s` of the clock, at least one; the rate falls with the time.

    In the halving schedule, `num_checks` stretches of equal time stand for the epochs.
    """

    protocol: Protocol
    clock: Clock
    begin_s: float
    end_s: float
    _burst: int = field(default=0, init=False)

    @property
    def unfinished(self) -> bool:
        """Whether the phase goes on."""
        return self._burst == 0 or not self.clock.reached(self.end_s)

    def factors(self) -> list[float]:
        """Learning-rate factors of a burst whose end is foretold by the time of the last steps."""
        if self._burst == 0:
            self.clock.step_s = 0.0  # other parameters, other steps: they are timed anew
        self._burst = self.clock.burst(self.end_s)
        over_s = self.clock.spent_s() - self.begin_s
        return [self._factor(over_s + i * self.clock.step_s) for i in range(self._burst)]

    def _factor(self, over_s: float) -> float:
        whole_s = max(self.end_s - self.begin_s, 1e-9)
        over_s = min(over_s, whole_s)
        if self.protocol.schedule == "cosine":
            return cosine(over_s, whole_s)
        return halving(int(over_s / whole_s * self.clock.num_checks))

    def ran(self) -> None:
        """The burst is done."""
        self.clock.ran(self._burst)

    def due(self) -> bool:
        """At even fractions of the time."""
        return self.clock.passed_checks()

    def expected_steps(self) -> int:
        """Steps of the whole run, as far as can be told now."""
        return self.clock.expected_steps()


Pace = StepPace | TimePace


def by_steps(protocol: Protocol, budget: StepBudget, phases: Sequence[Phase]) -> list[Pace]:
    """A pace for each phase; together they take the budget's steps."""
    counts = shares(phases, budget.num_steps)
    begins = itertools.accumulate(counts, initial=0)
    return [
        StepPace(protocol, budget, count, begun)
        for count, begun in zip(counts, begins, strict=False)
    ]


def by_time(
    protocol: Protocol, phases: Sequence[Phase], spent_s: Callable[[], float]
) -> list[Pace]:
    """A pace for each phase; together they take what preparation has left of the time."""
    assert protocol.train_s is not None
    assert protocol.num_checks is not None
    clock = Clock(spent_s, protocol.train_s, protocol.num_checks)
    first_s, ends = spent_s(), _ends(phases)
    marks = [first_s + end / ends[-1] * (protocol.train_s - first_s) for end in ends]
    return [TimePace(protocol, clock, begin, end) for begin, end in itertools.pairwise(marks)]
