"""Gaussian noise on the pretrained weights, then fine-tune: NoisyTune (Wu et al., ACL 2022).

    theta_0 = theta_pretrained + scale * std(theta_pretrained) * z,  z ~ N(0, 1);  then as `full`

std is of each tensor. Theirs draws U(-scale / 2, scale / 2); a normal has no edge to explain.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

import sffkernels
from sffbench.strategies.base import Strategy
from sffkernels import Init

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class GaussianNoise(Strategy):
    """theta_0 = theta_pretrained + scale * std(theta_pretrained) * z, tensor by tensor.

    A tensor of equal elements (a fresh norm) has std 0 and stays. scale 0.15 is NoisyTune's; the
    std of its uniform noise is 0.29 of that of ours.
    """

    name: ClassVar[str] = "gaussian-noise"

    scale: Annotated[float, Field(ge=0.0, lt=math.inf)] = 0.15

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Add the noise in place; it is drawn where it is added and never stored."""
        parameters = dict(model.named_parameters())
        laws = [
            Init.normal(0.0, self.scale * float(theta.detach().double().std(correction=0)))
            for theta in parameters.values()
        ]
        names = [f"gaussian-noise/{name}" for name in parameters]
        sffkernels.interpolate_(
            list(parameters.values()), 1.0, init=laws, c=1.0, seed=ctx.seed, names=names
        )
        return model
