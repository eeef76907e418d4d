"""Timer 1.0 against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.models._timer_legacy import POSITIONS

ATOL = 2e-5


def close(golden, name, actual):
    golden.check(name, actual, rtol=0.0, atol=ATOL)


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden):
    gold = golden("timer_legacy")
    model, series = gold.model(), gold.by_channel("input")
    with torch.no_grad():
        tokens = model.next_values(series)
        close(gold, "forecast_all_tokens", tokens.transpose(1, 2))
        close(gold, "loss_ims", F.mse_loss(tokens, gold.by_channel("target")))
        close(gold, "point_forecast", model.forecast(series, 28).transpose(1, 2))

        anomaly = model.next_values(series[..., :-8])
        error = (anomaly - series[..., 8:]).square()
        close(gold, "anom_output", anomaly.transpose(1, 2))
        close(gold, "anom_loss", error.mean())
        # tokens 1 to 4 of the series: error blocks 0 to 3
        score = error.unflatten(2, (-1, 8)).mean((1, 3))[:, :4]
        close(gold, "anom_token_score", score)

        mask = gold.by_channel("imput_mask")
        filled = model.next_values(gold.by_channel("imput_input"), mask)
        close(gold, "imput_output", filled.transpose(1, 2))
        hidden = mask[..., 8:] == 0
        close(gold, "imput_loss", F.mse_loss(filled[..., :-8][hidden], series[..., 8:][hidden]))
    assert gold.compared == set(gold.io) - {"input", "target", "imput_input", "imput_mask"}


def test_the_loss_is_next_token_error_in_the_units_of_the_input(golden):
    gold = golden("timer_legacy")
    model, past = gold.model(), gold.by_channel("input")
    future = 5 * torch.randn(2, 3, 8)
    with torch.no_grad():
        predicted = model.next_values(past).double()
    target = torch.cat([past[..., 8:], future], dim=-1).double()
    expected = (predicted - target).square().mean().item()
    assert model.loss(past, future).item() == pytest.approx(expected, rel=1e-5)


def test_a_part_of_a_token_is_supervised_by_its_first_values(golden):
    gold = golden("timer_legacy")
    model, past, future = gold.model(), gold.by_channel("input"), torch.randn(2, 3, 5)
    with torch.no_grad():
        predicted = model.next_values(past)[..., :-3].double()
    target = torch.cat([past[..., 8:], future], dim=-1).double()
    expected = (predicted - target).square().mean().item()
    assert model.loss(past, future).item() == pytest.approx(expected, rel=1e-5)


def test_full_masks_change_neither_loss_nor_forecast(golden):
    gold = golden("timer_legacy")
    model, past, future = gold.model(), gold.by_channel("input"), torch.randn(2, 3, 12)
    masks = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    torch.testing.assert_close(model.loss(past, future, **masks), model.loss(past, future))
    full = model.forecast(past, 28, past_mask=masks["past_mask"])
    torch.testing.assert_close(full, model.forecast(past, 28))


@pytest.mark.parametrize("num_places", [0, 64])
def test_positions_may_be_absent_or_cut_in_a_checkpoint(golden, tmp_path, num_places):
    gold = golden("timer_legacy")
    shutil.copy(gold.folder / "config.json", tmp_path)
    state = load_file(gold.folder / "model.safetensors")
    if not num_places:
        del state[POSITIONS]
    save_file(state, tmp_path / "model.safetensors")
    model = models.load("timer", tmp_path)
    past = gold.by_channel("input")
    torch.testing.assert_close(model.forecast(past, 8), gold.model().forecast(past, 8))


def test_a_hooked_convolution_is_called_as_a_module_with_the_same_result(golden):
    gold = golden("timer_legacy")
    model, past = gold.model(), gold.by_channel("input")
    expected = model.forecast(past, 8)
    calls = []
    model.decoder.attn_layers[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model.forecast(past, 8), expected)
    assert calls == [1]


def test_the_network_of_the_speed_comparison_has_its_size():
    model = models.create("timer:1.0", e_layers=2, d_model=128, d_ff=256)
    assert (model.lookback, model.horizon) == (672, 96)
    per_layer = 4 * (128 * 128 + 128) + 2 * 128 * 256 + 256 + 128 + 4 * 128
    assert sum(p.numel() for p in model.parameters()) == (
        96 * 128 + 2 * per_layer + 256 + 128 * 96 + 96
    )


def test_the_name_of_the_family_takes_a_folder_of_any_size(golden):
    folder = golden("timer_legacy").folder
    named, plain = models.load("timer:1.0", folder), models.load("timer", folder)
    assert type(named) is type(plain)
    assert (named.config, named.lookback) == (plain.config, plain.lookback)
