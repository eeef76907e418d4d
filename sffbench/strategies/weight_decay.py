"""Weight decay, stronger than the protocol's: is SFF's shrinking all that it does?

theta <- (1 - lr * decay) * theta, then the step of Adam      (Loshchilov and Hutter, ICLR 2019)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    import torch

    from sffbench.context import Context
    from sffbench.models.base import LTSM


class WeightDecay(Strategy):
    """Full fine-tuning with weight decay `decay` in place of the protocol's (0.01), everywhere.

    What counts is the sum of lr * decay: over T cosine steps weights shrink by exp(-decay lr T / 2)
    if no gradient answers, which is 0.86 for decay 10, lr = 1e-4 and T = 300. Decoupled under
    AdamW; under a protocol with plain Adam it is an L2 term in the gradient.
    """

    name: ClassVar[str] = "weight-decay"

    decay: Annotated[float, Field(ge=0.0, lt=math.inf)] = 10.0

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]]:
        """All parameters, norms and biases too, as under the protocol's decay."""
        return [{"params": list(super().parameters(model, ctx)), "weight_decay": self.decay}]
