"""WiSE-FT, weight-space ensembling of fine-tuned and pretrained weights (Wortsman et al., 2022).

theta = alpha * theta_finetuned + (1 - alpha) * theta_pretrained   (at evaluation)
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sffbench.errors import InputError
from sffbench.strategies.base import Strategy
from sffkernels import interpolate_

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM

_MIXED = "wise-ft/mixed"


class WiSEFT(Strategy):
    """Train as `full`; validation and the test see the mix with the pretrained weights.

    alpha = 1 is `full` bit for bit, alpha = 0 the pretrained model. `alpha` = 0.5 is what the
    authors recommend where no data may choose it (CVPR 2022). Every parameter once, buffers as in
    the trained model. They interpolate once after training; here every validated model is a mix, so
    that selection sees what is tested. Costs two copies of the model: the mix, which is
    overwritten at each validation, and the pretrained weights.
    """

    name: ClassVar[str] = "wise-ft"

    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5

    @torch.no_grad()
    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """The mix of `model` with the pretrained weights; `model` itself is not touched."""
        if _MIXED not in ctx.state:
            ctx.state[_MIXED] = copy.deepcopy(model), _pretrained(model, ctx)
        mixed, pretrained = ctx.state[_MIXED]
        for ours, theirs in zip(mixed.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        weights = list(mixed.parameters())
        interpolate_(weights, 0.0, other=list(model.parameters()), b=1.0)
        interpolate_(weights, self.alpha, other=pretrained, b=1.0 - self.alpha)
        return mixed


def _pretrained(model: LTSM, ctx: Context) -> list[Tensor]:
    """The pretrained weights in the order of the model's parameters."""
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        if name not in ctx.pretrained:
            raise InputError(f"wise-ft: {name!r} is not in the checkpoint, no adapters with it")
    return [ctx.pretrained[name] for name in names]
