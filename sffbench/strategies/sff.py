"""SFF, smoothed full fine-tuning (ICLR 2026): interpolate with a random twin, then fine-tune.

    theta_0 = alpha * theta_pretrained + (1 - alpha) * theta_random;  then as `full`

alpha weighs the pretrained side; the headline value is the released code's 0.7, untuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from sffbench.strategies.base import Strategy
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class SFF(Strategy):
    """Mix once before training, with the run's seed; alpha=1 is `full`, alpha=0 `from-scratch`."""

    name: ClassVar[str] = "sff"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Smooth the pretrained weights in place."""
        mix_with_random_twin(model, self.alpha, ctx.seed)
        return model
