"""TimesFM 2.0 and 1.0 against the tensors of the official implementation, and their own rules."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._timesfm_inputs import interpolated, statistics

FOLDERS = ["timesfm-2.0", "timesfm-1.0"]


def load(gold, **options):
    return models.load("timesfm", gold.folder, **options)


def close(gold, name, actual):
    atol = 1e-5 * gold.io[name].abs().max().item()  # the README's tolerance
    gold.check(name, actual.to(gold.io[name].dtype), rtol=1e-4, atol=atol)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden, stages, folder):
    gold = golden(folder)
    model = load(gold)
    series, padding = gold.io["forward/input_ts"], gold.io["forward/input_padding"]
    freq = gold.io["forward/freq"]
    out = {}
    seen = stages(model, lambda: out.update(network=model.network(series, padding, freq)))
    close(gold, "forward/output", out["network"])
    close(gold, "forward/stack_output", seen["stacked_transformer"])
    normed, pads = seen["input_ff_layer:in"].split(8, -1)
    close(gold, "forward/patched_inputs_normed", normed)
    close(gold, "forward/patch_padding", pads.amin(-1))
    before = seen["stacked_transformer:in"] - seen["freq_emb"]
    close(gold, "forward/model_input_before_freq", before)
    loc, scale = statistics(series.view(3, 8, 8), padding.view(3, 8, 8), 1e-6)
    close(gold, "forward/loc", loc)
    close(gold, "forward/scale", scale)
    with torch.no_grad():
        full = model.unroll(series, padding, 40, freq)
        short = model.unroll(series, padding, 40, freq, block=8, context=48)
    close(gold, "decode/full", full)
    close(gold, "decode/mean", full[..., 0])
    close(gold, "decode_op8_max48/full", short)
    inside = out["network"][:, :-1, :8].flatten(1, 2)
    close(gold, "decode_ctx/full", torch.cat([inside, full], dim=1))
    training(gold, model, series, padding, freq)
    high_level(gold)
    inputs = {"forward/input_ts", "forward/input_padding", "forward/freq", "decode/horizon"}
    inputs |= {"train/x_future", "api/freq", "api/series0", "api/series1", "api/series2"}
    assert gold.compared == set(gold.io) - inputs


def training(gold, model, series, padding, freq):
    """The fine-tuning losses, and the gradient of the second for every parameter."""
    outputs, future = model.unroll(series, padding, 16, freq), gold.io["train/x_future"]
    alone = load(gold, use_quantile_loss=False)
    close(gold, "train/loss_mse", alone.score(outputs, future))
    loss = model.score(outputs, future)
    close(gold, "train/loss_mse_plus_quantile", loss)
    loss.backward()
    expected = load_file(gold.folder / "grads.safetensors")
    assert expected.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=atol)


def high_level(gold):
    """The authors' `forecast` of three series, each of its own length, frequency and NaNs."""
    rows = {"full": [], "median": [], "mean": [], "normalize": [], "window": []}
    for index in range(3):
        values = gold.io[f"api/series{index}"]
        mask = values.isfinite().float()[None, None]
        past = values.float().nan_to_num()[None, None]
        freq = int(gold.io["api/freq"][index])
        model = load(gold, freq=freq)
        with torch.no_grad():
            rows["full"].append(model._outputs(past, 24, mask)[:, 0])
        rows["median"].append(model.forecast(past, 24, past_mask=mask)[:, 0])
        by_mean = load(gold, freq=freq, point_forecast_mode="mean")
        rows["mean"].append(by_mean.forecast(past, 24, past_mask=mask)[:, 0])
        whole, padding = interpolated(past[0], mask[0])
        whole = whole[padding == 0][None, None]
        mean, std = whole.mean(), whole.std(correction=0)
        normed = model.forecast((whole - mean) / std, 24)[:, 0]
        rows["normalize"].append(normed * std + mean)
        window = whole[..., -64:]
        smooth = torch.nn.functional.avg_pool1d(torch.nn.functional.pad(window, (4, 0)), 5, 1)
        plain = load(gold)
        rows["window"].append((plain.forecast(smooth, 24) + plain.forecast(window - smooth, 24))[0])
    joined = {name: torch.cat(parts) for name, parts in rows.items()}
    close(gold, "api/full", joined["full"])
    close(gold, "api/point_median", joined["median"])
    close(gold, "api/point_mean", joined["mean"])
    close(gold, "api/point_median_normalize", joined["normalize"])
    close(gold, "api/point_median_window5_freq0", joined["window"])


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_state_dict_survives_loading(golden, folder):
    gold = golden(folder)
    original, state = load_file(gold.folder / "model.safetensors"), load(gold).state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


