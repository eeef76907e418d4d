"""Chronos-Bolt against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models.chronos import location_scale

ROWS = slice(0, 3)  # the fourth context is constant, which dominates the loss


def close(golden, name, actual):
    """The README's tolerance: rtol 1e-4, atol 1e-5 times the largest expected magnitude."""
    golden.check(name, actual, rtol=1e-4, atol=1e-5 * golden.io[name].abs().max().item())


def observed(values):
    """Values with 0 for NaN, and where they are no NaN, both [B, 1, L]."""
    return values.nan_to_num()[:, None], (~values.isnan()).float()[:, None]


@pytest.fixture
def gold(golden):
    return golden("chronos-bolt")


@pytest.fixture
def model(gold):
    return models.load("chronos", gold.folder)


def train_loss(gold, model, target="in/target", rows=ROWS):
    past, seen = observed(gold.io["in/ctx"][rows])
    future, wanted = observed(gold.io[target][rows])
    return model.loss(past, future, past_mask=seen, future_mask=wanted)


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, model, stages):
    past, seen = observed(gold.io["in/ctx"])
    at = {"past_mask": seen}
    loc, scale = location_scale(past[:, 0], seen[:, 0])
    close(gold, "forward/loc", loc)
    close(gold, "forward/scale", scale)
    _, attended = model.embed((past[:, 0] - loc) / scale, seen[:, 0])
    close(gold, "forward/attention_mask", attended)
    run = stages(
        model,
        lambda: close(
            gold, "forward/quantile_preds", model.quantiles(past, 16, model.levels, **at)
        ),
    )
    close(gold, "forward/input_embeds", run["encoder:in"])
    close(gold, "forward/encoder_hidden", run["encoder"])
    close(gold, "forward/decoder_hidden", run["decoder"])
    for name in ("unaligned", "long"):
        given, mask = observed(gold.io[f"in/ctx_{name}"])
        quantiles = model.quantiles(given, 16, model.levels, past_mask=mask)
        close(gold, f"forward/quantile_preds_{name}", quantiles)

    horizon = int(gold.io["predict/horizon"])
    close(gold, "predict/quantiles", model.quantiles(past, horizon, model.levels, **at))
    close(gold, "predict/point_median", model.forecast(past, horizon, **at))
    close(gold, "predict/mean_is_median", model.forecast(past, horizon, **at))
    others = model.quantiles(past, horizon, [0.05, 0.25, 0.5, 0.95], **at)[:, 0].transpose(1, 2)
    close(gold, "predict/quantiles_0.05_0.25_0.5_0.95", others)

    close(gold, "train/loss", train_loss(gold, model))
    close(gold, "train/loss_short_target", train_loss(gold, model, "in/target_short"))
    filled, wanted = gold.io["in/target"].nan_to_num()[ROWS, None], gold.io["in/target_mask"]
    masks = {"past_mask": seen[ROWS], "future_mask": wanted[ROWS, None]}
    close(gold, "train/loss_target_mask", model.loss(past[ROWS], filled, **masks))
    close(gold, "train/loss_with_constant_row", train_loss(gold, model, rows=slice(None)))
    explicit_mask(gold, model)
    inputs = {name for name in gold.io if name.startswith("in/")} | {"predict/horizon"}
    assert gold.compared == set(gold.io) - inputs


@torch.no_grad()
def explicit_mask(gold, model):
    """Upstream's explicit mask hides values from the patches, not from mean and deviation.

    The model does not do that: its mask means missing. Its building blocks still can.
    """
    filled, mask = gold.io["in/ctx_filled"], gold.io["in/mask"]
    loc, scale = location_scale(filled, None)
    quantiles = model.network((filled - loc) / scale, mask)
    raw = quantiles * scale[..., None] + loc[..., None]
    close(gold, "forward/quantile_preds_explicit_mask", raw)


def test_every_gradient_of_the_golden_folder_is_reproduced(gold, model):
    train_loss(gold, model).backward()
    expected = load_file(gold.folder / "grads.safetensors")
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=atol)


