"""DLinear (Zeng et al., AAAI 2023): two linear maps, trained from scratch.

    trend = moving average of x over 25 steps;  x_hat = W_s (x - trend) + b_s + W_t trend + b_t

The baseline that asked whether Transformers forecast at all. One row per data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from sffbench.strategies.specialised import ChannelNetwork, Specialised

if TYPE_CHECKING:
    from sffbench.models.base import LTSM


class Decomposition(ChannelNetwork, registered=False):
    """Season and trend, each by a linear map R^L -> R^H that all channels share."""

    name: ClassVar[str] = "dlinear"

    def __init__(self, lookback: int, horizon: int, **config: Any) -> None:
        super().__init__(lookback, horizon, **config)
        self.season = nn.Linear(lookback, horizon)
        self.trend = nn.Linear(lookback, horizon)

    def predict(self, past: Tensor) -> Tensor:
        """[N, L] -> [N, H]; the ends of the series are repeated under the moving average."""
        window = self.config["moving_average"]
        left = (window - 1) // 2
        padded = F.pad(past[:, None], (left, window - 1 - left), mode="replicate")
        trend = F.avg_pool1d(padded, window, stride=1)[:, 0]
        forecast: Tensor = self.season(past - trend) + self.trend(trend)
        return forecast


class DLinear(Specialised):
    """x_hat = W_s (x - MA_25(x)) + W_t MA_25(x), shared by channels, from scratch.

    Lookback 336 and the authors' step of their ETTh1 script, 0.005; theirs differ by data set.
    """

    name: ClassVar[str] = "dlinear"

    lr: float | None = 5e-3
    moving_average: PositiveInt = 25

    def network(self, lookback: int, horizon: int, num_rows: int, seed: int) -> LTSM:
        """2 (L + 1) H weights, whatever the data set."""
        return Decomposition(lookback, horizon, moving_average=self.moving_average).drawn(seed)
