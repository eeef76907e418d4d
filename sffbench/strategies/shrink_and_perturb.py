"""Shrink and perturb (Ash and Adams, NeurIPS 2020), adapted: SFF, again and again.

    theta <- alpha * theta + (1 - alpha) * theta_random      before each of `times` equal stretches

Theirs does it whenever new data arrive, with noise of a small fixed scale; here the noise is a
fresh random twin, and it happens by the clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from sffbench.context import Phase
from sffbench.strategies.base import Strategy
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from torch import Tensor

    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM


class ShrinkAndPerturb(Strategy):
    """Mix with a random twin every T / times steps of a budget of T; times = 1 is `sff`.

    Each stretch has an optimiser and a schedule of its own, as theirs trains anew each time: the
    moments of the last stretch are those of other weights, and a mix late in one long schedule
    would meet a step too small to mend it. The first twin is SFF's, each later one has a seed of
    its own. Validation may select a model of any stretch.
    """

    name: ClassVar[str] = "shrink-and-perturb"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7
    times: PositiveInt = 3

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """The first mix, which is that of SFF."""
        mix_with_random_twin(model, self.alpha, ctx.seed)
        return model

    def phases(self, ctx: Context) -> list[Phase]:
        """`times` equal stretches."""
        return [Phase(f"stretch {index}") for index in range(self.times)]

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """As `full`, after a mix where a later stretch begins."""
        stretch = ctx.phase.name
        if ctx.state.setdefault(self.name, stretch) != stretch:
            ctx.state[self.name] = stretch
            seed = ctx.rng(f"twin of {stretch}").initial_seed()
            mix_with_random_twin(model, self.alpha, seed)
        return super().step(model, batch, ctx)