def test_the_loss_is_the_pinball_loss_of_scaled_values_summed_over_steps(gold, model):
    past, future = torch.randn(2, 3, 64), torch.randn(2, 3, 16)
    loc, scale = past.double().mean(-1, keepdim=True), past.double().std(-1, False, keepdim=True)
    forecast = model.quantiles(past, 16, model.levels).double()
    error = ((future.double()[:, :, None] - forecast) / scale[:, :, None]).flatten(0, 1)
    del loc
    level = torch.tensor(model.levels, dtype=torch.float64)[:, None]
    expected = 2 * torch.where(error > 0, level * error, (level - 1) * error)
    expected = expected.mean(1).sum(-1).mean().item()
    assert model.loss(past, future).item() == pytest.approx(expected, rel=1e-5)


def test_a_longer_future_is_scored_in_blocks_given_the_true_values_before(model):
    past, future = torch.randn(2, 1, 50), torch.randn(2, 1, 40)
    series = torch.cat([past, future], -1)
    borders = [(50, 66), (66, 82), (82, 90)]
    each = [model.loss(series[..., :start], series[..., start:end]) for start, end in borders]
    expected = torch.stack(each).mean()
    torch.testing.assert_close(model.loss(past, future), expected)


def test_masked_values_do_not_matter_even_nan_and_full_masks_change_nothing(gold, model):
    past, seen = observed(gold.io["in/ctx"][ROWS])
    holes = gold.io["in/ctx"][ROWS][:, None]
    expected = model.forecast(past, 40, past_mask=seen)
    assert torch.equal(model.forecast(holes, 40, past_mask=seen), expected)
    future = torch.randn(3, 1, 20)
    ones = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    torch.testing.assert_close(model.loss(past, future, **ones), model.loss(past, future))
    full = model.forecast(past, 40, past_mask=ones["past_mask"])
    torch.testing.assert_close(full, model.forecast(past, 40))


def test_a_window_with_nothing_observed_is_forecast_and_a_constant_one_stays_near(model):
    past = torch.full((1, 1, 64), 3e4)
    assert model.forecast(past, 40, past_mask=torch.zeros_like(past)).isfinite().all()
    torch.testing.assert_close(model.forecast(past, 40), torch.full((1, 1, 40), 3e4))


def test_quantiles_come_in_the_order_asked_for_and_levels_beyond_the_trained_are_outermost(model):
    past = torch.randn(2, 3, 64)
    trained = model.quantiles(past, 40, model.levels)
    assert trained.shape == (2, 3, 9, 40)
    assert torch.equal(model.quantiles(past, 40, [0.9, 0.1])[:, :, 0], trained[:, :, 8])
    assert torch.equal(model.forecast(past, 40), trained[:, :, 4])
    levels = [0.01, 0.15, 0.99]
    padded = torch.cat([trained[:, :, :1], trained, trained[:, :, 8:]], 2).double()
    expected = torch.quantile(padded, torch.tensor(levels, dtype=torch.float64), dim=2)
    actual = model.quantiles(past, 40, levels).double()
    torch.testing.assert_close(actual, expected.movedim(0, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "message"), [([], "between 0 and 1"), ([0.5, 1.0], "between 0 and 1")]
)
def test_a_level_that_is_none_is_refused(model, levels, message):
    with pytest.raises(InputError, match=message):
        model.quantiles(torch.randn(1, 1, 64), 8, levels)


def test_bolt_draws_no_samples_and_says_so(model):
    for call in (
        lambda: model.sample(torch.randn(1, 1, 64), 8, 20),
        lambda: model.forecast(torch.randn(1, 1, 64), 8, num_samples=20),
    ):
        with pytest.raises(InputError, match="chronos has quantiles, it draws no samples"):
            call()


def test_a_point_model_has_no_quantiles():
    with pytest.raises(InputError, match="ttm is a point model"):
        models.create("ttm:tiny").quantiles(torch.randn(1, 1, 512), 8, [0.5])


def test_a_forecast_in_bfloat16_autocast_stays_near_float32():
    model, past = models.create("chronos:tiny", seed=0), torch.randn(4, 2, 512)
    exact = model.forecast(past, 96)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 96)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("copies", [1, 3])
