"""Pretraining: reproducible, loadable, and it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import checkpoint
from sffbench.pretrain import pretrain, run

SMALL = {"steps": 6, "batch": 8, "num_series": 4, "lr": 1e-3}
TINY = [f"{name}:tiny" for name in models.names()]
PACKAGED = [name for name in TINY if (checkpoint.PACKAGED / name.replace(":", "-")).is_dir()]


@pytest.mark.parametrize("name", TINY)
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_stream_alone(name, tmp_path):
    for leaf, state in (("a", 1), ("b", 2)):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        pretrain(name, tmp_path / leaf, seed=5, **SMALL)
        assert torch.equal(torch.get_rng_state(), before)
    for file in ("model.safetensors", "config.json", "card.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", TINY)
def test_the_folder_loads_as_its_preset_and_progress_counts_the_steps(name, tmp_path):
    steps = []
    card = pretrain(name, tmp_path, progress=lambda step, loss: steps.append(step), **SMALL)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "card.json").read_text()) == card
    model = models.load(name, tmp_path)
    assert model.forecast(torch.randn(1, 1, model.lookback), 96).isfinite().all()


def test_a_count_below_one_is_refused(tmp_path):
    with pytest.raises(InputError, match="steps must be >= 1, given 0"):
        pretrain("ttm:tiny", tmp_path, steps=0)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_tiny_weights_beat_last_value_and_fresh_ones_on_unseen_synthetic_series(name):
    from sffbench.data.synthetic import kernel_synth

    model, fresh = models.load(name), models.create(name)
    series = torch.from_numpy(kernel_synth(300, model.lookback + 96, seed=12345))[:, None]
    past, future = series[..., :-96], series[..., -96:]

    def error(forecast: torch.Tensor) -> float:
        return (forecast - future).double().square().mean().item()

    ours = error(model.forecast(past, 96))
    assert ours < 0.8 * error(past[..., -1:].expand_as(future))
    assert ours < 0.8 * error(fresh.forecast(past, 96))


def test_a_preset_that_is_not_packaged_needs_a_folder():
    with pytest.raises(InputError, match="name a folder"):
        run("timer:base-84m")


def test_run_writes_the_folder_it_returns(tmp_path, monkeypatch):
    monkeypatch.setattr("sffbench.pretrain.STEPS", 2)
    monkeypatch.setattr("sffbench.models.checkpoint.PACKAGED", tmp_path)
    monkeypatch.setattr("sffbench.data.synthetic.kernel_synth", few_series)
    folder = run("ttm:tiny", seed=3)
    assert folder == tmp_path / "ttm-tiny"
    assert json.loads((folder / "card.json").read_text())["steps"] == 2


def test_run_repeats_the_packaged_card_except_for_what_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("sffbench.models.checkpoint.PACKAGED", tmp_path)
    monkeypatch.setattr("sffbench.data.synthetic.kernel_synth", few_series)
    first = pretrain("ttm:tiny", tmp_path / "ttm-tiny", seed=3, **SMALL)
    weights = (tmp_path / "ttm-tiny" / "model.safetensors").read_bytes()
    again = run("ttm:tiny", tmp_path / "again")
    assert json.loads((again / "card.json").read_text()) == first
    assert (again / "model.safetensors").read_bytes() == weights
    card = json.loads((run("ttm:tiny", tmp_path / "other", steps=2) / "card.json").read_text())
    assert card == first | {"steps": 2, "train_loss": card["train_loss"]}


def few_series(num_series: int, length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, length)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_tiny_weights_beat_last_value_on_most_real_sets(name, real_data):
    from sffbench import data
    from sffbench.data.windows import split

    model, wins = models.load(name), []
    sets = ["ETTh1", "ETTh2", "ETTm1", "ETTm2", "Weather", "Exchange"]
    for dataset in sets:
        windows = split(data.load(dataset, real_data), "test", model.lookback, 96)
        past, future = windows.batch(torch.arange(0, len(windows), len(windows) // 1500))
        error = (model.forecast(past, 96) - future).square().mean()
        wins.append(bool(error < (past[..., -1:] - future).square().mean()))
    assert sum(wins) >= 5, dict(zip(sets, wins, strict=True))  # Exchange is close to a random walk
