"""Mixout (Lee, Cho and Kang, ICLR 2020): at each step, random weights are pretrained again.

    w_mix = u + m * (w - u) / (1 - p),  m = 0 with probability p, else 1;  u = pretrained w

The loss is that of w_mix, whose mean over m is w; dw gets m / (1 - p) of its gradient, and w is
what moves. Dropout is the case u = 0. Validation and the test see w.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

import sffkernels
from sffbench.strategies.anchors import Anchored, anchored
from sffbench.strategies.base import Strategy
from sffkernels import Init

if TYPE_CHECKING:
    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM


class Mixout(Strategy):
    """Full fine-tuning of weights of which a share p is pretrained anew at each step.

    Element by element, in the weights of Linear layers and of convolutions of width 1, which are
    linear layers too (Timer 1.0); biases, norms, embeddings and a new head are never mixed. p = 0
    is `full`. One mask serves all micro-batches of a step. Costs two copies of these weights.
    """

    name: ClassVar[str] = "mixout"

    p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """Forward and backward at w_mix, the optimiser at w."""
        if self.name not in ctx.state:
            ctx.state[self.name] = _linear_weights(model, ctx)
        held: Anchored = ctx.state[self.name]
        masks = self._masks(held, ctx)
        ctx.optimizer.zero_grad(set_to_none=True)
        with self._mixed(held, masks):
            loss = ctx.backward(model, batch)
        for weight, mask in zip(held.parameters, masks, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(mask).div_(1.0 - self.p)
        ctx.clip(model)
        ctx.optimizer.step()
        return loss

    def _masks(self, held: Anchored, ctx: Context) -> list[Tensor]:
        """True where w stays, from the counter stream of (seed, step, name)."""
        masks = []
        for name, weight in zip(held.names, held.parameters, strict=True):
            stream = f"mixout/{ctx.step}/{name}"
            uniform = Init.uniform(0.0, 1.0)
            drawn = sffkernels.draw(
                uniform, weight.shape, seed=ctx.seed, name=stream, device=weight.device
            )
            masks.append(drawn >= self.p)
        return masks

    @contextmanager
    def _mixed(self, held: Anchored, masks: list[Tensor]) -> Iterator[None]:
        """w_mix inside, the bits of w afterwards."""
        weights, scale = held.parameters, 1.0 / (1.0 - self.p)
        kept = [weight.detach().clone() for weight in weights]
        sffkernels.interpolate_(weights, scale, other=held.pretrained, b=1.0 - scale)
        with torch.no_grad():
            for weight, pretrained, mask in zip(weights, held.pretrained, masks, strict=True):
                weight.copy_(torch.where(mask, weight, pretrained))
        try:
            yield
        finally:
            sffkernels.interpolate_(weights, 0.0, other=kept, b=1.0)


def _linear_weights(model: LTSM, ctx: Context) -> Anchored:
    """Weights of linear maps that train and have a pretrained value."""
    linear = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv1d) and module.kernel_size == (1,))
    }
    found = zip(*anchored(model, ctx), strict=True)
    chosen = [one for one in found if id(one[1]) in linear]
    return Anchored(*(list(column) for column in zip(*chosen, strict=True)))
