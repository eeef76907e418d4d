"""From scratch: the same network from random weights, trained as `full` is. Values pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sffbench.strategies.base import Strategy
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class FromScratch(Strategy):
    """theta_0 = theta_random. The draw is the one that SFF mixes in: this is SFF at alpha = 0."""

    name: ClassVar[str] = "from-scratch"

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Replace every parameter by a random draw."""
        mix_with_random_twin(model, 0.0, ctx.seed)
        return model
