"""MOMENT against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models.moment import HEAD, POSITIONS, WORDS, hidden_patches, statistics


def close(golden, name, actual):
    """The README's tolerance: rtol 1e-4, atol 1e-5 times the largest expected magnitude."""
    atol = 1e-5 * golden.io[name].abs().max().item()
    golden.check(name, actual.to(golden.io[name].dtype), rtol=1e-4, atol=atol)


@pytest.fixture
def gold(golden):
    return golden("moment")


@pytest.fixture
def model(gold):
    return models.load("moment", gold.folder)


@pytest.fixture
def forecaster(gold):
    return models.load("moment", gold.folder, weights="model_forecasting.safetensors")


@pytest.fixture
def given(gold):
    """Values, what is kept, what was observed: all [B, C, L], two channels share their masks."""
    values = gold.io["in/x_enc"]
    return values, *(gold.io[f"in/{name}"][:, None].expand_as(values).contiguous()
                     for name in ("mask", "input_mask"))  # fmt: skip


@torch.no_grad()
def test_every_documented_tensor_of_the_golden_folder_is_reproduced(
    gold, model, forecaster, given, stages
):
    values, kept, seen = given
    mean, std = statistics(values.flatten(0, 1), (kept * seen).flatten(0, 1))
    close(gold, "recon/revin_mean", mean)
    close(gold, "recon/revin_std", std)
    run = stages(
        model, lambda: close(gold, "recon/reconstruction", model.reconstruct(values, kept, seen))
    )
    close(gold, "recon/patch_embedding", run["patch_embedding"])
    close(gold, "recon/encoder_hidden", run["encoder"])
    close(gold, "recon/attention_mask", model._whole(seen.flatten(0, 1)))
    close(gold, "train/recon_masked_mse", model.masked_loss(values, kept, seen))

    shown = model.reconstruct(values, None, seen)
    close(gold, "reconstruct_nomask/reconstruction", shown)
    close(gold, "anomaly/scores_mse", (values - shown).square())
    close(gold, "short_forecast/h13", model.forecast(gold.io["in/x_full"], 13))
    drawn = hidden_patches(3, 8, 0.3, torch.Generator().manual_seed(11))
    close(gold, "mask/generated_ratio0.3_seed11", drawn.repeat_interleave(8, 1))

    close(gold, "forecast/forecast", forecaster.forecast(values, 12, past_mask=seen))
    target = gold.io["forecast/target"]
    close(gold, "forecast/loss_mse", forecaster.loss(values, target, past_mask=seen))
    pooled(gold, model, values.flatten(0, 1), seen.flatten(0, 1))
    inputs = {name for name in gold.io if name.startswith("in/")} | {"forecast/target"}
    assert gold.compared == set(gold.io) - inputs


def pooled(gold, model, series, seen):
    """Embedding and classification, which no task here asks for: `hidden` still gives them."""
    mean, std = statistics(series, seen)
    hidden = model.hidden((series - mean) / std, seen, kept=seen)
    close(gold, "embed/none", hidden)
    whole = model._whole(seen)[:, :, None]
    over_patches = (hidden * whole).sum(1) / whole.sum(1)
    close(gold, "embed/mean", over_patches.view(3, 2, -1).mean(1))
    by_channel = hidden.mean(1).view(3, 2, -1)
    for name, features in (("mean", by_channel.mean(1)), ("concat", by_channel.mT.flatten(1))):
        head = load_file(gold.folder / f"model_classification_{name}.safetensors")
        close(gold, f"classify/{name}_logits", F.linear(features, *(head[key] for key in HEAD)))


@pytest.mark.parametrize("task", ["reconstruction", "forecasting"])
def test_every_gradient_of_the_golden_folder_is_reproduced(gold, model, forecaster, given, task):
    values, kept, seen = given
    if task == "forecasting":
        model, file = forecaster, "grads_forecasting.safetensors"
        model.loss(values, gold.io["forecast/target"], past_mask=seen).backward()
    else:
        file = "grads.safetensors"
        model.masked_loss(values, kept, seen).backward()
    expected = load_file(gold.folder / file)
    named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert named.keys() == expected.keys()
    for name, gradient in named.items():
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=atol)


def test_a_state_dict_survives_loading(gold):
    for file in ("model.safetensors", "model_forecasting.safetensors"):
        original = load_file(gold.folder / file)
        state = models.load("moment", gold.folder, weights=file).state_dict()
        assert state.keys() == original.keys()
        assert all(torch.equal(state[key], original[key]) for key in original)


def test_a_horizon_gives_a_new_head_without_zero_shot_and_keeps_the_trunk(gold, model):
    new = models.load("moment", gold.folder, horizon=24)
    assert new.new_head
    assert new.capabilities == {"forecast"}
    assert new.head.linear.weight.shape == (24, 64)
    assert new.config["forecast_horizon"] == 24
    again = models.load("moment", gold.folder, horizon=24).state_dict()
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, again[name])
        if name not in HEAD:
            assert torch.equal(tensor, model.state_dict()[name])
    bound = 64**-0.5
    assert bound * 0.95 < new.head.linear.weight.abs().max().item() <= bound


