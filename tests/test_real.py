"""The real checkpoint on the real data: zero-shot errors equal the published ones."""

from __future__ import annotations

import pytest

from sffbench import data, models
from sffbench.data.windows import split
from sffbench.models.base import evaluating
from sffbench.tasks import Forecast

# Zero-shot MSE of TTM-r2 512-96 as its authors' table has it, on all test windows, standardised.
PUBLISHED = {
    "ETTh1": (0.3628, 5e-4),
    "ETTh2": (0.2757, 5e-4),
    "ETTm1": (0.3377, 5e-4),
    "ETTm2": (0.1765, 5e-4),
    "Weather": (0.150, 1e-3),
}
FAST = ("ETTh1", "ETTh2")


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED],
)
def test_zero_shot_of_the_real_ttm_r2_equals_the_published_error(name, real_data, checkpoints):
    expected, tolerance = PUBLISHED[name]
    model = models.load("ttm:r2-512-96")
    dataset = data.load(name, real_data)
    windows = split(dataset, "test", 512, 96)
    with evaluating(model):
        scores = Forecast(96).evaluate(model._forecast, windows)
    begin, end = dataset.borders[1:]
    assert scores.num_windows == (end - begin - 96 + 1) * dataset.num_channels
    assert scores.mse == pytest.approx(expected, abs=tolerance)
