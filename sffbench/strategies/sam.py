"""SAM, sharpness-aware minimisation (Foret et al., ICLR 2021): step with an uphill gradient.

    g = dL(theta);  e = rho * g / ||g||;  theta <- AdamW(theta, dL(theta + e))

Two forward and two backward passes a step: about twice the time of `full` for the same number of
steps. The table at equal accelerator time is where that is paid for.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sffbench.strategies.base import Strategy
from sffkernels import interpolate_

if TYPE_CHECKING:
    from torch.nn import Parameter

    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM

_EPSILON = 1e-12  # of the norm, where a gradient is zero


class SAM(Strategy):
    """e = rho * g / ||g||, or with `adaptive` e = rho * theta^2 g / ||theta g|| elementwise (ASAM).

    `rho` = 0.05 is the authors' default. ASAM (Kwon et al., ICML 2021) makes the neighbourhood
    independent of the scale of the weights; its authors use a `rho` about ten times as large. A
    copy of the trained weights is held during the second pass, and theta comes back from it bit for
    bit (subtracting e would leave rounding errors). Both passes see the same micro-batch and, as in
    the authors' code, the same dropout: e is the ascent direction of the very network that is then
    stepped. rho = 0 is `full` at twice its cost. Only the second gradient is clipped.
    """

    name: ClassVar[str] = "sam"

    rho: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.05
    adaptive: bool = False

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> Tensor:
        """Gradient, ascent, gradient there, back, step; returns the loss at theta."""
        ctx.optimizer.zero_grad(set_to_none=True)
        with _replayed_dropout(batch[0].device):
            loss = ctx.backward(model, batch)
        climbed = [parameter for parameter in model.parameters() if parameter.grad is not None]
        kept = [parameter.detach().clone() for parameter in climbed]
        self._climb(climbed)
        ctx.optimizer.zero_grad(set_to_none=True)
        ctx.backward(model, batch)
        interpolate_(climbed, 0.0, other=kept, b=1.0)
        ctx.clip(model)
        ctx.optimizer.step()
        return loss

    @torch.no_grad()
    def _climb(self, parameters: list[Parameter]) -> None:
        """theta <- theta + e, in one call; the norm stays on the device.

        A norm that is not a number leaves theta where it is: the loss then tells of it.
        """
        theta = [parameter.detach() for parameter in parameters]
        direction = [p.grad for p in parameters if p.grad is not None]
        if self.adaptive:
            direction = list(torch._foreach_mul(direction, theta))
        norm = torch.nn.utils.get_total_norm(direction)
        if self.adaptive:
            torch._foreach_mul_(direction, theta)
        scale = torch.nan_to_num(self.rho / (norm + _EPSILON), nan=0.0)
        interpolate_(theta, 1.0, other=direction, b=scale)


def _replayed_dropout(device: torch.device) -> AbstractContextManager[None]:
    """What draws inside, leaves the generators where they were: the next pass draws the same."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