@pytest.mark.parametrize("preset", ["1.0-200m", "2.0-500m"])
def test_a_preset_has_the_keys_and_shapes_of_the_published_checkpoint(golden, preset):
    published = json.loads((golden("timesfm-2.0").folder / "published_shapes.json").read_text())
    expected = published[f"google/timesfm-{preset}-pytorch"]
    with torch.device("meta"):
        model = models.get("timesfm")(models.preset(f"timesfm:{preset}").config)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected["shapes"]
    assert sum(p.numel() for p in model.parameters()) == expected["params"]


def test_a_short_context_is_padded_in_front_as_the_authors_pad_it(golden):
    model = load(golden("timesfm-2.0"))
    past = 5 + torch.randn(2, 1, 37)
    padded = torch.nn.functional.pad(past, (27, 0))
    mask = torch.nn.functional.pad(torch.ones_like(past), (27, 0))
    alone = model.forecast(past, 40)
    torch.testing.assert_close(model.forecast(padded, 40, past_mask=mask), alone)


def test_a_longer_context_is_cut_on_the_left(golden):
    model = load(golden("timesfm-2.0"))
    past = torch.randn(2, 1, 90)
    assert torch.equal(model.forecast(past, 24), model.forecast(past[..., -64:], 24))


def test_missing_values_are_interpolated_as_numpy_does(golden):
    model = load(golden("timesfm-2.0"))
    past, mask = torch.randn(4, 1, 40), (torch.rand(4, 1, 40) > 0.4).float()
    mask[:, :, [0, 1, -1]] = 0.0
    mask[3] = 0.0
    for row in range(3):
        place = mask[row, 0].nonzero()[:, 0].numpy()
        inner = np.arange(place[0], 40)
        filled = torch.from_numpy(np.interp(inner, place, past[row, 0, place].numpy())).float()
        expected = model.forecast(filled[None, None], 20)[0]
        spoilt = past[row : row + 1].masked_fill(mask[row : row + 1] == 0, float("nan"))
        actual = model.forecast(spoilt, 20, past_mask=mask[row : row + 1])[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    nothing = model.forecast(past[3:], 20, past_mask=mask[3:])
    torch.testing.assert_close(nothing, model.forecast(torch.zeros(1, 1, 40), 20))


@pytest.mark.parametrize("level", [0.0, 0.1, 7.0, 3e3, -1e7])
def test_the_scale_of_a_patch_far_from_zero_is_not_lost_to_rounding(level):
    patch = (level + torch.randn(5, 3, 8)).float()
    loc, scale = statistics(patch, torch.zeros_like(patch), 1e-6)
    exact = patch[:, 0].double()
    torch.testing.assert_close(loc[:, 0].double(), exact.mean(1), rtol=1e-6, atol=1e-6)
    rtol = 1e-5 + 6e-7 * level**2 if abs(level) < 100 else 1e-5
    torch.testing.assert_close(scale[:, 0].double(), exact.std(1, correction=0), rtol=rtol, atol=0)
    flat = torch.full((1, 3, 8), level)
    assert statistics(flat, torch.zeros_like(flat), 1e-6)[1].item() == 1.0


def test_a_flat_first_patch_leaves_the_context_unscaled(golden):
    model = load(golden("timesfm-2.0"))
    past = torch.randn(2, 1, 64)
    past[..., :8] = 3.0
    assert model.forecast(past, 40).isfinite().all()
    loc, scale = statistics(past.view(2, 8, 8), torch.zeros(2, 8, 8), 1e-6)
    assert loc.tolist() == [[3.0], [3.0]]
    assert scale.tolist() == [[1.0], [1.0]]


def test_quantiles_are_the_networks_own_lines_between_and_the_outermost_beyond(golden):
    model = load(golden("timesfm-2.0"))
    past = torch.randn(2, 3, 64)
    with torch.no_grad():
        own = model._outputs(past, 40, None)[..., 1:].movedim(-1, 2)
    trained = model.quantiles(past, 40, [0.9, 0.5, 0.1])
    assert trained.shape == (2, 3, 3, 40)
    assert torch.equal(trained, own[:, :, [8, 4, 0]])
    assert torch.equal(trained[:, :, 1], model.forecast(past, 40))
    between = model.quantiles(past, 40, [0.25, 0.01, 0.99])
    torch.testing.assert_close(between[:, :, 0], (own[:, :, 1] + own[:, :, 2]) / 2)
    assert torch.equal(between[:, :, 1:], own[:, :, [0, 8]])


def test_the_frequency_class_is_an_option_and_matters(golden):
    gold = golden("timesfm-2.0")
    past = torch.randn(1, 1, 64)
    forecasts = [load(gold, freq=freq).forecast(past, 16) for freq in (0, 1, 2)]
    assert torch.equal(load(gold).forecast(past, 16), forecasts[0])
    assert not torch.allclose(forecasts[0], forecasts[1])
    assert not torch.allclose(forecasts[1], forecasts[2])


@pytest.mark.parametrize("num_values", [5, 16, 40])
def test_the_loss_is_squared_error_of_the_mean_plus_twice_the_pinball_of_each_level(
    golden, num_values
):
    model = load(golden("timesfm-2.0"))
    past, future = torch.randn(2, 3, 64), torch.randn(2, 3, num_values)
    with torch.no_grad():
        outputs = model._outputs(past, num_values, None).double()
    error = future.double() - outputs[..., 0]
    expected = error.square().mean()
    for place, level in enumerate(model.levels, start=1):
        error = future.double() - outputs[..., place]
        expected += 2 * torch.where(error > 0, level * error, (level - 1) * error).mean()
    assert model.loss(past, future).item() == pytest.approx(expected.item(), rel=1e-5)


def test_full_masks_change_neither_loss_nor_forecast(golden):
    model = load(golden("timesfm-2.0"))
    past, future = torch.randn(2, 3, 64), torch.randn(2, 3, 20)
    masks = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    torch.testing.assert_close(model.loss(past, future, **masks), model.loss(past, future))
    full = model.forecast(past, 40, past_mask=masks["past_mask"])
    torch.testing.assert_close(full, model.forecast(past, 40))


def test_masked_future_values_carry_no_loss(golden):
    model = load(golden("timesfm-2.0"))
    past, future, mask = torch.randn(2, 1, 64), torch.randn(2, 1, 16), torch.ones(2, 1, 16)
    mask[..., 5:] = 0
    spoilt = future.masked_fill(mask == 0, 1e6)
    expected = model.loss(past, future[..., :5])
    torch.testing.assert_close(model.loss(past, spoilt, future_mask=mask), expected)


def test_heads_that_share_keys_and_values_are_heads_with_equal_ones(golden):
    gold = golden("timesfm-2.0")
    config = json.loads((gold.folder / "config.json").read_text())
    shared = models.get("timesfm")(config | {"num_kv_heads": 2})
    split = models.get("timesfm")(config)
    for parameter in shared.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = shared.state_dict()
    for key in [key for key in state if "qkv_proj" in key]:
        query, keys, values = state[key].split([32, 16, 16])
        wide = [part.unflatten(0, (2, 8)).repeat_interleave(2, 0) for part in (keys, values)]
        state[key] = torch.cat([query, *(part.flatten(0, 1) for part in wide)])
    split.load_state_dict(state)
    past = torch.randn(2, 1, 60)
    torch.testing.assert_close(shared.forecast(past, 16), split.forecast(past, 16))


def ported(gold, folder):
    """The golden folder as the `transformers` port publishes it; its config and its tensors."""
    config = json.loads((gold.folder / "config.json").read_text())
    flat = {
        "patch_length": config["input_patch_len"],
        "horizon_length": config["output_patch_len"],
        "context_length": config["context_len"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "hidden_size": config["model_dims"],
        "attention_dropout": 0.0,
    }
    same = ("use_positional_embedding", "intermediate_size", "head_dim", "quantiles")
    flat |= {key: config[key] for key in same}
    state = {}
    for key, tensor in load_file(gold.folder / "model.safetensors").items():
        name = key.replace(".hidden_layer.0.", ".input_layer.")
        name = name.replace("stacked_transformer.layers.", "layers.")
        name = name if name.startswith("horizon_ff_layer.") else f"decoder.{name}"
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {name.replace("qkv_", f"{part}_"): rows.clone() for part, rows in parts}
        else:
            state[name] = tensor
    (folder / "config.json").write_text(json.dumps(flat))
    save_file(state, folder / "model.safetensors")
    return flat, state


def test_a_checkpoint_of_the_transformers_port_is_read_like_the_authors_own(golden, tmp_path):
    gold = golden("timesfm-2.0")
    _, state = ported(gold, tmp_path)
    past = torch.randn(2, 1, 64)
    model = models.load("timesfm", tmp_path)
    assert torch.equal(model.forecast(past, 20), load(gold).forecast(past, 20))
    del state["decoder.layers.1.self_attn.k_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing stacked_transformer.layers.1.self_attn.qkv"):
        models.load("timesfm", tmp_path)


def test_the_config_of_the_port_agrees_with_a_preset_or_is_refused(golden, tmp_path, monkeypatch):
    gold = golden("timesfm-2.0")
    flat, _ = ported(gold, tmp_path)
    published = models.preset("timesfm:2.0-500m")
    config = json.loads((gold.folder / "config.json").read_text())
    small = dataclasses.replace(published, config={key: config[key] for key in published.config})
    monkeypatch.setitem(models.get("timesfm").presets, "2.0-500m", small)
    past = torch.randn(2, 1, 64)
    model = models.load("timesfm:2.0-500m", tmp_path)
    assert torch.equal(model.forecast(past, 20), load(gold).forecast(past, 20))
    (tmp_path / "config.json").write_text(json.dumps(flat | {"patch_length": 16}))
    with pytest.raises(InputError, match=r"no timesfm:2.0-500m: input_patch_len is 16, not 8$"):
        models.load("timesfm:2.0-500m", tmp_path)


@pytest.mark.parametrize("init", ["usable", "published"])
def test_initial_is_torchs_own_but_for_gains_and_scales(init):
    model = models.create("timesfm:tiny", seed=0, init=init)
    for name, parameter in model.named_parameters():
        if name.endswith("scaling"):
            assert parameter.unique().tolist() == [0.0]
        elif "norm" in name:
            gain = float(name.endswith("weight") and ("layer_norm" in name or init == "usable"))
            assert parameter.unique().tolist() == [gain], name
        else:
            owner = model.get_submodule(name.rpartition(".")[0])
            bound = 1.0 if name == "freq_emb.weight" else owner.in_features**-0.5
            std = bound if name == "freq_emb.weight" else bound / 3**0.5
            num = parameter.numel()
            assert abs(parameter.mean().item()) < 5 * std / num**0.5, name
            assert parameter.std().item() == pytest.approx(std, abs=5 * std / (2 * num) ** 0.5), (
                name
            )
            assert name == "freq_emb.weight" or parameter.abs().max() <= bound


def test_bfloat16_autocast_stays_near_float32(golden):
    model = load(golden("timesfm-2.0"))
    past = torch.randn(4, 1, 60)
    exact = model.forecast(past, 40)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 40)
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freq": 3}, r"freq=3 is not supported, allowed: \(0, 1, 2\)"),
        ({"point_forecast_mode": "mode"}, "point_forecast_mode='mode' is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"quantiles": [0.1, 0.9]}, r"no median among quantiles=\[0.1, 0.9\]"),
        ({"num_layers": None}, "config.json lacks num_layers"),
    ],
)
def test_a_config_beyond_this_file_is_one_clear_line(golden, change, message):
    config = json.loads((golden("timesfm-2.0").folder / "config.json").read_text()) | change
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(InputError, match=message) as caught:
        models.get("timesfm")(config)
    assert "\n" not in str(caught.value)


def test_quantiles_are_all_there_is_to_draw(golden):
    with pytest.raises(InputError, match="draws no samples"):
        load(golden("timesfm-2.0")).sample(torch.randn(1, 1, 64), 8, 5)
