"""Naive rows against their definitions, element by element."""

import numpy as np
import pytest
import torch

from sffbench import strategies
from sffbench.strategies.naive import LastValue, SeasonalNaive, WindowMean


def test_last_value_repeats_the_last_value() -> None:
    past = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    forecast = LastValue().forecast(past, 4)
    assert forecast.shape == (2, 3, 4)
    for step in range(4):
        assert torch.equal(forecast[..., step], past[..., -1])


def test_window_mean_repeats_the_mean_of_its_window() -> None:
    past = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    forecast = WindowMean(window=7).forecast(past, 4)
    expected = past.double().sum(-1) / 7
    for step in range(4):
        torch.testing.assert_close(forecast[..., step].double(), expected)
    assert WindowMean(window=7).lookback(24) == 7


@pytest.mark.parametrize("season", [1, 3, 5])
@pytest.mark.parametrize("horizon", [1, 2, 3, 7, 12])
def test_seasonal_naive_looks_back_whole_seasons(season: int, horizon: int) -> None:
    series = np.arange(50.0) ** 1.5
    start = 30
    past = torch.from_numpy(series[start - season : start])[None, None]
    forecast = SeasonalNaive().forecast(past, horizon)[0, 0].numpy()
    expected = [series[start + h - season * (h // season + 1)] for h in range(horizon)]
    np.testing.assert_array_equal(forecast, expected)


def test_naive_rows_need_no_model_no_training_and_no_seed() -> None:
    for name, lookback in (("last-value", 1), ("window-mean", 512), ("seasonal-naive", 24)):
        cls = strategies.strategy_class(name)
        assert (cls.needs_model, cls.trains, cls.seeded) == (False, False, False)
        assert cls().lookback(24) == lookback  # type: ignore[attr-defined]
