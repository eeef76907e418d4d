"""SFF's control for scale: mix as SFF does, then give every tensor its pretrained norm back.

    m = alpha * theta + (1 - alpha) * theta_random;  theta_0 = m * |theta| / |m|;  then as `full`

SFF turns a tensor and shrinks it; this keeps the turn and undoes the shrinking, as `shrink` does
the reverse. Rescaling the twin instead would leave the mix 0.76 times as long at alpha = 0.7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

import sffkernels
from sffbench.strategies.base import Strategy
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class SFFRescaled(Strategy):
    """Mix with the random twin, then rescale each tensor to its pretrained norm.

    Norm gains and biases are tensors like others. A tensor that was all 0 stays so, and a mix that
    is all 0 has no norm to be given.
    """

    name: ClassVar[str] = "sff-rescaled"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Mix and rescale in place; the norms of the tensors are all that is kept."""
        parameters = list(model.parameters())
        before = [theta.detach().double().norm() for theta in parameters]
        mix_with_random_twin(model, self.alpha, ctx.seed)
        if self.alpha == 1.0:  # a ratio of 1 may round
            return model
        for theta, norm in zip(parameters, before, strict=True):
            length = theta.detach().double().norm()
            sffkernels.interpolate_([theta], norm / length if length > 0 else 1.0)
        return model
