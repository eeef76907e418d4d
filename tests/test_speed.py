"""Runs that measure speed: random weights, warm-up outside the rates, a time limit, no ranking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sffbench import cells, cli, driver, measure, models, networks, planning, runner, suite
from sffbench.engines import local
from sffbench.errors import InputError
from sffbench.store import Store
from sffbench.suite import Places, RunSpec
from sffbench.tasks import Forecast
from sffbench.tasks.forecast import EVAL_BATCH

Cells = Callable[..., list[RunSpec]]
CPU = torch.device("cpu")
RANDOM = {"models": [{"name": "ttm:tiny", "weights": "random"}], "horizons": [96]}
SPEED = RANDOM | {"protocol": "speed", "measure": "speed", "budget": {}}


@pytest.fixture
def record(cells_of: Cells) -> dict[str, Any]:
    (spec,) = cells_of(**SPEED)
    found = runner.run(spec, CPU)
    assert found["status"] == "ok", found["reason"]
    return found


# -- random weights --------------------------------------------------------------------------------


def test_random_weights_need_no_file_and_their_seed_is_in_the_key(
    cells_of: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sffbench.models.checkpoint.PACKAGED", tmp_path)
    monkeypatch.delenv("SFFBENCH_CHECKPOINTS", raising=False)
    (spec,) = cells_of(**RANDOM)
    assert spec.cell["model"]["weights"] == "random:0"
    assert runner.run(spec, CPU)["status"] == "ok"


def test_the_config_hash_tells_random_networks_apart(cells_of: Cells) -> None:
    names = ("ttm:tiny", "ttm:r1-512-96", "ttm:r2-512-96")
    described = [networks.describe(name, None, "random", {}) for name in names]
    assert {weights for _, weights in described} == {"random:0"}
    assert described[0][0] != described[1][0]


def test_every_seed_of_a_run_starts_from_the_same_random_weights(cells_of: Cells) -> None:
    specs = cells_of(**RANDOM, seeds=[0, 1])
    assert len({spec.key for spec in specs}) == 2
    assert len({spec.cell["model"]["weights"] for spec in specs}) == 1
    expected = models.create("ttm:tiny", seed=0).state_dict()
    built = networks.build("ttm:tiny", None, "random", {}).state_dict()
    assert all(torch.equal(built[name], tensor) for name, tensor in expected.items())


def test_a_run_from_random_weights_is_flagged_and_is_no_accuracy(record: dict[str, Any]) -> None:
    flags = record["flags"]
    assert (flags["untrained"], flags["ranked"], flags["head"]) == (True, False, "random")


def test_zero_shot_of_random_weights_is_not_applicable(cells_of: Cells) -> None:
    (spec,) = cells_of(**SPEED, strategies=["zero-shot"])
    found = runner.run(spec, CPU)
    assert (found["status"], found["metrics"]) == ("n/a", {})
    assert "nothing pretrained" in found["reason"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "ttm:tiny", "source": "."}, "random weights are drawn"),
        ({"name": "ttm"}, "preset of ttm"),
        ({"name": "ttm:tiny", "options": {"dropuot": 0.1}}, "option of ttm.*dropout"),
    ],
)
def test_what_random_weights_cannot_be_is_one_line(
    cells_of: Cells, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cells_of(models=[entry | {"weights": "random"}])


def test_options_reach_a_random_network(cells_of: Cells) -> None:
    built = networks.build("ttm:tiny", None, "random", {"dropout": 0.75})
    assert any(
        module.p == 0.75 for module in built.modules() if isinstance(module, torch.nn.Dropout)
    )


# -- what is measured ------------------------------------------------------------------------------


def test_a_speed_run_validates_nothing_and_tests_the_last_step(record: dict[str, Any]) -> None:
    assert record["validation"] == {
        "selected_step": 8,
        "mse": None,
        "num_windows": 0,
        "candidates": [],
    }
    assert record["cost"]["validate_s"] == 0
    assert [point["validation_mse"] for point in record["curve"]] == [None]


def test_the_first_three_steps_are_in_the_seconds_and_not_in_the_rate(
    record: dict[str, Any],
) -> None:
    cost = record["cost"]
    assert (cost["train_windows"], cost["warm_up_windows"]) == (8 * 8, 3 * 8)
    assert cost["train_windows_per_s"] == pytest.approx(
        5 * 8 / (cost["train_s"] - cost["warm_up_s"])
    )
    assert (cost["train_batch"], cost["test_batch"], cost["test_windows"]) == (8, 32, 32)


def test_a_run_of_three_steps_has_no_rate(cells_of: Cells) -> None:
    (spec,) = cells_of(**RANDOM, protocol="speed", budget={"max_steps": 3})
    cost = runner.run(spec, CPU)["cost"]
    assert cost["train_s"] > 0
    assert cost["train_windows_per_s"] is None


def test_a_slow_first_forecast_does_not_count(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    ttm, calls = models.get("ttm"), list[int]()
    forecast = ttm._forecast

    def slow_at_first(self: Any, past: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        if torch.is_inference_mode_enabled():  # TTM trains on its forecast as well
            time.sleep(0 if calls else 1.0)
            calls.append(len(past))
        return forecast(self, past, *rest, **more)

    monkeypatch.setattr(ttm, "_forecast", slow_at_first)
    (spec,) = cells_of(**SPEED)
    assert runner.run(spec, CPU)["cost"]["test_s"] < 0.9
    assert calls == [1, 32]


def test_evaluation_halves_its_batch_when_memory_runs_out_and_scores_the_same(
    cells_of: Cells,
) -> None:
    from sffbench import data
    from sffbench.data.windows import split

    windows = split(data.load("ETTh1", "", source="synthetic"), "test", 8, 4)
    index = torch.arange(50)
    sizes: list[int] = []

    def mean(past: torch.Tensor, horizon: int) -> torch.Tensor:
        sizes.append(len(past))
        if len(past) > 16:
            raise torch.OutOfMemoryError("pretended")
        return past.mean(-1, keepdim=True).expand(-1, -1, horizon)

    whole = Forecast(4).evaluate(lambda past, h: mean(past[:16], h)[:1] * 0, windows, index[:16])
    assert whole.batch_size == 16
    parts = Forecast(4).evaluate(mean, windows, index)
    assert sizes[1:] == [50, 25, 12, 12, 12, 12, 2]
    exact = Forecast(4).evaluate(mean, windows, index, batch_size=10)
    assert parts.batch_size == 12
    assert parts.num_windows == 50
    assert parts.mse == pytest.approx(exact.mse, rel=1e-12)


def test_memory_without_end_is_an_error_at_one_window(cells_of: Cells) -> None:
    from sffbench import data
    from sffbench.data.windows import split

    def never(past: torch.Tensor, horizon: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("pretended")

    windows = split(data.load("ETTh1", "", source="synthetic"), "test", 8, 4)
    with pytest.raises(torch.OutOfMemoryError):
        Forecast(4).evaluate(never, windows, torch.arange(9))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_the_memory_of_one_part_is_not_counted_in_the_next() -> None:
    meter = measure.MemoryMeter(CPU)
    block = torch.ones(64, 2**20)
    with_block = meter.lap()
    del block
    meter.lap()  # the block is given back when this lap ends
    without = meter.lap()
    assert with_block is not None
    assert without is not None
    assert with_block - without > 200 * 2**20
    assert meter.highest is not None
    assert meter.highest >= with_block


# -- suites and their driver -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["throughput", "throughput-gpu"])
def test_the_throughput_suites_hold_all_models_at_published_sizes(name: str) -> None:
    loaded = suite.load(name)
    specs = cells.expand(loaded, Places())
    assert loaded.measure == "speed"
    assert {spec.cell["model"]["name"] for spec in specs} == set(models.names())
    assert len(specs) == len(loaded.models)
    for spec in specs:
        assert spec.cell["model"]["weights"] == "random:0"
        assert spec.cell["model"]["preset"] != "tiny"
        assert planning.num_windows(spec)[0] > 0


def test_only_the_two_slowest_sizes_wait_for_a_gpu() -> None:
    ours, gpu = (
        {entry.name for entry in suite.load(name).models}
        for name in ("throughput", "throughput-gpu")
    )
    assert gpu - ours == {"chronos:t5-base", "chronos:t5-large"}
    assert ours < gpu


def test_a_plan_says_which_cells_its_hours_leave_out(cells_of: Cells, tmp_path: Path) -> None:
    plan = planning.overview(cells_of(**SPEED), tmp_path)
    assert (plan["not_estimated"], plan["estimate"]["cpu_core_hours"]) == (1, 0)
    assert "1 cells of random weights" in planning.text(plan)
    (spec,) = cells_of(**SPEED)
    assert planning.workload(spec) == planning.Work(64, 32)


def test_a_time_limit_leaves_cells_for_the_next_call(cells_of: Cells, tmp_path: Path) -> None:
    specs = cells_of(**SPEED, seeds=[0, 1])
    first = driver.run_suite(specs, tmp_path, device="cpu", time_limit_s=0)
    assert (first["ran"], first["left"], first["counts"]) == (0, 2, {"missing": 2})
    assert "2 cells left" in driver.text(first, tmp_path)
    second = driver.run_suite(specs, tmp_path, device="cpu")
    assert (second["ran"], second["left"], second["counts"]) == (2, 0, {"ok": 2})
    assert "left" not in driver.text(second, tmp_path)


def test_no_cell_starts_after_the_deadline_and_the_one_under_way_is_finished(
    cells_of: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0, 1.0, 5.0])  # of the engine's clock: at the call, first cell, second cell
    monkeypatch.setattr(local.time, "monotonic", lambda: next(ticks))
    specs = cells_of(**SPEED, seeds=[0, 1])
    ended = [e for e in local.run_local(specs, tmp_path, "cpu", 1, 1, 3.0) if e.status]
    assert [(event.spec.key, event.status) for event in ended] == [(specs[0].key, "ok")]


def test_cells_that_are_timed_run_one_at_a_time(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "num_cores", lambda: 8)
    assert driver._num_workers(cells_of(**SPEED), "cpu") == 1
    assert driver._num_workers(cells_of(), "cpu") == 8


def test_a_record_of_another_device_does_not_make_a_speed_cell_done(
    cells_of: Cells, tmp_path: Path
) -> None:
    (spec,) = cells_of(**SPEED)
    elsewhere = runner.run(spec, CPU) | {"performance_key": "0" * 24}
    Store(tmp_path).write(elsewhere)
    assert driver.run_suite([spec], tmp_path, device="cpu", time_limit_s=0)["left"] == 1


def test_the_table_of_a_speed_suite_is_its_costs(
    suite_fields: Callable[..., dict[str, Any]],
    cells_of: Cells,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (spec,) = cells_of(**SPEED)
    Store(tmp_path).write(runner.run(spec, CPU))
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nmeasure = "speed"\nprotocol = "speed"\ndata = "synthetic"\n'
        'datasets = ["ETTh1"]\nstrategies = ["full"]\n'
        'models = [{ name = "ttm:tiny", weights = "random" },'
        ' { name = "units:x32", weights = "random" }]\n'
    )
    words = ["sffbench", "table", "--results", str(tmp_path), "--suite", str(file), "--json"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    (found,) = json.loads(capsys.readouterr().out)["tables"]
    status = {row["model"]["name"]: row["status"] for row in found["rows"]}
    assert status == {"ttm": "ok", "units": "missing"}
    assert found["on_cpu"]


def test_the_evaluation_batches_of_both_kinds_of_device_are_known() -> None:
    assert set(EVAL_BATCH) == {"cpu", "cuda"}