def test_a_trained_head_is_kept_for_its_own_horizon_and_replaced_for_another(gold, forecaster):
    file = {"weights": "model_forecasting.safetensors"}
    own = models.load("moment", gold.folder, horizon=12, **file)
    assert not own.new_head
    assert not forecaster.new_head
    assert "zero-shot" in own.capabilities
    assert own.horizon == forecaster.horizon == 12
    assert torch.equal(own.head.linear.weight, forecaster.head.linear.weight)
    assert models.load("moment", gold.folder, horizon=13, **file).new_head


def test_what_a_checkpoint_holds_is_what_the_model_can_do(model, forecaster):
    assert model.capabilities == {"forecast", "zero-shot", "imputation", "anomaly"}
    assert forecaster.capabilities == {"forecast", "zero-shot"}
    with pytest.raises(InputError, match="this moment has a forecasting head"):
        forecaster.reconstruct(torch.randn(1, 1, 64))
    with pytest.raises(InputError, match="reconstructs 64 values, given 60"):
        model.reconstruct(torch.randn(1, 1, 60))


@pytest.mark.parametrize("horizon", [5, 12, 30])
def test_a_horizon_beyond_the_head_feeds_the_forecast_back(forecaster, horizon):
    past = torch.randn(2, 3, 64)
    first = forecaster.forecast(past, 12)
    assert torch.equal(forecaster.forecast(past, 5), first[..., :5])
    second = forecaster.forecast(torch.cat([past, first], -1)[..., -64:], 12)
    third = forecaster.forecast(torch.cat([past, first, second], -1)[..., -64:], 12)
    whole = torch.cat([first, second, third], -1)[..., :horizon]
    torch.testing.assert_close(forecaster.forecast(past, horizon), whole)


def test_a_longer_context_is_cut_and_a_shorter_one_padded_with_unobserved_zeros(model, forecaster):
    past = torch.randn(2, 3, 64)
    for each in (model, forecaster):
        longer = torch.cat([torch.randn(2, 3, 5), past], -1)
        assert torch.equal(each.forecast(longer, 12), each.forecast(past, 12))
        padded, mask = F.pad(past[..., 20:], (20, 0)), F.pad(torch.ones(2, 3, 44), (20, 0))
        short = each.forecast(past[..., 20:], 12)
        assert torch.equal(short, each.forecast(padded, 12, past_mask=mask))
        with pytest.raises(InputError, match="at least one patch, 8 values, given 7"):
            each.forecast(past[..., :7], 12)


def test_masked_values_do_not_matter_even_nan_and_full_masks_change_nothing(forecaster, given):
    past, _, seen = given
    holes = past.masked_fill(seen == 0, float("nan"))
    expected = forecaster.forecast(past, 12, past_mask=seen)
    torch.testing.assert_close(forecaster.forecast(holes, 12, past_mask=seen), expected)
    ones, future = torch.ones_like(past), torch.randn(3, 2, 12)
    torch.testing.assert_close(
        forecaster.loss(past, future, past_mask=ones, future_mask=torch.ones_like(future)),
        forecaster.loss(past, future),
    )
    assert forecaster.forecast(past, 12, past_mask=torch.zeros_like(past)).isfinite().all()


def test_masked_future_values_carry_no_loss(forecaster):
    past, future, mask = torch.randn(3, 1, 64), torch.randn(3, 1, 12), torch.ones(3, 1, 12)
    mask[..., 5:] = 0
    spoilt = future.masked_fill(mask == 0, float("nan"))
    expected = (forecaster.forecast(past, 12) - future)[..., :5].double().square().mean()
    loss = forecaster.loss(past, spoilt, future_mask=mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_reconstruction_learns_from_its_zero_shot_forecast(model):
    past, future = torch.randn(3, 2, 64), torch.randn(3, 2, 13)
    expected = (model.forecast(past, 13) - future).double().square().mean().item()
    loss = model.loss(past, future)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert model.patch_embedding.mask_embedding.grad.abs().max() > 0


def test_hidden_values_are_not_read(model):
    values, mask = torch.randn(2, 1, 64), torch.ones(2, 1, 64)
    mask[..., 16:32] = 0
    spoilt = values.masked_fill(mask == 0, 1e3)
    torch.testing.assert_close(model.reconstruct(values, mask), model.reconstruct(spoilt, mask))


@pytest.mark.parametrize("network", ["tiny", "golden"])
def test_a_forecast_in_bfloat16_autocast_stays_near_float32(model, network):
    model = models.create("moment:tiny", seed=0) if network == "tiny" else model
    past = torch.randn(4, 2, model.window)
    exact = model.forecast(past, 12)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 12)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("num_places", [None, 8, 100])
