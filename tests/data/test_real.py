"""The real files: digests, rows, oddities; scaler and last-value scores as published."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sffbench.data import catalog, load
from sffbench.data.windows import split

# reference: rows, channels, first and last stamp, and what is odd, counted from the files
FILES = {
    "ETTh1": (17_420, 7, "2016-07-01T00:00:00", "2018-06-26T19:00:00"),
    "ETTh2": (17_420, 7, "2016-07-01T00:00:00", "2018-06-26T19:00:00"),
    "ETTm1": (69_680, 7, "2016-07-01T00:00:00", "2018-06-26T19:45:00"),
    "ETTm2": (69_680, 7, "2016-07-01T00:00:00", "2018-06-26T19:45:00"),
    "Weather": (52_696, 21, "2020-01-01T00:10:00", "2021-01-01T00:00:00"),
    "Exchange": (7_588, 8, "1990-01-01T00:00:00", "2010-10-10T00:00:00"),
    "ILI": (966, 7, "2002-01-01T00:00:00", "2020-06-30T00:00:00"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_is_official_and_has_its_documented_shape(real_data: Path, name: str):
    dataset = load(name, real_data)
    first, last = str(dataset.dates[0]), str(dataset.dates[-1])
    assert (dataset.num_rows, dataset.num_channels, first, last) == FILES[name]
    assert dataset.official
    assert dataset.sha256 == catalog.get(name).sha256[0]
    if name != "Weather":
        assert dataset.warnings == ()


def test_weather_warns_of_sentinels_duplicate_stamp_and_gap(real_data: Path):
    sentinels, duplicate, gap = load("Weather", real_data).warnings
    assert sentinels.startswith("sentinels -9999: wv (m/s) 1, max. PAR ")
    assert " 30, OT 50" in sentinels
    assert duplicate == "1 duplicate stamp, first 2020-05-12 06:00"
    assert gap == "1 gap, longest 100 minutes until 2020-05-29 11:10"


@pytest.mark.parametrize("name", ["Weather", "Exchange", "ILI", "ETTh1"])
def test_the_twin_with_other_line_ends_is_official_too(real_data, tmp_path, name: str):
    file = catalog.get(name).file
    unix = (real_data / file).read_bytes().replace(b"\r\n", b"\n")
    values = []
    for content in (unix, unix.replace(b"\n", b"\r\n")):
        (tmp_path / file).write_bytes(content)
        dataset = load(name, tmp_path)
        assert dataset.official
        values.append(dataset.values)
    assert torch.equal(*values)


def test_the_etth1_scaler_is_the_published_one(real_data: Path):
    scaler = load("ETTh1", real_data).scaler
    mean = [7.9377, 2.0210, 5.0798, 0.7462, 2.7818, 0.7885, 17.1283]
    std = [5.8127, 2.0901, 5.5188, 1.9264, 1.0235, 0.6302, 9.1765]
    np.testing.assert_allclose(scaler.mean, mean, atol=5e-5)
    np.testing.assert_allclose(scaler.std, std, atol=5e-5)


def last_value_errors(name: str, root: Path, horizon: int) -> np.ndarray:
    """float64 [num_starts, 2]: MSE and MAE of repeating the last value, a row for each start."""
    windows = split(load(name, root), "test", 36, horizon)
    past, future = windows.batch(torch.arange(len(windows)))
    error = (future - past[..., -1:]).double().reshape(windows.num_channels, windows.num_starts, -1)
    return torch.stack([(error**2).mean((0, 2)), error.abs().mean((0, 2))], dim=1).numpy()


# horizon, then (MSE, MAE): as published, with the incomplete last batch of 32 starts dropped, and
# on every window, as we score. ILI shows what the drop hides: its last 10 starts are the easy ones.
LAST_VALUE = {
    "ETTh1": (96, (1.295, 0.713), (1.2944, 0.7132)),
    "Exchange": (96, (0.081, 0.196), (0.0811, 0.1964)),
    "ILI": (24, (6.587, 1.701), (6.2133, 1.6222)),
}


@pytest.mark.parametrize("name", LAST_VALUE)
def test_last_value_equals_the_published_table_when_the_last_batch_is_dropped(real_data, name):
    horizon, published, _ = LAST_VALUE[name]
    errors = last_value_errors(name, real_data, horizon)
    whole_batches = len(errors) // 32 * 32
    np.testing.assert_allclose(errors[:whole_batches].mean(axis=0), published, atol=5.01e-4)


@pytest.mark.parametrize("name", LAST_VALUE)
def test_last_value_on_every_window_equals_a_float64_loop_over_the_csv(real_data, name):
    horizon, _, on_all = LAST_VALUE[name]
    entry = catalog.get(name)
    values = pd.read_csv(real_data / entry.file).iloc[:, 1:].to_numpy(np.float64)
    train_end, val_end, test_end = entry.borders(len(values))
    scaled = (values - values[:train_end].mean(axis=0)) / values[:train_end].std(axis=0)
    starts = range(val_end, test_end - horizon + 1)
    oracle = np.array([scaled[s : s + horizon] - scaled[s - 1] for s in starts])
    expected = [(oracle**2).mean(), abs(oracle).mean()]
    errors = last_value_errors(name, real_data, horizon)
    assert len(errors) == len(starts)
    np.testing.assert_allclose(errors.mean(axis=0), expected, rtol=1e-6)
    np.testing.assert_allclose(expected, on_all, atol=5.01e-5)
