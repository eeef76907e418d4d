"""UniTS against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._units_layers import DynamicLinear, over_tokens
from sffbench.models.units import imputation_statistics, statistics

GOLDEN = Path(__file__).parents[1] / "golden"
ATOL = 3e-5  # the README's tolerance
STAGES = {
    "fc_backbone_in": "blocks.0:in",
    "fc_block0_out": "blocks.0",
    "fc_seqatt0_out": "blocks.0.seq_att_block",
    "fc_varatt0_out": "blocks.0.var_att_block",
    "fc_backbone_out": "blocks.1",
    "tokens": "patch_embeddings.value_embedding",
}


def close(golden, name, actual):
    golden.check(name, actual, rtol=0.0, atol=ATOL)


def by_time(values):
    return values.transpose(1, 2)


def tasks_of_the_golden_folders(gold, model):
    """Forecast, imputation and anomaly detection: outputs, losses, statistics, a gradient."""
    past, future = gold.by_channel("input"), gold.by_channel("target")
    mean, std = statistics(past)
    close(gold, "mean", by_time(mean))
    close(gold, "std", by_time(std))
    close(gold, "point_forecast", by_time(model.forecast(past, 18)))
    with torch.no_grad():
        rebuilt = model.reconstruct(past)
        filled = model.impute(gold.by_channel("imput_input"), gold.by_channel("mask"))
    close(gold, "anom_output", by_time(rebuilt))
    close(gold, "loss_anom", F.mse_loss(rebuilt, past))
    close(gold, "imput_output", by_time(filled))
    hidden = gold.by_channel("mask") == 0
    close(gold, "loss_imput", F.mse_loss(filled[hidden], gold.by_channel("imput_target")[hidden]))
    loss = model.loss(past, future)
    close(gold, "loss_forecast", loss)
    loss.backward()
    close(gold, "grad_patch", model.patch_embeddings["value_embedding"].weight.grad)


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden, stages):
    gold = golden("units")
    model, past = gold.model(), gold.by_channel("input")
    tasks_of_the_golden_folders(gold, model)
    seen = stages(model, lambda: model.forecast(past, 18))
    for name, module in STAGES.items():
        close(gold, name, seen[module])
    linear, given = model.prompt2forecat, gold.io["dl_in"]
    with torch.no_grad():
        close(gold, "dl_out21", linear(given, 21))
        close(gold, "dl_out128", linear(gold.io["dl_in128"], 128))
    inputs = {"input", "target", "mask", "imput_input", "imput_target", "dl_in", "dl_in128"}
    assert gold.compared == set(gold.io) - inputs


def test_the_shared_prompt_variant_is_reproduced_and_recognised_by_its_keys(golden, stages):
    gold = golden("units_zeroshot")
    model = gold.model()
    assert model.shared
    tasks_of_the_golden_folders(gold, model)
    seen = stages(model, lambda: model.forecast(gold.by_channel("input"), 18))
    close(gold, "tokens", seen[STAGES["tokens"]])
    inputs = {"input", "target", "mask", "imput_input", "imput_target"}
    assert gold.compared == set(gold.io) - inputs


@torch.no_grad()
def test_the_pretraining_objective_is_reproduced(golden):
    gold = golden("units_pretrain")
    values, missing = gold.by_channel("input"), gold.io["token_mask"]
    by_class, by_tokens = gold.model().rebuild(values, missing)
    losses = F.mse_loss(by_class, values), F.mse_loss(by_tokens, values)
    close(gold, "cls_dec_out", by_time(by_class))
    close(gold, "mask_dec_out", by_time(by_tokens))
    close(gold, "cls_loss", losses[0])
    close(gold, "mask_loss", losses[1])
    close(gold, "loss", sum(losses))
    close(gold, "mask_seq", missing.repeat_interleave(4, dim=1)[:, :30])
    assert gold.compared == set(gold.io) - {"input", "token_mask"}


def test_a_resizable_map_is_bilinear_at_half_pixel_centres_in_float64():
    torch.manual_seed(0)
    linear = DynamicLinear(7, 5, fixed=2).double()
    nn.init.normal_(linear.weights), nn.init.normal_(linear.bias)

    def line(values, length):  # one dimension, by hand
        place = (torch.arange(length, dtype=torch.float64) + 0.5) * len(values) / length - 0.5
        place = place.clamp(0, len(values) - 1)
        low = place.floor().long()
        high = (low + 1).clamp_max(len(values) - 1)
        share = (place - low).view(-1, *[1] * (values.ndim - 1))
        return values[low] * (1 - share) + values[high] * share

    weights = linear.weights.detach()
    fixed = line(weights[:, :2], 9)
    moving = line(line(weights[:, 2:], 9).T, 4).T
    values = torch.randn(3, 6, dtype=torch.float64)
    expected = values @ torch.cat([fixed, moving], 1).T + line(linear.bias.detach(), 9)
    torch.testing.assert_close(linear(values, 9).detach(), expected)
    along = over_tokens(linear, values.T[None], 9).detach()
    torch.testing.assert_close(along, expected.T[None])


@pytest.mark.parametrize(("num_values", "horizon"), [(30, 1), (30, 2), (30, 3), (32, 5), (30, 22)])
def test_a_horizon_is_rounded_up_to_whole_patches_and_cut(golden, num_values, horizon):
    gold = golden("units")
    model, past = gold.model(), gold.by_channel("input")[..., :num_values]
    if num_values > 30:
        past = gold.by_channel("imput_target")
    whole = horizon + -(num_values + horizon) % 4
    forecast = model.forecast(past, horizon)
    assert forecast.shape == (2, 3, horizon)
    assert torch.equal(forecast, model.forecast(past, whole)[..., :horizon])
    assert not torch.isclose(forecast[..., -1:], past.mean(-1, keepdim=True), rtol=1e-6).any()


def test_imputation_of_part_of_a_patch_sees_no_hidden_value(golden):
    gold = golden("units")
    model, values = gold.model(), gold.by_channel("input").contiguous()
    mask = torch.ones_like(values)
    mask[:, 1, 5:7] = 0
    with torch.no_grad():
        filled = model.impute(values, mask)
        spoilt = model.impute(values.masked_fill(mask == 0, 1e6), mask)
    assert filled.shape == values.shape
    assert torch.equal(filled, spoilt)


def test_imputation_takes_the_mean_of_all_values_and_the_spread_of_the_observed():
    values, mask = torch.randn(2, 3, 20), (torch.rand(2, 3, 20) > 0.4).float()
    mean, std = imputation_statistics(values * mask, mask)
    zeroed = (values * mask).double()
    expected = zeroed.mean(-1)
    torch.testing.assert_close(mean[..., 0].double(), expected, rtol=1e-5, atol=1e-6)
    for row in range(2):
        for channel in range(3):
            seen = zeroed[row, channel][mask[row, channel] == 1] - expected[row, channel]
            spread = (seen.square().mean() + 1e-5).sqrt().item()
            assert std[row, channel, 0].item() == pytest.approx(spread, rel=1e-5)


def test_full_masks_change_neither_loss_nor_forecast(golden):
    gold = golden("units")
    model, past, future = gold.model(), gold.by_channel("input"), gold.by_channel("target")
    ones = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    torch.testing.assert_close(model.loss(past, future, **ones), model.loss(past, future))
    torch.testing.assert_close(
        model.forecast(past, 18, past_mask=ones["past_mask"]), model.forecast(past, 18)
    )


def test_values_behind_the_masks_do_not_matter_even_nan(golden):
    gold = golden("units")
    model, past, future = gold.model(), gold.by_channel("input"), gold.by_channel("target")
    mask, wanted = torch.ones_like(past), torch.ones_like(future)
    mask[..., 3:9], wanted[..., 10:] = 0, 0
    holes = past.masked_fill(mask == 0, float("nan"))
    expected = model.forecast(past, 18, past_mask=mask)
    assert torch.equal(model.forecast(holes, 18, past_mask=mask), expected)
    spoilt = future.masked_fill(wanted == 0, 1e6)
    masks = {"past_mask": mask, "future_mask": wanted}
    assert torch.equal(model.loss(past, spoilt, **masks), model.loss(past, future, **masks))


def test_a_context_beyond_the_positions_is_cut_on_the_left_and_a_horizon_beyond_refused(golden):
    gold = golden("units")
    model, past = gold.model(), torch.randn(2, 3, 64 * 4 + 7)
    assert torch.equal(model.forecast(past, 16), model.forecast(past[..., -60 * 4 :], 16))
    with pytest.raises(InputError, match="65 tokens of 4 values are more than the 64 positions"):
        model.forecast(past, 64 * 4)
    with pytest.raises(InputError, match="66 tokens"):
        model.reconstruct(past)


def test_all_parameters_of_the_forecast_are_trained_and_the_idle_ones_are_those_named():
    model = models.create("units:tiny", seed=0)
    model.train().loss(torch.randn(2, 2, 512), torch.randn(2, 2, 96)).backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    named = {f"blocks.{i}.{part}_att_block.proj" for i in range(3) for part in ("seq", "var")}
    assert {name for name in idle if not name.startswith("cls_head.")} == {
        f"{name}.{kind}" for name in named for kind in ("weight", "bias")
    }
    used = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in used)


def test_bfloat16_autocast_stays_near_float32(golden):
    gold = golden("units")
    model, past = gold.model(), gold.by_channel("input")
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 18)
    _, scale = statistics(past)
    error = (rough - model.forecast(past, 18)) / scale
    assert rough.isfinite().all()
    assert error.abs().max() < 0.1


def test_windows_are_independent_and_variables_are_not(golden):
    gold = golden("units")
    model, past = gold.model(), gold.by_channel("input")
    whole = model.forecast(past, 18)
    torch.testing.assert_close(whole[1:], model.forecast(past[1:], 18), rtol=1e-5, atol=1e-5)
    moved = past.clone()
    moved[:, 0] = moved[:, 0].flip(-1)
    assert not torch.allclose(model.forecast(moved, 18)[:, 1:], whole[:, 1:], atol=1e-3)


def test_a_config_of_another_model_and_bad_windows_are_one_line_each(golden):
    with pytest.raises(InputError, match=r"units: config\.json lacks prompt_num"):
        models.load("units", GOLDEN / "ttm")
    model = golden("units").model()
    for past, horizon, message in (
        (torch.randn(3, 30), 18, "rank 3"),
        (torch.full((1, 3, 30), float("nan")), 18, "NaN or infinite"),
        (torch.randn(1, 3, 30), 0, "horizon must be an integer >= 1"),
        (torch.randn(1, 3, 0), 4, "past is empty"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            model.forecast(past, horizon)
        assert "\n" not in str(caught.value)
