"""Smoothed zero-shot: interpolate with a random twin, then forecast without training.

alpha defaults to 0.85, where the paper's figure 5 puts the best zero-shot value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from sffbench.strategies.base import Strategy
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class SmoothedZeroShot(Strategy):
    """theta = alpha * theta_pretrained + (1 - alpha) * theta_random, evaluated as it is."""

    name: ClassVar[str] = "smoothed-zero-shot"
    trains: ClassVar[bool] = False

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.85

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Smooth the pretrained weights in place."""
        mix_with_random_twin(model, self.alpha, ctx.seed)
        return model
