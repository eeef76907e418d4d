"""Synthetic series: a seeded twin of every data set, and a corpus to pretrain small models on.

    values, dates = twin("ETTh1")                  # float64 [2000, 7], with the seasons of ETTh1
    corpus = kernel_synth(10_000, 608, seed=0)     # float32 [10_000, 608], each standardised

Both are functions of their arguments alone, and prefix-stable: a longer twin starts with the
shorter one, series i of a corpus does not depend on how many there are. Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sffbench.data import gaussian_process
from sffbench.data.catalog import Entry, get
from sffbench.errors import InputError

VERSION = 1  # of the twins: raise it whenever a number below or a draw changes; it is in every key
NUM_ROWS = 2000
MAX_CHANNELS = 7

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """How a twin is mixed: standard deviations of its parts, in units of the channel's scale."""

    season: float = 1.0  # all seasonal parts together
    second_period: float = 7.0  # of a slower season, in seasons
    noise: float = 0.35
    memory: float = 0.8  # AR(1) coefficient of the noise
    walk: float = 0.012  # of one step of the random-walk level
    drift: float = 0.3  # change over a whole 2,000 rows


# Exchange rates are a random walk with next to no season; influenza has one sharp season a year.
_DEFAULT = Recipe()
_RECIPES = {
    "Exchange": Recipe(season=0.05, noise=0.02, memory=0.0, walk=0.06, drift=0.5),
    "ILI": Recipe(second_period=3.5, noise=0.25, memory=0.9, walk=0.006),
    "Weather": Recipe(noise=0.5, memory=0.97, walk=0.015),
}


def column_names(num_channels: int) -> tuple[str, ...]:
    """'0', '1', ... and 'OT' last, as in the Autoformer files."""
    return (*map(str, range(num_channels - 1)), "OT")


