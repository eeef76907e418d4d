"""SFF's control for size: noise that moves every tensor as far as SFF would, in no direction.

    theta_0 = theta + z * |(1 - alpha) (theta_random - theta)| / |z|,  z ~ N(0, 1);  then as `full`

Norms |.| are of one tensor. If `sff` is no better than this, its twin and its pull explain nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field

import sffkernels
from sffbench.models.twin import start_of
from sffbench.strategies.base import Strategy
from sffkernels import Init

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class SFFNoise(Strategy):
    """Noise of the norm of SFF's displacement, per tensor, in place of the displacement itself.

    The twin whose distance is taken is that of `sff` under the same seed; where it equals theta
    (a fresh norm), nothing moves. Weights grow where SFF shrinks them: |theta_0| > |theta|.
    """

    name: ClassVar[str] = "sff-noise"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.7

    @torch.no_grad()
    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Add the noise in place, one tensor at a time."""
        table = model.initial()
        for name, theta in model.named_parameters():
            twin = start_of(table[name], theta.shape, seed=ctx.seed, name=name).to(theta)
            noise = sffkernels.draw(
                Init.normal(), theta.shape, seed=ctx.seed, name=f"sff-noise/{name}"
            ).to(theta)
            length = (1.0 - self.alpha) * (twin - theta).double().norm()
            sffkernels.interpolate_([theta], 1.0, other=[noise], b=length / noise.double().norm())
        return model
