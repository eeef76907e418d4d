"""Forecasting: scores against a float64 oracle, whatever the batching."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sffbench import models
from sffbench.data.windows import Windows
from sffbench.tasks import Forecast, Scores

LOOKBACK, HORIZON, NUM_CHANNELS, NUM_ROWS = 12, 5, 3, 60
NUM_STARTS = NUM_ROWS - LOOKBACK - HORIZON + 1


@pytest.fixture(scope="module")
def series() -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(NUM_ROWS, NUM_CHANNELS)).cumsum(0).astype(np.float32)


@pytest.fixture(scope="module")
def windows(series: NDArray[np.float32]) -> Windows:
    return Windows(torch.from_numpy(series), LOOKBACK, HORIZON)


def drift(past: Tensor, horizon: int) -> Tensor:
    """Go on along the line from the first to the last value."""
    slope = (past[..., -1:] - past[..., :1]) / (past.shape[-1] - 1)
    return past[..., -1:] + slope * torch.arange(1, horizon + 1)


def oracle(series: NDArray[np.float32]) -> NDArray[np.float64]:
    """Errors [C, starts, H] of `drift` in float64, window by window."""
    x = series.astype(np.float64)
    errors = np.empty((NUM_CHANNELS, NUM_STARTS, HORIZON))
    for channel in range(NUM_CHANNELS):
        for start in range(NUM_STARTS):
            past = x[start : start + LOOKBACK, channel]
            future = x[start + LOOKBACK : start + LOOKBACK + HORIZON, channel]
            slope = (past[-1] - past[0]) / (LOOKBACK - 1)
            errors[channel, start] = past[-1] + slope * np.arange(1, HORIZON + 1) - future
    return errors


def test_mse_mae_and_mase_are_those_of_a_float64_oracle(
    windows: Windows, series: NDArray[np.float32]
) -> None:
    errors = oracle(series)
    scores = Forecast(HORIZON).evaluate(drift, windows)
    assert scores.mse == pytest.approx((errors**2).mean(), rel=1e-5)
    assert scores.mae == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert scores.mse_per_channel == pytest.approx((errors**2).mean((1, 2)), rel=1e-5)
    assert scores.mae_per_channel == pytest.approx(np.abs(errors).mean((1, 2)), rel=1e-5)
    scale = np.abs(np.diff(series.astype(np.float64), axis=0)).mean(0)
    assert scores.mase(scale) == pytest.approx(
        (np.abs(errors).mean((1, 2)) / scale).mean(), rel=1e-5
    )


def test_the_counts_equal_the_closed_form(windows: Windows) -> None:
    scores = Forecast(HORIZON).evaluate(drift, windows)
    assert scores.num_windows == NUM_STARTS * NUM_CHANNELS == len(windows)
    assert len(scores.mse_per_channel) == NUM_CHANNELS


@pytest.mark.parametrize("batch_size", [1, 7, 64, NUM_STARTS, 10_000])
def test_the_score_does_not_depend_on_the_batch_size(windows: Windows, batch_size: int) -> None:
    whole = Forecast(HORIZON).evaluate(drift, windows, batch_size=len(windows))
    parts = Forecast(HORIZON).evaluate(drift, windows, batch_size=batch_size)
    assert parts.mse == pytest.approx(whole.mse, rel=1e-6)
    assert parts.mae == pytest.approx(whole.mae, rel=1e-6)
    assert parts.mse_per_channel == pytest.approx(whole.mse_per_channel, rel=1e-6)


def test_a_models_score_does_not_depend_on_the_batch_size() -> None:
    model = models.create(
        "ttm:tiny", context_length=32, prediction_length=8, patch_length=8, d_model=16
    ).eval()
    rows = torch.randn(150, 3, generator=torch.Generator().manual_seed(0))
    windows, task = Windows(rows, 32, 8), Forecast(8)
    whole = task.evaluate(model._forecast, windows, batch_size=len(windows)).mse
    for batch_size in (1, 13, 256):
        parts = task.evaluate(model._forecast, windows, batch_size=batch_size).mse
        assert parts == pytest.approx(whole, rel=1e-6)


def test_long_sums_keep_the_digits_that_float32_would_lose() -> None:
    def off(past: Tensor, horizon: int) -> Tensor:
        return torch.full((*past.shape[:-1], horizon), 0.1)

    windows = Windows(torch.zeros(60_000, 1), 1, 1)
    expected = float(torch.tensor(0.1, dtype=torch.float32).double() ** 2)
    assert Forecast(1).evaluate(off, windows, batch_size=7).mse == pytest.approx(
        expected, rel=1e-12
    )


def test_only_the_windows_of_an_index_are_scored(
    windows: Windows, series: NDArray[np.float32]
) -> None:
    index = torch.tensor([0, 5, NUM_STARTS, len(windows) - 1])
    errors = oracle(series).reshape(-1, HORIZON)[index]
    scores = Forecast(HORIZON).evaluate(drift, windows, index)
    assert scores.num_windows == 4
    assert scores.mse == pytest.approx((errors**2).mean(), rel=1e-5)


def test_evaluation_keeps_no_gradients(windows: Windows) -> None:
    weight = torch.ones((), requires_grad=True)
    seen = []

    def forecaster(past: Tensor, horizon: int) -> Tensor:
        answer = past[..., -1:].expand(*past.shape[:-1], horizon) * weight
        seen.append(answer.requires_grad)
        return answer

    Forecast(HORIZON).evaluate(forecaster, windows)
    assert not any(seen)


@pytest.mark.parametrize("scale", [[1.0, 0.0], [1.0, float("nan")]])
def test_mase_is_absent_where_a_channel_has_no_scale(scale: list[float]) -> None:
    scores = Scores(1.0, 1.0, 2, (1.0, 1.0), (1.0, 1.0), 2)
    assert scores.mase(np.array(scale)) is None


def test_mase_is_absent_where_a_channel_has_no_window() -> None:
    scores = Scores(1.0, 1.0, 1, (1.0, float("nan")), (1.0, float("nan")), 1)
    assert scores.mase(np.ones(2)) is None


@pytest.fixture
def small() -> Callable[[], tuple[torch.nn.Module, Tensor, Tensor]]:
    def make() -> tuple[torch.nn.Module, Tensor, Tensor]:
        model = models.create(
            "ttm:tiny", context_length=32, prediction_length=8, patch_length=8, d_model=16
        ).eval()
        generator = torch.Generator().manual_seed(1)
        return (
            model,
            torch.randn(4, 1, 32, generator=generator),
            torch.randn(4, 1, 8, generator=generator),
        )

    return make


def test_the_two_kinds_of_loss_are_the_models_own_and_the_forecasts_error(
    small: Callable[[], tuple[models.LTSM, Tensor, Tensor]],
) -> None:
    model, past, future = small()
    error = (model._forecast(past, 8).detach() - future).double().square().mean()
    loss = Forecast(8, "forecast").loss(model, past, future)
    assert float(loss.detach()) == pytest.approx(float(error), rel=1e-6)
    model._loss = lambda *_args, **_kwargs: torch.tensor(42.0)  # type: ignore[method-assign]
    assert float(Forecast(8, "own").loss(model, past, future)) == 42.0
    assert float(Forecast(8, "forecast").loss(model, past, future).detach()) != 42.0
