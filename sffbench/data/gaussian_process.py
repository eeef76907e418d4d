"""Draws from random Gaussian-process kernels, in O(n log n), not the O(n^3) of a Cholesky factor.

    series = draw(rng, length=608)          # float64 [608]: one random kernel, one draw from it

The kernels are sums and products of simple ones (after KernelSynth in Chronos, arXiv 2403.07815).
All but the linear kernel depend on the lag alone, so a composition is sum_p (x x')^p S_p(lag): a
draw is the sum of x^p times a draw from the stationary S_p, which an FFT gives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Kernel = dict[int, Float64]  # p -> S_p at lags 0, 1, ..., time x running over [0, 1)

# Rows per cycle that measured series have: hours, quarter hours, ten minutes, days, weeks, months.
PERIODS = (4, 5, 6, 7, 12, 14, 24, 26, 30, 48, 52, 96, 144, 168, 365, 672)
MAX_KERNELS = 5

# Correlations are tapered by a Gaussian of this width, in lengths: the circle on which the FFT
# draws then closes without a seam, and seasons lose phase slowly, as measured ones do.
_TAPER = 1.5
_HALF_CIRCLE = 6  # lengths: the taper has fallen to 3e-4 there


def draw(rng: np.random.Generator, length: int) -> Float64:
    """One series [length] from a composition of 1 to 5 kernels, joined from the left by + or *."""
    lags = np.arange(_HALF_CIRCLE * length + 1)
    kernel = _simple(rng, lags, length)
    for _ in range(rng.integers(MAX_KERNELS)):
        combine = _add if rng.random() < 0.5 else _multiply
        kernel = combine(kernel, _simple(rng, lags, length))
    x = np.arange(length) / length
    taper = np.exp(-0.5 * (lags / (_TAPER * length)) ** 2)
    powers = [x**p * _stationary(rng, s * taper, length) for p, s in kernel.items()]
    return np.asarray(np.sum(powers, axis=0))


def random_period(rng: np.random.Generator, length: int) -> float:
    """Half of the time one of PERIODS that fits twice, else any from 3 rows to half the length."""
    longest = max(length / 2, 4.0)
    fitting = [period for period in PERIODS if period <= longest]
    if rng.random() < 0.5:
        return float(rng.choice(fitting))
    return float(np.exp(rng.uniform(np.log(3.0), np.log(longest))))


def _simple(rng: np.random.Generator, lags: NDArray[np.int64], length: int) -> Kernel:
    kinds: tuple[Callable[[], Kernel], ...] = (
        lambda: {0: np.ones(len(lags))},
        lambda: {0: rng.choice((0.05, 0.3)) * (lags == 0)},
        lambda: {0: rng.choice((0.0, 1.0)) * np.ones(len(lags)), 1: np.ones(len(lags))},
        lambda: {0: _radial(lags / length, rng.choice((0.02, 0.1, 1.0)))},
        lambda: {0: _rational(lags / length, 0.1, rng.choice((0.1, 1.0, 10.0)))},
        lambda: {0: _periodic(lags, random_period(rng, length), rng.choice((0.5, 1.0, 2.0)))},
    )
    # Periodic ones are drawn most often: they are what a lookback can show and a horizon repeat.
    return kinds[rng.choice(len(kinds), p=(0.05, 0.1, 0.15, 0.15, 0.1, 0.45))]()


def _radial(distance: Float64, scale: float) -> Float64:
    return np.exp(-0.5 * (distance / scale) ** 2)


def _rational(distance: Float64, scale: float, alpha: float) -> Float64:
    return np.asarray((1 + (distance / scale) ** 2 / (2 * alpha)) ** -alpha)


def _periodic(lags: NDArray[np.int64], period: float, scale: float) -> Float64:
    return np.asarray(np.exp(-2 * (np.sin(np.pi * lags / period) / scale) ** 2))


def _add(a: Kernel, b: Kernel) -> Kernel:
    return {p: np.asarray(a.get(p, 0.0) + b.get(p, 0.0)) for p in a | b}


def _multiply(a: Kernel, b: Kernel) -> Kernel:
    product: Kernel = {}
    for p, left in a.items():
        for q, right in b.items():
            product = _add(product, {p + q: left * right})
    return product


def _stationary(rng: np.random.Generator, covariance: Float64, length: int) -> Float64:
    """A Gaussian draw [length] with covariance[k] at lag k, by circulant embedding."""
    circle = np.concatenate([covariance, covariance[-2:0:-1]])
    power = np.fft.rfft(circle).real.clip(min=0.0)  # rounding makes some a hair negative
    white = np.fft.rfft(rng.standard_normal(len(circle)))
    return np.fft.irfft(np.sqrt(power) * white, len(circle))[:length]