def test_positions_and_unused_words_may_be_absent_or_fewer_in_a_checkpoint(
    gold, model, tmp_path, num_places
):
    state = load_file(gold.folder / "model.safetensors")
    del state[WORDS]
    positions = state.pop(POSITIONS)
    if num_places:
        state[POSITIONS] = positions[:, :num_places].contiguous()
    (tmp_path / "config.json").write_text((gold.folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    loaded, past = models.load("moment", tmp_path), torch.randn(2, 1, 64)
    torch.testing.assert_close(loaded.forecast(past, 13), model.forecast(past, 13))
    assert WORDS not in loaded.state_dict()


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_a_preset_has_the_keys_and_shapes_of_the_published_checkpoint(gold, size):
    entry = json.loads((gold.folder / "published_shapes.json").read_text())
    entry = entry[f"AutonLab/MOMENT-1-{size}"]
    preset = models.preset(f"moment:{size}")
    with torch.device("meta"):
        model = models.get("moment")(
            preset.config, lookback=preset.lookback, horizon=preset.horizon
        )
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == entry["shapes"]
    assert sum(p.numel() for p in model.parameters()) == preset.num_parameters == entry["params"]
    assert sum(t.numel() for t in model.state_dict().values()) == entry["state_dict_elements"]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [WORDS]


@pytest.mark.parametrize("task", ["reconstruction", "forecasting"])
def test_other_shapes_of_the_network_forecast_and_train(task):
    t5 = {"d_model": 20, "d_ff": 12, "d_kv": 7, "num_heads": 3, "num_layers": 1, "vocab_size": 5}
    model = models.create(
        "moment:tiny", horizon=12, task_name=task, forecast_horizon=12, seq_len=60, patch_len=12,
        t5_config=t5 | {"feed_forward_proj": "relu"},
    ) if task == "forecasting" else models.create(
        "moment:tiny", horizon=48, task_name=task, seq_len=60, patch_len=12, t5_config=t5
    )  # fmt: skip
    past, future = torch.randn(2, 3, 60), torch.randn(2, 3, 70)
    assert model.forecast(past, 70).shape == (2, 3, 70)
    model.loss(past, future).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("transformer_type", "encoder_decoder"),
        ("task_name", "classification"),
        ("patch_stride_len", 4),
        ("seq_len", 60),
        ("d_model", 16),
        ("value_embedding_bias", True),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_field_name(gold, tmp_path, field, value):
    config = json.loads((gold.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(InputError, match=f"moment: {field}"):
        models.load("moment", tmp_path)


def test_dropouts_are_options_of_load(gold):
    model = models.load(
        "moment", gold.folder, dropout_rate=0.3, head_dropout=0.0, patch_dropout=0.2
    )
    assert model.head.dropout.p == 0.0
    assert model.patch_embedding.dropout.p == 0.2
    assert model.encoder.dropout.p == model.encoder.first.dropout.p == 0.3


def test_initial_is_that_of_the_authors(gold):
    for horizon in (504, 96):
        config = models.preset("moment:small").config["t5_config"]
        model = models.create("moment:small", horizon=horizon, t5_config=config | {
            "num_layers": 1, "vocab_size": 100})  # fmt: skip
        assert list(model.initial()) == [name for name, _ in model.named_parameters()]
        spread = {"q": (512 * 64) ** -0.5, "o": 384**-0.5, "wo": 1024**-0.5, "embed_tokens": 1.0,
                  "value_embedding": 1.41 * 512**-0.5}  # fmt: skip
        spread["linear"] = spread["value_embedding"] if horizon == 504 else (3 * 64 * 512) ** -0.5
        for name, parameter in model.named_parameters():
            kind = name.split(".")[-2]
            if name.endswith("norm.weight"):
                assert parameter.unique().tolist() == [1.0]
            elif name.endswith("mask_embedding") or (horizon == 504 and name == HEAD[1]):
                assert parameter.unique().tolist() == [0.0]
            else:
                expected = spread.get(kind, 512**-0.5)
                actual = parameter.detach().square().mean().sqrt().item()
                assert actual == pytest.approx(expected, rel=5 / (2 * parameter.numel()) ** 0.5), (
                    name
                )


def test_positions_are_sines_and_cosines(gold, model):
    table = model.positions()[0].double()
    rate = [10_000 ** (-2 * j / 8) for j in range(4)]
    for place in (0, 1, 63, 4999):
        expected = [f(place * w) for w in rate for f in (math.sin, math.cos)]
        assert table[place].tolist() == pytest.approx(expected, abs=5e-4)
    torch.testing.assert_close(
        model.positions(),
        load_file(gold.folder / "model.safetensors")[POSITIONS],
        rtol=0,
        atol=5e-4,
    )
