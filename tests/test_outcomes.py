"""How a run can end: n/a, failed with a typed reason, or refused because its inputs changed."""

import copy
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sffbench import models, runner, strategies
from sffbench.models.base import LTSM
from sffbench.store import Record
from sffbench.strategies import Strategy
from sffbench.suite import RunSpec

Cells = Callable[..., list[RunSpec]]
CPU = torch.device("cpu")


def run(spec: RunSpec) -> Record:
    record = runner.run(spec, CPU)
    assert record["status"] == "ok", record["reason"]
    return record


def _register(name: str, cls: type[Strategy]) -> None:
    from sffbench.strategies.base import register

    cls.name = name
    register(cls)


def _outcome(cells_of: Cells, name: str) -> Record:
    (spec,) = cells_of(strategies=[name])
    record = runner.run(spec, CPU)
    json.dumps(record, allow_nan=False)
    return record


def test_a_model_without_a_forecasting_head_is_na_untrained_and_ok_trained(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.get("ttm"), "capabilities", frozenset({"forecast"}))
    for name in ("zero-shot", "smoothed-zero-shot"):
        record = _outcome(cells_of, name)
        assert record["status"] == "n/a"
        assert "no pretrained forecasting head" in record["reason"]
        assert record["metrics"] == {}
    assert _outcome(cells_of, "full")["status"] == "ok"


def test_a_model_that_does_not_forecast_is_na(
    cells_of: Cells, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.get("ttm"), "capabilities", frozenset({"imputation"}))
    assert _outcome(cells_of, "full")["status"] == "n/a"


class _Raises(Strategy):
    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        raise KeyError("whoops")


class _OutOfMemory(Strategy):
    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        raise torch.OutOfMemoryError("CUDA out of memory")


class _Nan(Strategy):
    trains: ClassVar[bool] = False

    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        with torch.no_grad():
            list(model.parameters())[-1].fill_(math.nan)
        return model


class _NanLoss(Strategy):
    def step(self, model: LTSM, batch: Any, ctx: Any) -> Any:
        return math.nan


class _NanOnTest(Strategy):
    def finish(self, model: LTSM, ctx: Any) -> LTSM:
        with torch.no_grad():
            list(model.parameters())[-1].fill_(math.inf)
        return model


@pytest.mark.usefixtures("forget_strategies")
@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (_Raises, "KeyError: 'whoops'"),
        (_OutOfMemory, "out of memory"),
        (_Nan, "diverged"),
        (_NanLoss, "diverged: .*nan"),
        (_NanOnTest, "diverged: test error is"),
    ],
)
def test_what_goes_wrong_is_a_failed_record_with_a_typed_reason(
    cells_of: Cells, cls: type[Strategy], reason: str
) -> None:
    _register("broken", cls)
    record = _outcome(cells_of, "broken")
    assert record["status"] == "failed"
    assert record["metrics"] == {}
    assert re.search(reason, record["reason"])


@pytest.mark.usefixtures("forget_strategies")
def test_an_interrupt_is_not_swallowed(cells_of: Cells) -> None:
    class Interrupted(Strategy):
        def prepare(self, model: LTSM, ctx: Any) -> LTSM:
            raise KeyboardInterrupt

    _register("interrupted", Interrupted)
    (spec,) = cells_of(strategies=["interrupted"])
    with pytest.raises(KeyboardInterrupt):
        runner.run(spec, CPU)


def test_a_horizon_too_long_for_the_data_is_a_failed_record(cells_of: Cells) -> None:
    (spec,) = cells_of(horizons=[401])
    record = runner.run(spec, CPU)
    assert record["status"] == "failed"
    assert "holds no window" in record["reason"]


def test_a_horizon_beyond_the_native_one_is_flagged_only_where_a_card_says_so(
    cells_of: Cells,
) -> None:
    record = run(cells_of(horizons=[20], strategies=["zero-shot"])[0])
    assert record["flags"]["unrolled"] is False  # a custom folder has no card
    assert record["metrics"]["num_starts"] == 400 - 20 + 1


def _copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.parametrize("part", ["weights", "config"])
def test_weights_or_config_edited_after_planning_are_refused(
    cells_of: Cells, small_ttm: Path, tmp_path: Path, part: str
) -> None:
    folder = _copied(small_ttm, tmp_path / "edited")
    (spec,) = cells_of(models=[{"name": "ttm", "source": str(folder)}])
    if part == "weights":
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        next(iter(state.values())).flatten()[0].add_(1.0)
        save_file(state, folder / "model.safetensors")
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dropout": 0.9}))
    record = runner.run(spec, CPU)
    assert record["status"] == "failed"
    assert f"the model's {part} changed since the run was planned" in record["reason"]


def test_data_that_changed_after_planning_is_refused(cells_of: Cells) -> None:
    (spec,) = cells_of()
    cell = copy.deepcopy(spec.cell)
    cell["data"]["sha256"] = "0" * 64
    record = runner.run(RunSpec(cell, "full", spec.model_source), CPU)
    assert record["status"] == "failed"
    assert "data set's file changed" in record["reason"]


@pytest.mark.usefixtures("forget_strategies")
def test_a_plugin_edited_after_planning_is_refused(cells_of: Cells, tmp_path: Path) -> None:
    """A record under the old key must come from the old code."""
    path = tmp_path / "mine.py"
    text = (
        "from typing import ClassVar\n"
        "from sffbench.strategies import Strategy\n\n\n"
        "class Mine(Strategy):\n    name: ClassVar[str] = 'mine'\n"
    )
    path.write_text(text)
    (spec,) = cells_of(plugins=(str(path),), strategies=["mine"])
    assert run(spec)["cell"]["strategy"]["plugin"] is not None
    strategies._LOADED.clear()  # a worker begins here, and reads the edited file
    del strategies.base.registry()["mine"]
    path.write_text(text + "    extra: float = 1.0\n")
    record = runner.run(spec, CPU)
    assert record["status"] == "failed"
    assert "'mine' changed since the run was planned" in record["reason"]


def test_a_written_off_run_has_the_layout_of_any_other(cells_of: Cells) -> None:
    (spec,) = cells_of()
    record = runner.failed(spec, CPU, "its process died")
    assert record.keys() == run(spec).keys()
    assert (record["status"], record["reason"]) == ("failed", "its process died")
