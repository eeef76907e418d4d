"""SFF's control for structure: the twin is the pretrained tensor itself, its elements shuffled.

    theta_0 = alpha * theta + (1 - alpha) * permuted(theta);  then as `full`

The twin has exactly the distribution of the weights, and none of what they learned. If `sff` does
better than this, the distribution that a model starts from matters, not any disturbance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field

import sffkernels
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class SFFPermuted(Strategy):
    """Mix with a random permutation of each tensor's own elements, norms included."""

    name: ClassVar[str] = "sff-permuted"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Mix in place; one permuted tensor at a time exists."""
        for name, parameter in model.named_parameters():
            theta = parameter.detach()
            order = torch.randperm(theta.numel(), generator=ctx.rng(f"permutation of {name}"))
            twin = theta.flatten()[order.to(theta.device)].view_as(theta)
            sffkernels.interpolate_([parameter], self.alpha, other=[twin], b=1.0 - self.alpha)
        return model
