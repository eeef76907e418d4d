"""An honest strategy from outside: norms frozen, the head scaled before training."""

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from sffbench.strategies import Strategy
from sffkernels import interpolate_


class ScaledHead(Strategy):
    """theta_head <- gain * theta_head, then fine-tune everything but the norms."""

    name: ClassVar[str] = "scaled-head"

    gain: Annotated[float, Field(gt=0.0)] = 0.9

    def prepare(self, model, ctx):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)
        named = model.named_parameters()
        head = [p for name, p in named if name.startswith(model.head_prefixes)]
        interpolate_(head, self.gain)
        return model
