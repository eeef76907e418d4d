"""SWA, stochastic weight averaging (Izmailov et al., UAI 2018), by `torch.optim.swa_utils`.

    theta_SWA = mean of theta_t over t = T0 + every, T0 + 2 every, ...;  T0 = start * steps

Validation and the test see theta_SWA; training goes on from theta_t, undisturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sffbench.strategies.base import Strategy
from sffkernels import interpolate_

if TYPE_CHECKING:
    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM

_AVERAGE, _RATES = "swa/average", "swa/rates"


class SWA(Strategy):
    """Average the weights of the second half of training, at a constant learning rate.

    The rate stays at what the schedule says at step T0: half the initial one for a cosine and
    `start` = 0.5, which is the authors' ratio on CIFAR (0.05 to 0.1). A rate that goes on falling
    to zero would leave nothing to average. The authors add weights once an epoch; a budget of
    hundreds of steps has hardly one, hence `every` = 10 steps. Buffers are those of the trained
    model. Costs one copy of the model from T0 on. Until the first weights are in, validation sees
    the trained model.
    """

    name: ClassVar[str] = "swa"

    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    every: PositiveInt = 10

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """An ordinary step, at the held rate once averaging has begun; then the average."""
        since = ctx.step + 1 - round(self.start * ctx.budget.num_steps)
        if since > 0:
            _hold_rates(ctx)
        loss = super().step(model, batch, ctx)
        if since > 0 and since % self.every == 0:
            _average(model, ctx).update_parameters(model)
        return loss

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """The average, once there is one."""
        return ctx.state[_AVERAGE].module if _AVERAGE in ctx.state else model


def _hold_rates(ctx: Context) -> None:
    """The learning rates of the first averaged step, in every later one of the same optimiser."""
    groups = ctx.optimizer.param_groups
    optimizer, rates = ctx.state.get(_RATES, (None, []))
    if optimizer is not ctx.optimizer:  # a new phase
        rates = [group["lr"] for group in groups]
        ctx.state[_RATES] = (ctx.optimizer, rates)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate


def _average(model: LTSM, ctx: Context) -> AveragedModel:
    if _AVERAGE not in ctx.state:
        ctx.state[_AVERAGE] = AveragedModel(model, multi_avg_fn=_add_to_mean)
    return ctx.state[_AVERAGE]


def _add_to_mean(mean: Sequence[Tensor], new: Sequence[Tensor], num_averaged: Tensor | int) -> None:
    """mean <- n / (n + 1) * mean + 1 / (n + 1) * new, in one call."""
    share = 1.0 / (torch.as_tensor(num_averaged, dtype=torch.float64) + 1.0)
    interpolate_(mean, 1.0 - share, other=new, b=share)
