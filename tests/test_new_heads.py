"""Runs of a model whose head is made for one horizon: MOMENT's follows the task."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sffbench import models, runner
from sffbench.store import Record
from sffbench.suite import RunSpec

Cells = Callable[..., list[RunSpec]]
CPU = torch.device("cpu")
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 0}


@pytest.fixture
def small_moment(tmp_path: Path) -> str:
    """A checkpoint folder of a small MOMENT whose head forecasts 8 steps."""
    model = models.create("moment:tiny", horizon=8, seq_len=32, patch_len=8, t5_config=T5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    return str(tmp_path)


def record_of(cells_of: Cells, folder: str, strategy: str, horizon: int) -> Record:
    moment = [{"name": "moment", "source": folder}]
    (spec,) = cells_of(models=moment, strategies=[strategy], horizons=[horizon])
    return runner.run(spec, CPU)


@pytest.mark.parametrize("strategy", ["zero-shot", "smoothed-zero-shot"])
def test_there_is_no_zero_shot_of_a_new_head(
    cells_of: Cells, small_moment: str, strategy: str
) -> None:
    record = record_of(cells_of, small_moment, strategy, 12)
    assert (record["status"], record["metrics"]) == ("n/a", {})
    assert "no pretrained forecasting head" in record["reason"]
    assert record["flags"]["head"] == "random"


def test_a_new_head_is_trained_and_the_record_says_that_it_was_random(
    cells_of: Cells, small_moment: str
) -> None:
    record = record_of(cells_of, small_moment, "full", 12)
    assert record["status"] == "ok", record["reason"]
    assert record["flags"]["head"] == "random"
    sizes = {name: p.numel() for name, p in models.load("moment", small_moment).named_parameters()}
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    assert record["cost"]["num_parameters"] == sum(sizes.values()) - head + 12 * (4 * 16 + 1)


def test_the_head_of_the_checkpoint_serves_its_own_horizon(
    cells_of: Cells, small_moment: str
) -> None:
    record = record_of(cells_of, small_moment, "zero-shot", 8)
    assert record["status"] == "ok", record["reason"]
    assert record["flags"]["head"] == "pretrained"
