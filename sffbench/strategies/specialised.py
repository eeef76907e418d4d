"""Specialised baselines: small networks of the field, trained on the data set from scratch.

A strategy of this kind brings its own network, so a suite runs it once per data set, not once per
model. The loop, the budget and the selection are everybody's. A subclass says `network`, and its
network, a `ChannelNetwork`, how one channel's past becomes its future.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from sffbench.errors import InputError
from sffbench.models.base import LTSM, InitName, default_init
from sffbench.models.twin import mix_
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from sffbench.models.twin import Start


class Specialised(Strategy):
    """A network of the strategy's own, from random weights; `context` is its lookback L."""

    needs_model: ClassVar[bool] = False

    context: PositiveInt = 336

    def lookback(self, season: int) -> int:
        """As long as its authors take it; a protocol may cut it."""
        return self.context

    @abstractmethod
    def network(self, lookback: int, horizon: int, num_rows: int, seed: int) -> LTSM:
        """The untrained network for a data set of `num_rows` train rows, drawn under `seed`."""


class ChannelNetwork(LTSM, registered=False):
    """f: past [N, L] -> future [N, H], one network for all channels, trained on the MSE.

    Its horizon is fixed: a shorter one is cut, a longer one refused. Masks are not used (what is
    missing counts as 0). `drawn(seed)` fills it from the counter stream, as `models.create` does.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset({"forecast"})

    def __init__(self, lookback: int, horizon: int, **config: Any) -> None:
        super().__init__({"lookback": lookback, "horizon": horizon, **config})
        self.lookback, self.horizon = lookback, horizon
        self.new_head = True

    @abstractmethod
    def predict(self, past: Tensor) -> Tensor:
        """[N, L] -> [N, H]."""

    def drawn(self, seed: int) -> ChannelNetwork:
        """This network with every parameter drawn from its authors' distributions."""
        mix_(self, 0.0, self.initial(), seed=seed)
        return self.eval()

    def initial(self, init: InitName = "usable") -> Mapping[str, Start]:
        """PyTorch's defaults: neither network here asks for more."""
        return default_init(self)

    def _forecast(
        self, past: Tensor, horizon: int, past_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        if horizon > self.horizon:
            raise InputError(f"this {self.name} forecasts {self.horizon} steps, asked {horizon}")
        future = self.predict(past.flatten(0, 1))
        return future.unflatten(0, past.shape[:2])[..., :horizon]

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        squared = F.mse_loss(self._forecast(past, future.shape[-1]), future, reduction="none")
        if future_mask is None:
            return squared.mean()
        return (squared * future_mask).sum() / future_mask.sum().clamp(min=1)
