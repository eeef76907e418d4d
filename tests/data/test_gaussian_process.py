"""Gaussian-process draws against dense covariance matrices in float64."""

import numpy as np
import pytest

from sffbench.data import gaussian_process as gp

LENGTH = 8
LAGS = np.arange(6 * LENGTH + 1)


class Impulse:
    """Stands in for a random generator: the i-th unit vector instead of white noise."""

    def __init__(self, i: int) -> None:
        self.i = i

    def standard_normal(self, size: int) -> np.ndarray:
        return np.eye(size)[self.i]


@pytest.mark.parametrize(
    "covariance",
    [
        gp._radial(LAGS / LENGTH, 0.3),
        0.3 * (LAGS == 0) + 0.5,
        gp._periodic(LAGS, 3.7, 1.0) * gp._rational(LAGS / LENGTH, 0.1, 1.0),
    ],
    ids=["radial", "white and constant", "periodic times rational"],
)
def test_a_stationary_draw_has_exactly_the_tapered_covariance(covariance: np.ndarray):
    tapered = covariance * np.exp(-0.5 * (LAGS / (1.5 * LENGTH)) ** 2)
    # The draw is linear in its white noise, so its covariance is the sum over unit impulses.
    columns = [gp._stationary(Impulse(i), tapered, LENGTH) for i in range(2 * len(LAGS) - 2)]
    expected = tapered[abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))]
    # What remains is the taper at half the circle, 3e-4, spread over the circle.
    np.testing.assert_allclose(np.sum([np.outer(c, c) for c in columns], 0), expected, atol=3e-4)


def dense(kernel: gp.Kernel) -> np.ndarray:
    x = np.arange(LENGTH) / LENGTH
    lag = abs(np.subtract.outer(np.arange(LENGTH), np.arange(LENGTH)))
    return sum(np.outer(x, x) ** p * s[lag] for p, s in kernel.items())


@pytest.mark.parametrize("seed", range(20))
def test_sums_and_products_of_kernels_are_those_of_their_matrices(seed: int):
    rng = np.random.default_rng(seed)
    a, b, c = (gp._simple(rng, LAGS, LENGTH) for _ in range(3))
    combined = gp._multiply(gp._add(a, b), c)
    np.testing.assert_allclose(dense(combined), (dense(a) + dense(b)) * dense(c), rtol=1e-12)


@pytest.mark.parametrize("length", [8, 96, 608])
def test_periods_fit_the_series_at_least_twice(length: int):
    rng = np.random.default_rng(0)
    periods = [gp.random_period(rng, length) for _ in range(500)]
    assert min(periods) >= 3.0
    assert max(periods) <= length / 2
