"""Synthetic twins and the pretraining corpus: deterministic, and with structure worth learning."""

from pathlib import Path

import numpy as np
import pytest

from sffbench.data import catalog, content_hash, load, synthetic
from sffbench.data.windows import split
from sffbench.errors import InputError

NAMES = catalog.names()


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_is_the_same_every_time(name: str):
    (values, dates), (again, dates_again) = synthetic.twin(name), synthetic.twin(name)
    np.testing.assert_array_equal(values, again)
    np.testing.assert_array_equal(dates, dates_again)
    assert np.isfinite(values).all()


def test_a_twin_is_the_same_on_every_machine():
    # Drawn once with VERSION 1; a change here means that VERSION must be raised.
    assert synthetic.VERSION == 1
    values, _ = synthetic.twin("ETTh1")
    pinned = [2.024706212101467, 2.4871104151000285, 3.776886537592139]
    np.testing.assert_allclose(values[[0, 1000, 1999], [0, 3, 6]], pinned, rtol=1e-9)


def test_a_longer_or_wider_twin_begins_with_the_shorter_one():
    long, long_dates = synthetic.twin("Weather", num_rows=3000, max_channels=10)
    short, short_dates = synthetic.twin("Weather", num_rows=500, max_channels=3)
    np.testing.assert_allclose(long[:500, :3], short, rtol=1e-12)
    np.testing.assert_array_equal(long_dates[:500], short_dates)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_every_twin_holds_lookback_672_and_horizon_96(name: str, tmp_path: Path):
    dataset = load(name, tmp_path, source="synthetic")
    entry = catalog.get(name)
    assert dataset.values.shape == (2000, min(7, entry.num_channels))
    assert (dataset.source, dataset.official) == ("synthetic", False)
    assert np.isfinite(dataset.scaled.numpy()).all()
    assert len(set(np.diff(dataset.dates))) == 1
    counts = [split(dataset, p, 672, 96).num_starts for p in ("train", "validation", "test")]
    parts = (1200, 400, 400) if name.startswith("ETT") else (1400, 200, 400)
    assert counts == [parts[0] - 672 - 96 + 1, parts[1] - 95, parts[2] - 95]


def test_twins_differ_by_data_set_and_their_hashes_too(tmp_path: Path):
    assert abs(synthetic.twin("ETTh1")[0] - synthetic.twin("ETTh2")[0]).min() > 0
    hashes = {name: content_hash(name, tmp_path, "synthetic") for name in NAMES}
    assert len(set(hashes.values())) == len(NAMES)
    assert hashes["ILI"] == load("ILI", tmp_path, source="synthetic").sha256


def test_the_hash_covers_version_and_parameters(monkeypatch: pytest.MonkeyPatch):
    entry = catalog.get("ETTh1")
    hashes = [synthetic.recipe_hash(entry), synthetic.recipe_hash(entry, num_rows=2001)]
    hashes.append(synthetic.recipe_hash(entry, max_channels=6))
    hashes.append(synthetic.recipe_hash(catalog.get("ETTh2")))
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    hashes.append(synthetic.recipe_hash(entry))
    monkeypatch.setitem(synthetic._RECIPES, "ETTh1", synthetic.Recipe(noise=0.1))
    hashes.append(synthetic.recipe_hash(entry))
    assert len(set(hashes)) == len(hashes)


def _naive_errors(name: str, horizon: int = 96) -> tuple[float, float]:
    """MSE of last-value and of seasonal-naive over all rows, standardised, in float64."""
    values, _ = synthetic.twin(name)
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    season = catalog.get(name).season
    lags = [season * -(-step // season) for step in range(1, horizon + 1)]
    last = [np.mean((scaled[step:] - scaled[:-step]) ** 2) for step in range(1, horizon + 1)]
    seasonal = [np.mean((scaled[lag:] - scaled[:-lag]) ** 2) for lag in lags]
    return float(np.mean(last)), float(np.mean(seasonal))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Exchange"])
def test_a_seasonal_twin_rewards_who_knows_its_season(name: str):
    last, seasonal = _naive_errors(name)
    assert seasonal < 0.7 * last


def test_the_exchange_twin_is_mostly_a_random_walk():
    last, seasonal = _naive_errors("Exchange")
    assert 0.95 < seasonal / last < 1.2
    steps = np.diff(synthetic.twin("Exchange")[0], axis=0)
    steps = (steps - steps.mean(axis=0)) / steps.std(axis=0)
    # Steps of a walk are nearly uncorrelated; the little noise on top gives them a slight rebound.
    assert abs(np.mean(steps[1:] * steps[:-1], axis=0)).max() < 0.3


def test_autoregression_has_the_recursion_and_unit_variance():
    series = synthetic._autoregression(np.random.default_rng(0), 50, 0.9)
    shocks = np.random.default_rng(0).normal(size=50)
    expected = [shocks[0]]
    for shock in shocks[1:]:
        expected.append(0.9 * expected[-1] + np.sqrt(1 - 0.81) * shock)
    np.testing.assert_allclose(series, expected, rtol=1e-12)


def test_the_corpus_is_standardised_float32_and_finite():
    corpus = synthetic.kernel_synth(200, 96, seed=3)
    assert corpus.dtype == np.float32
    assert corpus.shape == (200, 96)
    np.testing.assert_allclose(corpus.mean(axis=1, dtype=np.float64), 0, atol=1e-5)
    np.testing.assert_allclose(corpus.std(axis=1, dtype=np.float64), 1, atol=1e-5)


def test_series_i_of_the_corpus_depends_on_seed_and_i_alone():
    corpus = synthetic.kernel_synth(20, 64, seed=3)
    np.testing.assert_array_equal(corpus[:5], synthetic.kernel_synth(5, 64, seed=3))
    assert (corpus != synthetic.kernel_synth(20, 64, seed=4)).any(axis=1).all()


def test_much_of_the_corpus_can_be_forecast_from_its_own_past():
    corpus = synthetic.kernel_synth(300, 256, seed=0).astype(np.float64)
    # The best lag of the first 192 values, used on the last 64: an oracle with one parameter.
    best = []
    for series in corpus:
        scores = {
            lag: np.mean((series[lag:192] - series[: 192 - lag]) ** 2) for lag in range(1, 97)
        }
        lag = min(scores, key=scores.__getitem__)
        steps = np.arange(192, 256)
        best.append(
            np.mean((series[steps] - series[steps - lag * (-(-(steps - 191) // lag))]) ** 2)
        )
    # Two independent values of a standardised series differ by 2 on average.
    assert np.mean(np.array(best) < 1.0) > 0.4


@pytest.mark.parametrize(("num_series", "length"), [(-1, 96), (3, 7)])
def test_an_impossible_corpus_is_refused(num_series: int, length: int):
    with pytest.raises(InputError, match=f"{num_series} series of length {length}"):
        synthetic.kernel_synth(num_series, length)