def recipe_hash(entry: Entry, num_rows: int = NUM_ROWS, max_channels: int = MAX_CHANNELS) -> str:
    """SHA-256 of all a twin follows from: generator version, recipe, length, season, borders."""
    parts = {
        "generator": "twin",
        "version": VERSION,
        "name": entry.name,
        "num_rows": num_rows,
        "num_channels": _num_channels(entry, max_channels),
        "frequency": entry.frequency,
        "season": entry.season,
        "borders": entry.proportional_borders(num_rows),
        "recipe": asdict(_RECIPES.get(entry.name, _DEFAULT)),
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def twin(
    name: str, num_rows: int = NUM_ROWS, max_channels: int = MAX_CHANNELS
) -> tuple[Float64, NDArray[np.datetime64]]:
    """(values [num_rows, C], dates [num_rows]) in the manner of `name`; C <= max_channels.

    x_c(t) = level_c + scale_c * (seasons_c(t) + AR(1) noise + random walk + drift): phases,
    amplitudes and harmonics differ by channel, a third of the noise is shared by all of them.
    """
    entry = get(name)
    recipe = _RECIPES.get(entry.name, _DEFAULT)
    shared = _autoregression(_stream(entry.name, "shared"), num_rows, recipe.memory)
    channels = [
        _twin_channel(entry, recipe, channel, shared)
        for channel in range(_num_channels(entry, max_channels))
    ]
    return np.stack(channels, axis=1), _stamps(entry.frequency, num_rows)


def _num_channels(entry: Entry, max_channels: int) -> int:
    return min(entry.num_channels or max_channels, max_channels)


def _stream(*words: str | int) -> np.random.Generator:
    """A generator of its own for each combination of words, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def _twin_channel(entry: Entry, recipe: Recipe, channel: int, shared: Float64) -> Float64:
    num_rows = len(shared)
    constants = _stream(entry.name, "constants", channel)
    level, log_scale, slope = constants.normal(size=3)
    seasons = _seasons(constants, num_rows, (entry.season, recipe.second_period * entry.season))
    own = _autoregression(_stream(entry.name, "noise", channel), num_rows, recipe.memory)
    noise = np.sqrt(1 / 3) * shared + np.sqrt(2 / 3) * own
    walk = np.cumsum(_stream(entry.name, "walk", channel).normal(size=num_rows))
    line = slope * np.arange(num_rows) / NUM_ROWS
    parts = (
        recipe.season * seasons + recipe.noise * noise + recipe.walk * walk + recipe.drift * line
    )
    return np.asarray(5.0 * level + np.exp(log_scale) * parts)


def _seasons(rng: np.random.Generator, num_rows: int, periods: Sequence[float]) -> Float64:
    """Sum over periods of three harmonics with random phases; unit variance over whole periods."""
    time = np.arange(num_rows)
    total = np.zeros(num_rows)
    for weight, period in zip((0.9, 0.436), periods, strict=True):  # squares sum to 1
        amplitudes = rng.uniform(0.3, 1.0, size=3) / (1, 2, 3)
        phases = rng.uniform(0, 2 * np.pi, size=3)
        norm = np.sqrt((amplitudes**2).sum() / 2)
        for harmonic, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), 1):
            wave = np.sin(2 * np.pi * harmonic * time / period + phase)
            total += weight * amplitude / norm * wave
    return total


def _autoregression(rng: np.random.Generator, num_rows: int, memory: float) -> Float64:
    """AR(1) with unit variance from its first value on."""
    from scipy.signal import lfilter  # slow to import, and a hash needs none of it

    shocks = rng.normal(size=num_rows)
    shocks[1:] *= np.sqrt(1 - memory**2)
    return np.asarray(lfilter([1.0], [1.0, -memory], shocks))


def _stamps(frequency: str, num_rows: int) -> NDArray[np.datetime64]:
    import pandas as pd

    return pd.date_range("2020-01-01", periods=num_rows, freq=frequency).to_numpy("datetime64[s]")


def kernel_synth(num_series: int, length: int, seed: int = 0) -> NDArray[np.float32]:
    """float32 [num_series, length] to pretrain on, each series of mean 0 and deviation 1.

    z(t) = g * Gaussian-process draw + s * seasons + r * trend + n * AR(1) noise, with random
    weights, of which trend and seasons are absent in some series. InputError for a length below 8.
    """
    if num_series < 0 or length < 8:
        raise InputError(
            f"{num_series} series of length {length}: allowed are 0 or more, 8 or longer"
        )
    corpus = np.empty((num_series, length), np.float32)
    for i in range(num_series):
        corpus[i] = _standard(_mixture(_stream("kernel_synth", seed, i), length))
    return corpus


def _mixture(rng: np.random.Generator, length: int) -> Float64:
    parts = [
        rng.uniform(0.1, 1.0) * _standard(gaussian_process.draw(rng, length)),
        np.exp(rng.uniform(np.log(0.03), np.log(0.6)))
        * _autoregression(rng, length, rng.choice((0.0, rng.uniform(0.0, 0.98)))),
    ]
    if rng.random() < 0.75:
        period = gaussian_process.random_period(rng, length)
        slower = period * rng.choice((3.5, 5.0, 7.0, 12.0))
        parts.append(rng.uniform(0.2, 1.2) * _seasons(rng, length, (period, slower)))
    if rng.random() < 0.4:
        parts.append(rng.normal(0.0, 0.6) * _standard(_trend(rng, length)))
    return np.asarray(np.sum(parts, axis=0))


def _trend(rng: np.random.Generator, length: int) -> Float64:
    """A line, bent once at a random row."""
    time = np.arange(length) / length
    bend = rng.uniform(0.0, 1.0)
    return np.asarray(rng.normal() * time + rng.normal() * np.maximum(time - bend, 0.0))


def _standard(series: Float64) -> Float64:
    """Mean 0, standard deviation 1; zeros where the series is constant."""
    centred = series - series.mean()
    deviation = centred.std()
    if deviation <= 1e-9 * (1 + abs(series).max()):
        return np.zeros_like(series)
    return np.asarray(centred / deviation)
