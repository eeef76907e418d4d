"""Shrink: scale the pretrained weights down, then fine-tune. SFF without a twin.

    theta_0 = alpha * theta_pretrained;  then as `full`

A control for the objection that SFF is only a change of scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

import sffkernels
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class Shrink(Strategy):
    """theta_0 = alpha * theta_pretrained, every parameter, norms included; no seed is drawn.

    Where the twin's mean is not 0 (norm gains, whose twin is 1) this is not SFF's mean: `sff`
    pulls a gain towards 1, this one towards 0.
    """

    name: ClassVar[str] = "shrink"

    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Scale the pretrained weights in place."""
        sffkernels.interpolate_(list(model.parameters()), self.alpha)
        return model
