"""`load`: values, scaler and MASE scale against numpy; what is refused, what is warned about."""

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sffbench.data import content_hash, load
from sffbench.data.checksum import record
from sffbench.errors import InputError


def test_values_are_the_numbers_of_the_file(toy, toy_folder: Path, toy_frame: pd.DataFrame):
    toy()
    dataset = load("Toy", toy_folder)
    expected = toy_frame[["a", "b", "OT"]].to_numpy()
    np.testing.assert_array_equal(dataset.values.numpy(), expected.astype(np.float32))
    assert dataset.columns == ("a", "b", "OT")
    assert str(dataset.dates[-1]) == "2020-01-05T03:00:00"
    assert (dataset.num_rows, dataset.num_channels) == (100, 3)


def test_the_scaler_is_numpy_float64_over_train_rows_rounded_once(
    toy, toy_folder: Path, toy_frame: pd.DataFrame
):
    toy()
    dataset = load("Toy", toy_folder)
    values = toy_frame[["a", "b", "OT"]].to_numpy()
    mean, std = values[:70].mean(axis=0), values[:70].std(axis=0, ddof=0)
    np.testing.assert_allclose(dataset.scaler.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(dataset.scaler.std, std, rtol=1e-15)
    expected = ((values - mean) / std).astype(np.float32)
    np.testing.assert_array_equal(dataset.scaled.numpy(), expected)
    np.testing.assert_allclose(
        dataset.scaler.inverse(dataset.scaler.transform(values)), values, rtol=1e-12
    )


def test_a_constant_channel_is_centred_and_not_divided(toy, tmp_path: Path, toy_frame):
    toy()
    toy_frame["b"] = 0.1  # a float64 mean of 0.1s is off by rounding, and so is their std
    toy_frame.to_csv(tmp_path / "toy.csv", index=False)
    dataset = load("Toy", tmp_path)
    assert dataset.scaler.std[1] == 1.0
    assert abs(dataset.scaled[:, 1]).max() < 1e-12


def test_rows_after_train_do_not_touch_the_scaler(toy, tmp_path: Path, toy_folder, toy_frame):
    toy()
    before = load("Toy", toy_folder).scaler
    toy_frame.loc[70:, ["a", "b", "OT"]] = 1e6
    toy_frame.to_csv(tmp_path / "toy.csv", index=False)
    after = load("Toy", tmp_path).scaler
    np.testing.assert_array_equal(before.mean, after.mean)
    np.testing.assert_array_equal(before.std, after.std)


def test_mase_scale_is_the_mean_seasonal_change_in_train(toy, toy_folder: Path, toy_frame):
    toy()
    dataset = load("Toy", toy_folder)
    train = toy_frame[["a", "b", "OT"]].to_numpy()[:70]
    scaled = (train - train.mean(axis=0)) / train.std(axis=0)
    expected = [
        np.mean([abs(scaled[t, c] - scaled[t - 24, c]) for t in range(24, 70)]) for c in range(3)
    ]
    np.testing.assert_allclose(dataset.mase_scale, expected, rtol=1e-12)


def test_mase_scale_is_nan_where_train_is_no_longer_than_a_season(toy, toy_folder: Path):
    toy(season=70)
    assert np.isnan(load("Toy", toy_folder).mase_scale).all()


def test_the_digest_is_of_the_bytes_and_decides_what_is_official(toy, toy_folder: Path):
    sha256 = hashlib.sha256((toy_folder / "toy.csv").read_bytes()).hexdigest()
    toy(sha256=("0" * 64, sha256))
    dataset = load("Toy", toy_folder)
    assert (dataset.sha256, dataset.official, dataset.warnings) == (sha256, True, ())
    assert content_hash("toy", toy_folder) == sha256


def test_a_wrong_digest_is_a_warning_not_an_error(toy, toy_folder: Path):
    toy(sha256=("0" * 64,))
    dataset = load("Toy", toy_folder)
    assert not dataset.official
    assert dataset.warnings[0].startswith("toy.csv is not the catalog's file (SHA-256 ")


def test_a_file_that_changed_since_its_first_fetch_is_a_warning(toy, toy_folder: Path):
    toy()
    path = toy_folder / "toy.csv"
    record(path, hashlib.sha256(path.read_bytes()).hexdigest(), "test")
    assert "no digest of Toy is published" in load("Toy", toy_folder).warnings[0]
    path.write_text(path.read_text() + "2021-01-01 00:00:00,1,2,3\n")
    assert "toy.csv has changed since it was fetched" in load("Toy", toy_folder).warnings[0]


def test_sentinels_stamps_and_shape_are_warned_about(toy, tmp_path: Path, toy_frame):
    toy(num_rows=99, num_channels=4)
    toy_frame.loc[[3, 5], "b"] = -9999.0
    toy_frame.loc[10, "date"] = toy_frame.loc[9, "date"]
    toy_frame.loc[99, "date"] = "2020-01-06 02:30:00"
    toy_frame.to_csv(tmp_path / "toy.csv", index=False)
    assert load("Toy", tmp_path).warnings[1:] == (
        "100 rows, the catalog says 99",
        "3 channels, the catalog says 4",
        "sentinels -9999: b 2",
        "1 duplicate stamp, first 2020-01-01 09:00",
        "2 gaps, longest 1470 minutes until 2020-01-06 02:30",
    )


def test_stamps_closer_than_the_frequency_are_warned_about(toy, toy_folder: Path):
    toy(frequency="D")
    assert load("Toy", toy_folder).warnings[-1] == "99 steps shorter than the frequency 'D'"


def _without_date(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="date")


def _late_date(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[["a", "date", "b"]]


def _cell(column: str, value: object):
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame[column] = frame[column].astype(object)
        frame.loc[7, column] = value
        return frame

    return change


UNUSABLE = {
    "no date column": (_without_date, "first column of toy.csv must be 'date', not ['a', 'b'"),
    "date not first": (_late_date, "first column of toy.csv must be 'date', not ['a', 'date'"),
    "no channel": (lambda frame: frame[["date"]], "toy.csv has no values"),
    "no row": (lambda frame: frame[:0], "toy.csv has no values"),
    "few rows": (lambda frame: frame[:2], "Toy has 2 rows"),
    "a word": (_cell("b", "high"), "column 'b' is not numeric: 'high' in line 9"),
    "a hole": (_cell("b", np.nan), "nan in line 9, column 'b'"),
    "infinite": (_cell("OT", np.inf), "inf in line 9, column 'OT'"),
    "no date": (_cell("date", np.nan), "no date in line 9"),
    "odd date": (_cell("date", "yesterday"), "unreadable date"),
    "decreasing dates": (
        _cell("date", "2019-12-31 00:00:00"),
        "dates decrease in line 9: 2019-12-31 00:00:00 after 2020-01-01 06:00:00",
    ),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_file_is_refused_with_one_line(toy, tmp_path: Path, toy_frame, fault: str):
    change, reason = UNUSABLE[fault]
    toy()
    change(toy_frame).to_csv(tmp_path / "toy.csv", index=False)
    with pytest.raises(InputError) as caught:
        load("Toy", tmp_path)
    assert reason in str(caught.value)
    assert "Toy" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"date,a\n2020-01-01,1\n2020-01-02,1,2,3\n"])
def test_what_is_no_table_is_refused_with_one_line(toy, tmp_path: Path, content: bytes):
    toy()
    (tmp_path / "toy.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"^Toy: toy\.csv is no CSV table [^\n]*$"):
        load("Toy", tmp_path)


def test_a_missing_file_names_the_command_and_the_folder(tmp_path: Path):
    for call in (load, content_hash):
        with pytest.raises(InputError) as caught:
            call("ilI", tmp_path)
        assert "`sffbench fetch ILI`" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_an_unknown_source_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="unknown data source 'fake'"):
        load("ETTh1", tmp_path, source="fake")  # type: ignore[arg-type]
