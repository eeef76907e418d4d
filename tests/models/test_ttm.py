"""TTM against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sffbench import models
from sffbench.models.blocks import location_scale
from sffbench.models.ttm import TTM

LEVEL = "backbone.encoder.mlp_mixer_encoder.mixers.{}.mixer_layers.{}"
# Which module's input or output each recorded stage is; reshapes change the view, not the values.
STAGES = {
    **dict.fromkeys((0, 1), LEVEL.format(0, 0) + ":in"),  # patches, after the token of a frequency
    **{2 + layer: LEVEL.format(0, layer) for layer in (0, 1)},
    **dict.fromkeys((4, 5, 6), LEVEL.format(0, 1)),
    **{7 + layer: LEVEL.format(1, layer) for layer in (0, 1)},
    **dict.fromkeys((9, 10, 11), LEVEL.format(1, 1)),
    **{12 + layer: LEVEL.format(2, layer) for layer in (0, 1)},
    14: LEVEL.format(2, 1),
    15: "decoder.adapter",
    16: "decoder.decoder_block.mixers.0",
    17: "decoder.decoder_block.mixers.1",
}
FOLDERS = ["ttm", "ttm-mix", "ttm-freq"]


def close(golden, name, actual):
    """The README's tolerance: rtol 1e-4, atol 1e-5 times the largest expected magnitude."""
    golden.check(name, actual, rtol=1e-4, atol=1e-5 * golden.io[name].abs().max().item())


def load(gold):
    """The folder's model, with the frequencies of the recorded windows."""
    tokens = {"freq_token": gold.io["in/freq_token"]} if "in/freq_token" in gold.io else {}
    return models.load("ttm", gold.folder, **tokens)


def forecast(model, gold, past, **options):
    """The recorded call, [B, H, channels that are forecast], H as recorded."""
    future = {"future": gold.by_channel("in/future_values")} if model.known else {}
    horizon = gold.io["forward/prediction"].shape[1]
    return model.forecast(past, horizon, **future, **options).transpose(1, 2)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden, stages, folder):
    gold = golden(folder)
    model, past, future = (
        load(gold),
        gold.by_channel("in/past_values"),
        gold.by_channel("in/future_values"),
    )
    seen = stages(model, lambda: close(gold, "forward/prediction", forecast(model, gold, past)))
    for number, module in STAGES.items():
        close(gold, f"forward/hidden{number:02d}", seen[module])
    close(gold, "forward/patch_input", seen["backbone.encoder.patcher:in"])
    close(gold, "forward/backbone_hidden", seen["backbone.encoder"])
    close(gold, "forward/decoder_hidden", seen["decoder"])
    mask, future_mask = (
        gold.by_channel("in/past_observed_mask"),
        gold.by_channel("in/future_observed_mask"),
    )
    picked = slice(None) if model.num_channels is None else model.targets
    for group, observed in (("forward", torch.ones_like(mask)), ("masked", mask)):
        values, seen_there = (past * observed)[:, picked], observed[:, picked]
        loc, scale = location_scale(values.flatten(0, 1), seen_there.flatten(0, 1))
        close(gold, f"{group}/loc", loc)
        close(gold, f"{group}/scale", scale)
    if folder == "ttm":
        close(gold, "recursive/prediction_36", model.forecast(past, 36).transpose(1, 2))
    close(gold, "masked/prediction", forecast(model, gold, past, past_mask=mask))
    masked_loss = model.loss(past, future, past_mask=mask, future_mask=future_mask)
    close(gold, "masked/loss_future_mask", masked_loss)
    close(gold, "train/loss", model.loss(past, future))
    assert gold.compared == {name for name in gold.io if not name.startswith("in/")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_gradient_of_the_golden_folder_is_reproduced(golden, folder):
    gold = golden(folder)
    model = load(gold)
    model.loss(gold.by_channel("in/past_values"), gold.by_channel("in/future_values")).backward()
    expected = load_file(gold.folder / "grads.safetensors")
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=atol)


def test_values_hidden_behind_the_mask_do_not_matter_even_nan(golden):
    gold = golden("ttm")
    model, past = gold.model(), gold.by_channel("in/past_values")
    mask = gold.by_channel("in/past_observed_mask")
    holes = past.masked_fill(mask == 0, float("nan"))
    expected = model.forecast(past, 12, past_mask=mask)
    assert torch.equal(model.forecast(holes, 12, past_mask=mask), expected)


def test_a_shorter_context_is_padded_with_zeros_and_a_longer_one_cut_on_the_left(golden):
    gold = golden("ttm")
    model, past = gold.model(), gold.by_channel("in/past_values")
    padded = torch.cat([torch.zeros(3, 3, 12), past[..., 12:]], dim=-1)
    assert torch.equal(model.forecast(past[..., 12:], 12), model.forecast(padded, 12))
    longer = torch.cat([torch.randn(3, 3, 5), past], dim=-1)
    assert torch.equal(model.forecast(longer, 12), model.forecast(past, 12))


def test_a_shorter_horizon_is_the_beginning_of_the_native_one(golden):
    gold = golden("ttm")
    model, past = gold.model(), gold.by_channel("in/past_values")
    assert torch.equal(model.forecast(past, 5), model.forecast(past, 12)[..., :5])
    assert models.load("ttm", gold.folder, horizon=5).horizon == 5


def test_scaling_the_input_scales_the_forecast():
    model, past = models.create("ttm:tiny", seed=1), torch.randn(4, 2, 512)
    scaled = model.forecast(1000 * past - 7, 96)
    torch.testing.assert_close(scaled, 1000 * model.forecast(past, 96) - 7, rtol=1e-3, atol=1e-1)


def test_the_loss_of_a_long_future_is_that_of_the_recursive_forecast(golden):
    gold = golden("ttm")
    model, past, future = gold.model(), gold.by_channel("in/past_values"), torch.randn(3, 3, 30)
    expected = (model.forecast(past, 30).double() - future.double()).square().mean()
    assert model.loss(past, future).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {"adaptive_patching_levels": 0, "num_layers": 3},
        {"d_model": 48, "decoder_d_model": 48},
        {"context_length": 64, "patch_length": 64},
        {"d_model": 16},  # the finest level would leave 4 features and is kept at the plain one
    ],
)
def test_other_shapes_of_the_network_forecast_and_train(shape):
    model = models.create("ttm:tiny", **shape)
    past, future = torch.randn(2, 3, model.lookback), torch.randn(2, 3, 96)
    assert model.forecast(past, 96).shape == (2, 3, 96)
    model.loss(past, future).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_and_head_dropout_are_options_of_load(golden):
    model = models.load("ttm", golden("ttm").folder, dropout=0.0, head_dropout=0.7)
    assert isinstance(model, TTM)
    assert model.head_dropout.p == 0.7
    assert {layer.p for name, layer in model.backbone.named_modules() if "dropout" in name} == {0.0}


def test_the_released_r2_checkpoint_has_its_published_size(checkpoints):
    model = models.load("ttm:r2-512-96", checkpoints / "ttm-r2-512-96")
    assert sum(p.numel() for p in model.parameters()) == 805_280
    assert (model.lookback, model.horizon) == (512, 96)
