"""Naive rows: forecasts without a model. A benchmark that cannot beat them says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt

from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from torch import Tensor


class LastValue(Strategy):
    """x_hat[t + h] = x[t]."""

    name: ClassVar[str] = "last-value"
    trains: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    def forecast(self, past: Tensor, horizon: int) -> Tensor:
        """Repeat the last value: [B, C, L] -> [B, C, H]."""
        return past[..., -1:].expand(*past.shape[:-1], horizon)

    def lookback(self, season: int) -> int:
        """One step is all it needs."""
        return 1


class WindowMean(Strategy):
    """x_hat[t + h] = mean(x[t - m + 1], ..., x[t]), m = `window`: what knows only the level."""

    name: ClassVar[str] = "window-mean"
    trains: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    window: PositiveInt = 512

    def forecast(self, past: Tensor, horizon: int) -> Tensor:
        """Repeat the mean of the whole lookback: [B, C, m] -> [B, C, H]."""
        return past.mean(-1, keepdim=True).expand(*past.shape[:-1], horizon)

    def lookback(self, season: int) -> int:
        """As many steps as are averaged."""
        return self.window


class SeasonalNaive(Strategy):
    """x_hat[t + h] = x[t + h - m], m the data set's season, rolled forward beyond one season."""

    name: ClassVar[str] = "seasonal-naive"
    trains: ClassVar[bool] = False
    seeded: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False

    def forecast(self, past: Tensor, horizon: int) -> Tensor:
        """Repeat the last season, which is the whole lookback: [B, C, m] -> [B, C, H]."""
        repeats = -(-horizon // past.shape[-1])
        return past.repeat(1, 1, repeats)[..., :horizon]

    def lookback(self, season: int) -> int:
        """One season."""
        return season
