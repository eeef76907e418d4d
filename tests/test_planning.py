"""Plans: the work of a cell before it runs equals what its record says afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sffbench import models, planning, runner
from sffbench.store import Store
from sffbench.suite import RunSpec

Cells = Callable[..., list[RunSpec]]
CPU = torch.device("cpu")


@pytest.mark.parametrize("strategy", ["last-value", "zero-shot", "full"])
@pytest.mark.parametrize("protocol", ["quick", "standard"])
def test_the_planned_windows_are_those_of_the_record(
    cells_of: Cells, strategy: str, protocol: str
) -> None:
    (spec,) = cells_of(strategies=[strategy], protocol=protocol)
    record = runner.run(spec, CPU)
    work, cost = planning.workload(spec), record["cost"]
    assert work.train == cost.get("train_windows", 0)
    _, validation, test = planning.num_windows(spec)
    assert min(spec.cell["protocol"]["num_test"] or test, test) == cost["test_windows"]
    if strategy != "last-value":
        assert record["validation"]["num_windows"] == validation


def test_the_planned_evaluations_are_curve_finalists_and_test(cells_of: Cells) -> None:
    (spec,) = cells_of(protocol="standard")
    _, validation, test = planning.num_windows(spec)
    # four steps, checked at 0, 2 and 4 on 64 windows; two finalists on all; all of the test part
    assert planning.workload(spec).evaluate == 3 * 64 + 2 * validation + test
    (spec,) = cells_of(strategies=["zero-shot"])
    assert planning.workload(spec).evaluate == validation + 512


def test_the_operations_of_a_window_are_two_for_every_multiply_add(cells_of: Cells) -> None:
    """Counted by hand from the shapes of the network's maps."""
    (spec,) = cells_of()
    # [4 patches, 16 wide]: embedding; encoder and decoder layer, each mixing patches, then features
    embedding = 4 * 8 * 16
    over_patches = 16 * (4 * 8 + 8 * 4 + 4 * 4)
    over_features = 4 * (16 * 32 + 32 * 16 + 16 * 16)
    head = 4 * 16 * 8
    total = 2 * (embedding + 2 * (over_patches + over_features) + head)
    assert planning.window_flops(planning._model_key(spec), 8) == pytest.approx(total, rel=0.01)


def test_finished_runs_correct_the_rate(cells_of: Cells) -> None:
    spec, other = cells_of(seeds=[0, 1])
    record: dict[str, Any] = {
        "status": "ok",
        "cell": spec.cell,
        "cost": {"train_windows_per_s": 4.0, "test_windows_per_s": 8.0},
    }
    work = planning.workload(other)
    expected = planning.OVERHEAD_S + work.train / 4 + work.evaluate / 8
    assert planning.seconds(other, 1e9, [record]) == pytest.approx(expected)
    assert planning.seconds(other, 1e9, [record | {"status": "failed"}]) < expected


def test_an_overview_counts_states_and_estimates_only_what_is_missing(
    cells_of: Cells, tmp_path: Path
) -> None:
    specs = cells_of(strategies=["last-value", "seasonal-naive"])
    before = planning.overview(specs, tmp_path)
    assert before["counts"] == {"missing": 2}
    Store(tmp_path).write(runner.run(specs[0], CPU))
    after = planning.overview(specs, tmp_path)
    assert after["counts"] == {"ok": 1, "missing": 1}
    assert [run["key"] for run in after["runs"]] == [spec.key for spec in specs]
    assert "2 cells: 1 missing, 1 ok" in planning.text(after)


def test_a_weights_file_of_another_name_can_be_planned_and_run(
    cells_of: Cells, small_ttm: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_ttm, tmp_path / "renamed"))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    models = [{"name": "ttm", "source": str(folder), "weights": "other.safetensors"}]
    (spec,) = cells_of(models=models)
    assert planning.overview([spec], tmp_path)["counts"] == {"missing": 1}
    assert runner.run(spec, CPU)["status"] == "ok"
    assert spec.key == cells_of()[0].key


@pytest.mark.parametrize("name", models.names())
def test_the_operations_of_every_tiny_model_can_be_counted(name: str) -> None:
    assert planning.window_flops((f"{name}:tiny", None, "model.safetensors"), 96) > 1e5
