"""One cell from spec to record: its parts, its outcomes, and that test windows come last."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sffbench import data, models, runner
from sffbench.data.windows import split
from sffbench.store import Record
from sffbench.suite import RunSpec, digest
from sffbench.tasks import Forecast

Cells = Callable[..., list[RunSpec]]
CPU = torch.device("cpu")
NUM_TEST_STARTS = 400 - 8 + 1  # rows of the twin's test part, H = 8
NUM_TEST = NUM_TEST_STARTS * 7

ALL_TEST = {"protocol": "standard"}


def run(spec: RunSpec) -> Record:
    record = runner.run(spec, CPU)
    assert record["status"] == "ok", record["reason"]
    return record


# -- the record ------------------------------------------------------------------------------------


def test_an_ok_record_has_every_documented_part(cells_of: Cells) -> None:
    (spec,) = cells_of(strategies=["sff"], protocol="standard")
    record = run(spec)
    assert record["schema"] == 1
    assert (record["key"], record["label"], record["cell"]) == (spec.key, "sff", spec.cell)
    assert record["reason"] is None
    assert set(record["metrics"]) == {
        "mse",
        "mae",
        "mase",
        "num_windows",
        "num_starts",
        "mse_per_channel",
    }
    assert set(record["validation"]) == {"selected_step", "mse", "num_windows", "candidates"}
    assert set(record["cost"]) >= {
        "prepare_s",
        "train_s",
        "validate_s",
        "test_s",
        "train_windows",
        "test_windows",
        "train_windows_per_s",
        "test_windows_per_s",
        "train_batch",
        "test_batch",
        "warm_up_s",
        "warm_up_windows",
        "peak_memory_bytes",
        "train_peak_memory_bytes",
        "test_peak_memory_bytes",
        "num_parameters",
        "num_trained",
    }
    assert set(record["environment"]) >= {
        "device",
        "device_name",
        "threads",
        "torch",
        "python",
        "sffbench",
        "commit",
        "dirty",
    }
    assert record["flags"] == {
        "synthetic": True,
        "tiny": False,
        "untrained": False,
        "ranked": True,
        "timed": False,
        "cluster": "ett1",
        "unrolled": False,
        "leaked": "unknown",
        "head": "pretrained",
    }
    assert record["started_at"] <= record["finished_at"]
    assert [point["step"] for point in record["curve"]] == [0, 2, 4]


def test_a_record_is_plain_json_and_comes_back_equal(cells_of: Cells) -> None:
    for spec in cells_of(strategies=["sff", "last-value", "zero-shot"]):
        record = run(spec)
        text = json.dumps(record, allow_nan=False)
        assert json.loads(text) == record
        assert digest(json.loads(text)["cell"]) == record["key"]


def test_the_counts_and_costs_equal_their_closed_forms(cells_of: Cells, small_ttm: Path) -> None:
    record = run(cells_of(**ALL_TEST)[0])
    model = models.load("ttm", small_ttm)
    num_parameters = sum(p.numel() for p in model.parameters())
    assert record["metrics"]["num_starts"] == NUM_TEST_STARTS
    assert record["metrics"]["num_windows"] == NUM_TEST
    assert len(record["metrics"]["mse_per_channel"]) == 7
    cost = record["cost"]
    assert cost["train_windows"] == 4 * 16
    assert cost["test_windows"] == NUM_TEST
    assert cost["num_parameters"] == cost["num_trained"] == num_parameters
    assert cost["warm_up_windows"] == 3 * 16  # of four steps the fourth is in the rate
    measured_s = cost["train_s"] - cost["warm_up_s"]
    assert cost["train_windows_per_s"] == pytest.approx(16 / measured_s)
    assert (cost["train_batch"], cost["test_batch"]) == (16, 256)
    assert cost["test_windows_per_cpu_s"] == pytest.approx(NUM_TEST / cost["test_cpu_s"])
    peaks = [cost[f"{part}peak_memory_bytes"] for part in ("", "train_", "test_")]
    assert peaks == [None] * 3 or (peaks[0] >= max(peaks) and min(peaks) > 2**20)


def test_zero_shot_scores_are_those_of_a_float64_oracle(cells_of: Cells, small_ttm: Path) -> None:
    record = run(cells_of(strategies=["zero-shot"], **ALL_TEST)[0])
    dataset = data.load("ETTh1", "", source="synthetic")
    rows = dataset.scaled.double().numpy()[dataset.borders[1] - 32 :]
    frame = np.lib.stride_tricks.sliding_window_view(rows, 40, axis=0)  # [starts, C, L + H]
    past = torch.from_numpy(frame[..., :32].copy()).float()
    error = models.load("ttm", small_ttm).forecast(past, 8).double().numpy() - frame[..., 32:]
    metrics = record["metrics"]
    assert metrics["mse"] == pytest.approx((error**2).mean(), rel=1e-5)
    assert metrics["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert metrics["mse_per_channel"] == pytest.approx((error**2).mean((0, 2)), rel=1e-5)
    mase = (np.abs(error).mean((0, 2)) / dataset.mase_scale).mean()
    assert metrics["mase"] == pytest.approx(mase, rel=1e-5)


def test_naive_rows_need_no_model(cells_of: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = cells_of(strategies=["last-value", "seasonal-naive"], **ALL_TEST)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", refuse)
    for spec in specs:
        record = run(spec)
        assert record["cell"]["model"]["name"] == "none"
        assert (record["flags"]["leaked"], record["flags"]["head"]) == ("no", None)
        assert record["metrics"]["num_windows"] == NUM_TEST
        assert record["validation"] == {}


def test_last_value_scores_the_definition(cells_of: Cells) -> None:
    record = run(cells_of(strategies=["last-value"], **ALL_TEST)[0])
    dataset = data.load("ETTh1", "", source="synthetic")
    x = dataset.scaled.double().numpy()
    first = dataset.borders[1]
    errors = [x[first + s - 1] - x[first + s : first + s + 8] for s in range(NUM_TEST_STARTS)]
    assert record["metrics"]["mse"] == pytest.approx(np.square(errors).mean(), rel=1e-6)


def test_the_same_cell_twice_gives_the_same_numbers(cells_of: Cells) -> None:
    (spec,) = cells_of(strategies=["sff"])
    first, second = run(spec), run(spec)
    for part in ("metrics", "validation", "key", "performance_key", "cell", "flags"):
        assert first[part] == second[part]
    losses = [[point["train_loss"] for point in record["curve"]] for record in (first, second)]
    assert losses[0] == losses[1]


# -- the test windows ------------------------------------------------------------------------------


def test_the_sampled_test_windows_are_the_same_for_every_strategy(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    evaluate = Forecast.evaluate

    def spy(self: Any, forecaster: Any, windows: Any, index: Any = None, **rest: Any) -> Any:
        if index is not None and len(index) == 512:
            horizons = windows.batch(index)[1]
            seen.append((index, horizons))
        return evaluate(self, forecaster, windows, index, **rest)

    monkeypatch.setattr(Forecast, "evaluate", spy)
    names = ["last-value", "seasonal-naive", "zero-shot", "full", "sff", "from-scratch"]
    for spec in cells_of(strategies=names):
        assert run(spec)["metrics"]["num_windows"] == 512
    assert len(seen) == len(names)
    for index, horizons in seen:
        assert torch.equal(index, seen[0][0])
        assert torch.equal(horizons, seen[0][1])


@pytest.mark.parametrize(("num_windows", "num_test"), [(2751, 512), (513, 512), (1000, 7)])
def test_the_sample_of_test_windows_is_an_even_stride_without_repeats(
    num_windows: int, num_test: int
) -> None:
    index = runner._test_index(num_windows, num_test)
    assert index is not None
    assert len(set(index.tolist())) == num_test
    steps = index.diff()
    assert int(steps.max() - steps.min()) <= 1
    assert 0 <= int(index.min()) <= int(index.max()) < num_windows


@pytest.mark.parametrize("num_test", [None, 10, 11])
def test_all_test_windows_are_taken_where_there_are_no_more(num_test: int | None) -> None:
    assert runner._test_index(10, num_test) is None


def test_a_channel_without_a_sampled_window_is_null_and_the_record_is_json(
    cells_of: Cells,
) -> None:
    (spec,) = cells_of(strategies=["last-value"])
    cell = copy.deepcopy(spec.cell)
    cell["protocol"]["num_test"] = 3  # of 7 channels
    record = run(RunSpec(cell, "last-value"))
    per_channel = record["metrics"]["mse_per_channel"]
    assert sum(value is None for value in per_channel) == 4
    assert record["metrics"]["mase"] is None
    assert math.isfinite(record["metrics"]["mse"])
    json.dumps(record, allow_nan=False)


def test_test_windows_are_made_only_after_training_has_ended(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    train = runner.train

    def spy_split(dataset: Any, part: Any, *rest: Any) -> Any:
        order.append(part)
        return split(dataset, part, *rest)

    def spy_train(*args: Any, **kwargs: Any) -> Any:
        trained = train(*args, **kwargs)
        order.append("trained")
        return trained

    monkeypatch.setattr(runner, "split", spy_split)
    monkeypatch.setattr(runner, "train", spy_train)
    for strategy in ("sff", "zero-shot"):
        order.clear()
        run(cells_of(strategies=[strategy])[0])
        assert order.index("test") > order.index("trained")
        assert order[:3] == ["train", "validation", "trained"]


def test_training_cannot_reach_the_data_set_or_its_test_windows(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    train = runner.train

    def spy(*args: Any, **kwargs: Any) -> Any:
        given.extend([*args, *kwargs.values()])
        return train(*args, **kwargs)

    monkeypatch.setattr(runner, "train", spy)
    run(cells_of()[0])
    dataset = data.load("ETTh1", "", source="synthetic")
    rows = [len(w._channels[0]) for w in given if hasattr(w, "_channels")]
    assert rows == [dataset.borders[0], dataset.borders[1] - dataset.borders[0] + 32]
    assert not any(type(value).__name__ == "Dataset" for value in given)


def test_the_oracle_is_the_best_test_score_and_selection_never_sees_it(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(cells_of(protocol="sff-paper", budget={"epochs": 3, "batch_size": 512})[0])
    oracle, validation = record["metrics"]["oracle"], record["validation"]
    assert oracle["mse"] <= record["metrics"]["mse"]
    points = {p["step"]: p["validation_mse"] for p in record["curve"] if p["step"]}
    assert oracle["step"] in points
    assert validation["selected_step"] == min(points, key=lambda step: points[step])
    assert validation["mse"] == points[validation["selected_step"]]
    assert "oracle" not in run(cells_of()[0])["metrics"]


def test_the_oracle_does_not_move_the_selection(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another test series gives another oracle and the same selected step and curve."""
    (spec,) = cells_of(protocol="sff-paper", budget={"epochs": 2, "batch_size": 512})
    plain = run(spec)

    def other_test(dataset: Any, part: Any, *rest: Any) -> Any:
        windows = split(dataset, part, *rest)
        if part == "test":
            windows._set_storage(windows._channels + 5.0)
        return windows

    monkeypatch.setattr(runner, "split", other_test)
    moved = run(spec)
    assert moved["metrics"]["oracle"]["mse"] != plain["metrics"]["oracle"]["mse"]
    assert moved["validation"] == plain["validation"]


# -- keys of performance ---------------------------------------------------------------------------


def test_the_performance_key_is_told_by_device_and_software_but_not_by_the_commit(
    cells_of: Cells,
) -> None:
    (spec,) = cells_of()
    here = {"device": "cpu", "torch": "2", "threads": 1, "commit": "a", "dirty": False}
    key = runner.performance_key(spec, here)
    assert runner.performance_key(spec, here | {"commit": "b", "dirty": True}) == key
    for change in ({"device": "cuda"}, {"torch": "3"}, {"threads": 2}):
        assert runner.performance_key(spec, here | change) != key
    (other,) = cells_of(seeds=[1])
    assert runner.performance_key(other, here) != key
    assert key != spec.key
