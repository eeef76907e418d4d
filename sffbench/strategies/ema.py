"""EMA, exponential moving average of the weights, by `torch.optim.swa_utils`.

    m_0 = theta_0;  m_t = d_t m_{t-1} + (1 - d_t) theta_t,  d_t = min(decay, (1 + t) / (10 + t))

Validation and the test see m; training goes on from theta, undisturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sffbench.strategies.base import Strategy
from sffkernels import interpolate_

if TYPE_CHECKING:
    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM

_AVERAGE = "ema/average"


class EMA(Strategy):
    """m <- d_t m + (1 - d_t) theta after every step, d_t rising from 2/11 to `decay`.

    Polyak and Juditsky (1992) average all iterates; a fixed decay forgets. The warm-up of
    `tf.train.ExponentialMovingAverage` lets m reach back over a ninth of the steps so far, until
    that is 1 / (1 - decay) steps: without it a budget of 300 steps at `decay` = 0.999 would keep
    three quarters of theta_0. Buffers are those of the trained model. Costs one copy of the model.
    """

    name: ClassVar[str] = "ema"

    decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """An ordinary step; then the average."""
        average = self._average(model, ctx)
        loss = super().step(model, batch, ctx)
        average.update_parameters(model)
        return loss

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """The average, once there is one."""
        return ctx.state[_AVERAGE].module if _AVERAGE in ctx.state else model

    def _average(self, model: LTSM, ctx: Context) -> AveragedModel:
        if _AVERAGE not in ctx.state:
            ctx.state[_AVERAGE] = AveragedModel(model, multi_avg_fn=self._blend)
            ctx.state[_AVERAGE].update_parameters(model)  # m_0; from here on it counts t
        return ctx.state[_AVERAGE]

    def _blend(self, mean: Sequence[Tensor], new: Sequence[Tensor], step: Tensor | int) -> None:
        """m <- d_t m + (1 - d_t) theta, in one call."""
        t = torch.as_tensor(step, dtype=torch.float64)
        decay = ((1.0 + t) / (10.0 + t)).clamp(max=self.decay)
        interpolate_(mean, decay, other=new, b=1.0 - decay)
