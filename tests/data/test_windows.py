"""Windows: counts equal the closed forms, contents equal naive slicing, no part sees too far."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sffbench.data.dataset import Dataset, Scaler
from sffbench.data.windows import Windows, split
from sffbench.errors import InputError

PARTS = ("train", "validation", "test")


def dataset_of(borders: tuple[int, int, int], num_channels: int = 2, num_rows: int | None = None):
    """A data set whose standardised values all differ: row * 10 + channel."""
    num_rows = num_rows or borders[2]
    values = torch.arange(num_rows)[:, None] * 10.0 + torch.arange(num_channels)
    return Dataset(
        name="Toy",
        values=values,
        scaled=values.clone(),
        scaler=Scaler(np.zeros(num_channels), np.ones(num_channels)),
        borders=borders,
        columns=tuple("abcdefg"[:num_channels]),
        dates=np.arange(num_rows).astype("datetime64[h]"),
        frequency="h",
        season=24,
        cluster="toy",
        sha256="",
        official=False,
        source="real",
        warnings=(),
        mase_scale=np.ones(num_channels),
    )


def closed_form(borders: tuple[int, int, int], part: str, lookback: int, horizon: int) -> int:
    train_end, val_end, test_end = borders
    if part == "train":
        return train_end - lookback - horizon + 1
    if part == "validation":
        return val_end - train_end - horizon + 1
    return test_end - val_end - horizon + 1


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    num_channels=st.integers(1, 4),
    lookback=st.integers(1, 20),
    horizon=st.integers(1, 20),
    part=st.sampled_from(PARTS),
)
def test_counts_equal_the_closed_form_or_the_part_is_refused(
    sizes, num_channels, lookback, horizon, part
):
    borders = tuple(np.cumsum(sizes).tolist())
    expected = closed_form(borders, part, lookback, horizon)
    dataset = dataset_of(borders, num_channels)
    reaches_before_row_0 = part != "train" and borders[PARTS.index(part) - 1] < lookback
    if expected < 1 or reaches_before_row_0:
        with pytest.raises(InputError, match=f"Toy: the {part} part"):
            split(dataset, part, lookback, horizon)
    else:
        windows = split(dataset, part, lookback, horizon)
        assert windows.num_starts == expected
        assert len(windows) == expected * num_channels


@settings(max_examples=50, deadline=None)
@given(
    num_rows=st.integers(2, 30),
    num_channels=st.integers(1, 4),
    lookback=st.integers(1, 10),
    horizon=st.integers(1, 10),
    skip=st.integers(0, 3),
)
def test_every_window_equals_naive_slicing(num_rows, num_channels, lookback, horizon, skip):
    num_rows += lookback + horizon + skip
    series = torch.randn(num_rows, num_channels)
    windows = Windows(series, lookback, horizon, first_target=lookback + skip)
    expected = [
        (series[s : s + lookback, c], series[s + lookback : s + lookback + horizon, c])
        for c in range(num_channels)
        for s in range(skip, num_rows - lookback - horizon + 1)
    ]
    assert len(windows) == len(expected)
    order = torch.randperm(len(windows))
    past, future = windows.batch(order)
    assert torch.equal(past[:, 0], torch.stack([expected[i][0] for i in order.tolist()]))
    assert torch.equal(future[:, 0], torch.stack([expected[i][1] for i in order.tolist()]))


def test_an_index_is_channel_times_starts_plus_start():
    windows = Windows(torch.zeros(20, 3), 4, 2)
    index = torch.tensor([0, 14, 15, 44])
    assert windows.channels_of(index).tolist() == [0, 0, 1, 2]
    assert windows.starts_of(index).tolist() == [0, 14, 0, 14]


@pytest.mark.parametrize("index", [-1, 45])
def test_an_index_out_of_range_is_an_error(index: int):
    with pytest.raises(IndexError):
        Windows(torch.zeros(20, 3), 4, 2).batch(torch.tensor([index]))


def test_batches_are_contiguous_with_one_channel():
    past, future = Windows(torch.randn(50, 3), 8, 4).batch(torch.arange(10))
    assert past.shape == (10, 1, 8)
    assert future.shape == (10, 1, 4)
    assert past.is_contiguous()
    assert future.is_contiguous()


def test_each_part_begins_and_ends_where_its_border_says():
    dataset = dataset_of((30, 45, 60), num_channels=1, num_rows=80)
    seen = {}
    for part in PARTS:
        windows = split(dataset, part, lookback=8, horizon=4)
        past, future = windows.batch(torch.arange(len(windows)))
        rows = torch.cat([past, future], dim=2) / 10
        seen[part] = [int(v) for v in (rows.min(), rows.max(), (future / 10).min())]
    # first row read, last row read, first row predicted
    assert seen == {"train": [0, 29, 8], "validation": [22, 44, 30], "test": [37, 59, 45]}


@pytest.mark.parametrize(("part", "end"), [("train", 30), ("validation", 45), ("test", 60)])
def test_a_part_holds_no_memory_of_rows_beyond_its_border(part: str, end: int):
    dataset = dataset_of((30, 45, 60), num_rows=80)
    windows = split(dataset, part, lookback=8, horizon=4)
    num_rows = {"train": 30, "validation": 8 + 15, "test": 8 + 15}[part]
    tensors = [value for value in vars(windows).values() if isinstance(value, torch.Tensor)]
    assert tensors
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == num_rows * 2 * 4
    before = windows.batch(torch.arange(len(windows)))
    dataset.scaled[:] = -1.0
    after = windows.batch(torch.arange(len(windows)))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert max(before[0].max(), before[1].max()) < end * 10


def test_windows_move_to_another_device_and_take_the_index_along():
    windows = Windows(torch.randn(50, 3), 8, 4)
    moved = windows.to("meta")
    past, future = moved.batch(torch.arange(10))
    assert (past.device.type, past.shape, future.shape) == ("meta", (10, 1, 8), (10, 1, 4))
    assert len(moved) == len(windows)
    assert windows.device.type == "cpu"
    assert windows.to("cpu") is windows


@pytest.mark.parametrize(("lookback", "horizon"), [(0, 1), (1, 0), (-3, 2)])
def test_an_empty_lookback_or_horizon_is_refused(lookback: int, horizon: int):
    with pytest.raises(InputError, match="must be 1 or more"):
        Windows(torch.zeros(20, 1), lookback, horizon)


def test_a_first_target_inside_the_first_lookback_is_refused():
    with pytest.raises(InputError, match="begins at row 3"):
        Windows(torch.zeros(20, 1), 4, 2, first_target=3)


def test_an_unknown_part_gets_the_nearest_one():
    with pytest.raises(InputError, match="unknown part 'valid'; did you mean 'validation'"):
        split(dataset_of((30, 45, 60)), "valid", 8, 4)  # type: ignore[arg-type]
