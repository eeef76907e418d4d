"""L2-SP (Li, Grandvalet and Davoine, ICML 2018): decay towards the pretrained weights.

    theta <- theta - lr * strength * (theta - theta_pretrained)      after each optimiser step

Their penalty strength / 2 * |theta - theta_pretrained|^2 is in the loss, under SGD. Under Adam a
gradient loses its size, so it is decoupled here, as AdamW decouples weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

import sffkernels
from sffbench.strategies.anchors import Anchored, anchored, in_head
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM


class L2SP(Strategy):
    """theta <- (1 - lr s) theta + lr s theta_pretrained after each step, s = strength.

    It takes the place of weight decay. Theirs gives plain decay to what the checkpoint lacks, a
    classifier; a forecasting head is pretrained and held as well, unless it is new or
    `hold_head = false`: then it decays by `head_decay` (their 0.01). lr follows the schedule, and
    over T cosine steps a displacement fades by exp(-s lr T / 2), which is 0.22 for s = 100,
    lr = 1e-4 and T = 300. lr s is at most 1.
    """

    name: ClassVar[str] = "l2-sp"

    strength: Annotated[float, Field(ge=0.0, lt=math.inf)] = 100.0
    hold_head: bool = True
    head_decay: Annotated[float, Field(ge=0.0, lt=math.inf)] = 0.01

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]]:
        """Two groups: what is held, without decay of its own, and a head that is not."""
        free_head = model.new_head or not self.hold_head
        groups: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups[free_head and in_head(model, name)].append(parameter)
        return [
            {"params": found, "weight_decay": self.head_decay if is_free else 0.0}
            for is_free, found in groups.items()
            if found
        ]

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """The step of `full`, then the pull."""
        loss = super().step(model, batch, ctx)
        if self.name not in ctx.state:
            ctx.state[self.name] = anchored(model, ctx, head=self.hold_head)
        held: Anchored = ctx.state[self.name]
        pull = min(1.0, self.strength * ctx.optimizer.param_groups[0]["lr"])
        sffkernels.interpolate_(held.parameters, 1.0 - pull, other=held.pretrained, b=pull)
        return loss