def test_a_tied_embedding_may_be_stored_under_each_of_its_names(gold, model, tmp_path, copies):
    state = load_file(gold.folder / "model.safetensors")
    shared = state.pop("shared.weight")
    names = ["encoder.embed_tokens.weight", "shared.weight", "decoder.embed_tokens.weight"]
    state |= {name: shared.clone() for name in names[:copies]}
    (tmp_path / "config.json").write_text((gold.folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(models.load("chronos", tmp_path).shared.weight, model.shared.weight)


def test_a_state_dict_survives_loading(gold, model):
    original, state = load_file(gold.folder / "model.safetensors"), model.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "base"])
def test_a_preset_has_the_keys_and_shapes_of_the_published_checkpoint(gold, size):
    entry = json.loads((gold.folder / "published_shapes.json").read_text())
    entry = entry[f"amazon/chronos-bolt-{size}"]
    preset = models.preset(f"chronos:bolt-{size}")
    with torch.device("meta"):
        model = models.get("chronos")(preset.config)
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == entry["shapes"]
    assert sum(p.numel() for p in model.parameters()) == preset.num_parameters == entry["params"]


@pytest.mark.parametrize(
    "shape",
    [
        {"num_layers": 1, "num_decoder_layers": 3, "d_model": 20, "num_heads": 1, "d_kv": 7},
        {"feed_forward_proj": "gated-gelu", "d_ff": 10},
        {"chronos_config": {"input_patch_size": 8, "input_patch_stride": 4, "context_length": 100,
                            "prediction_length": 7, "quantiles": [0.2, 0.5, 0.8]}},
    ],
)  # fmt: skip
def test_other_shapes_of_the_network_forecast_and_train(shape):
    model = models.create("chronos:tiny", horizon=7, **shape)
    past, future = torch.randn(2, 3, 90), torch.randn(2, 3, 10)
    assert model.forecast(past, 10).shape == (2, 3, 10)
    model.loss(past, future).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "chronos_config lacks context_length, input_patch_size"),
        ({"output_patch_size": 16}, "chronos_config lacks max_output_patches"),
        ({"tokenizer_class": "Words"}, "tokenizer_class='Words' is not supported"),
    ],
)
def test_settings_of_another_network_are_refused(gold, tmp_path, config, message):
    whole = json.loads((gold.folder / "config.json").read_text())
    settings = whole["chronos_config"] | config if config else {}
    if "tokenizer_class" in config:
        settings |= {"n_tokens": 96, "tokenizer_kwargs": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"chronos_config": settings}))
    with pytest.raises(InputError, match=message):
        models.load("chronos", tmp_path)


def test_a_preset_allows_a_folder_more_settings_and_no_other_values(tmp_path):
    preset = models.preset("chronos:tiny")
    model = models.create("chronos:tiny", seed=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    settings = {**preset.config["chronos_config"], "note": "new"}
    for changed, fits in ((settings, True), (settings | {"prediction_length": 48}, False)):
        config = preset.config | {"chronos_config": changed}
        (tmp_path / "config.json").write_text(json.dumps(config))
        if fits:
            models.load("chronos:tiny", tmp_path)
        else:
            with pytest.raises(InputError, match="no chronos:tiny: chronos_config is"):
                models.load("chronos:tiny", tmp_path)


@pytest.mark.parametrize(("init", "factor"), [("published", 0.05), ("usable", 1.0)])
def test_initial_is_that_of_the_authors_times_the_factor(init, factor):
    model = models.create("chronos:tiny", seed=0, init=init)
    assert list(model.initial(init)) == [name for name, _ in model.named_parameters()]
    spread = {"q": (48 * 16) ** -0.5, "k": 48**-0.5, "v": 48**-0.5, "o": 48**-0.5, "wi": 48**-0.5,
              "wo": 96**-0.5, "shared": 1.0, "relative_attention_bias": 48**-0.5}  # fmt: skip
    last = 48 if init == "usable" else 32
    for name, parameter in model.named_parameters():
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            expected = 0.0
        elif kind.endswith("norm"):
            assert parameter.unique().tolist() == [pytest.approx(factor)], name
            continue
        elif "patch_embedding" in name:
            fan_in = 96 if kind.startswith("output") else 32 if name.startswith("input") else last
            expected = factor * fan_in**-0.5
        else:
            expected = factor * spread[kind]
        error = 5 / (2 * parameter.numel()) ** 0.5
        assert parameter.detach().square().mean().sqrt().item() == pytest.approx(
            expected, rel=error
        ), name
