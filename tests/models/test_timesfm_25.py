"""TimesFM 2.5 against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import sffkernels
from sffbench import models
from sffbench.errors import InputError
from sffbench.models._timesfm_25_inputs import running_statistics
from sffbench.models._timesfm_inputs import interpolated
from sffbench.models._timesfm_presets import _shape_25

PLAIN = {"force_flip_invariance": False, "infer_is_positive": False}
PORTED = {  # names of the `transformers` port, in the order in which they are replaced
    "tokenizer.": "model.input_ff_layer.",
    ".hidden_layer.": ".input_layer.",
    "stacked_xf.": "model.layers.",
    ".attn.out.": ".self_attn.o_proj.",
    ".attn.query_ln.scale": ".self_attn.q_norm.weight",
    ".attn.key_ln.scale": ".self_attn.k_norm.weight",
    ".attn.per_dim_scale.per_dim_scale": ".self_attn.scaling",
    ".attn.qkv_proj.": ".self_attn.qkv_proj.",
    ".ff0.": ".mlp.fc1.",
    ".ff1.": ".mlp.fc2.",
    ".pre_attn_ln.scale": ".input_layernorm.weight",
    ".post_attn_ln.scale": ".post_attention_layernorm.weight",
    ".pre_ff_ln.scale": ".pre_feedforward_layernorm.weight",
    ".post_ff_ln.scale": ".post_feedforward_layernorm.weight",
}


@pytest.fixture
def gold(golden):
    return golden("timesfm-2.5")


def load(gold, **options):
    return models.load("timesfm", gold.folder, **options)


def close(gold, name, actual):
    atol = 1e-5 * gold.io[name].float().abs().max().item()  # the README's tolerance
    gold.check(name, actual.to(gold.io[name].dtype), rtol=1e-4, atol=atol)


def config_of(gold):
    return json.loads((gold.folder / "config.json").read_text())


def ported(gold, folder, **changes):
    """The golden folder as the `transformers` port would publish it."""
    config = config_of(gold)
    layer = config["stacked_transformers"]["transformer"]
    flat = {
        "model_type": "timesfm2_5",
        "patch_length": config["input_patch_len"],
        "horizon_length": config["output_patch_len"],
        "context_length": 64,
        "num_hidden_layers": config["stacked_transformers"]["num_layers"],
        "num_attention_heads": layer["num_heads"],
        "num_key_value_heads": layer["num_heads"],
        "head_dim": layer["model_dims"] // layer["num_heads"],
        "hidden_size": layer["model_dims"],
        "intermediate_size": layer["hidden_dims"],
        "rms_norm_eps": 1e-6,
        "use_bias": False,
        "activation": "swish",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "use_continuous_quantile_head": True,
        "force_flip_invariance": True,
        "infer_is_positive": True,
    }
    flat |= {key: config[key] for key in ("output_quantile_len", "quantiles", "decode_index")}
    (folder / "config.json").write_text(json.dumps(flat | changes))
    state = {}
    for name, tensor in load_file(gold.folder / "model.safetensors").items():
        for own, other in PORTED.items():
            name = name.replace(own, other)
        if "qkv_proj" in name:
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {name.replace("qkv_", f"{part}_"): rows.clone() for part, rows in parts}
        else:
            state[name] = tensor
    save_file(state, folder / "model.safetensors")
    return folder


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, stages, tmp_path):
    model = load(gold)
    series, masks = gold.io["forward/input_ts"], gold.io["forward/masks"]
    padding, out = masks.float(), {}
    seen = stages(model, lambda: out.update(network=model.network(series, padding)))
    normed, pads = seen["tokenizer:in"].split(8, -1)
    close(gold, "forward/normed_patches", normed)
    close(gold, "forward/patched_masks", pads)
    close(gold, "forward/input_embeddings", seen["tokenizer"])
    close(gold, "forward/output_embeddings", seen["stacked_xf.1"])
    close(gold, "forward/output_ts", seen["output_projection_point"])
    spread = model.output_projection_quantiles(seen["stacked_xf.1"])
    close(gold, "forward/output_quantile_spread", spread)
    loc, scale = running_statistics(series.view(3, 8, 8), padding.view(3, 8, 8))
    close(gold, "forward/context_mu", loc)
    close(gold, "forward/context_sigma", scale)
    close(gold, "decode/prefill_outputs", out["network"])
    horizon = int(gold.io["decode/horizon"])
    with torch.no_grad():
        outputs, spread = load(gold, use_continuous_quantile_head=True).unroll(series, padding, 48)
        short, _ = model.unroll(series, padding, horizon)
    close(gold, "decode/quantile_spread", spread)
    close(gold, "decode/ar_outputs", outputs[:, 16:])
    assert torch.equal(short, outputs[:, :horizon])
    training(gold, model, series, padding)
    high_level(gold)
    the_port(gold, tmp_path)
    inputs = {"forward/input_ts", "forward/masks", "decode/horizon", "train/x_future"}
    inputs |= {"hf/past_values", *(f"api/series{index}" for index in range(3))}
    assert gold.compared == set(gold.io) - inputs


def training(gold, model, series, padding):
    """The loss, its two parts, and its gradient for every parameter but the second head's."""
    future = gold.io["train/x_future"]
    outputs, _ = model.unroll(series, padding, 16)
    loss = model.score(outputs, future)
    close(gold, "train/loss_total", loss)
    squared = (outputs[..., 5] - future).square().mean()
    close(gold, "train/loss_mse_median", squared)
    close(gold, "train/loss_pinball_mean", loss - squared)
    loss.backward()
    expected = load_file(gold.folder / "grads.safetensors")
    for name, parameter in model.named_parameters():
        if name.startswith("output_projection_quantiles."):
            assert parameter.grad is None
            continue
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected.pop(name), rtol=1e-4, atol=atol)
    assert not expected


def high_level(gold):
    """The authors' `forecast` of three series, each of its own length and NaNs, four settings."""
    settings = {
        "plain": PLAIN,
        "flip_pos": {},
        "readme": {
            "normalize_inputs": True,
            "use_continuous_quantile_head": True,
            "fix_quantile_crossing": True,
        },
    }
    for name, options in settings.items():
        model = load(gold, **options)
        point, levels, mean = [], [], []
        for index in range(3):
            values = gold.io[f"api/series{index}"].float()[-64:]  # their max_context
            mask = values.isfinite().float()[None, None]
            past = values.nan_to_num()[None, None]
            point.append(model.forecast(past, 40, past_mask=mask)[:, 0])
            levels.append(model.quantiles(past, 40, model.levels, past_mask=mask)[:, 0])
            with torch.no_grad():
                mean.append(model._outputs(past, 40, mask)[:, 0, :, :1])
        close(gold, f"api/{name}/point", torch.cat(point))
        full = torch.cat([torch.cat(mean), torch.cat(levels).transpose(1, 2)], dim=-1)
        close(gold, f"api/{name}/full", full)
    backcast(gold)


def backcast(gold):
    """The forecasts inside the context, each patch from those before, then those beyond it."""
    rows, model = [], load(gold, **PLAIN)
    for index in range(3):
        values = gold.io[f"api/series{index}"].float()[-64:]
        mask, past = values.isfinite().float()[None], values.nan_to_num()[None]
        past, padding = (F.pad(part, (64 - len(values), 0)) for part in interpolated(past, mask))
        padding[:, : 64 - len(values)] = 1.0
        with torch.no_grad():
            inside = model.network(past, padding)[:, :-1, :8].flatten(1, 2)
            beyond = model._outputs(past[None], 40, 1.0 - padding[None])[0]
        rows.append(torch.cat([inside, beyond], dim=1))
    close(gold, "api/backcast/full", torch.cat(rows))
    close(gold, "api/backcast/point", torch.cat(rows)[..., 5])


def the_port(gold, folder):
    """Predictions and loss of the `transformers` port, which scales the whole context first."""
    flags = {**PLAIN, "use_continuous_quantile_head": False, "normalize_inputs": True}
    model = models.load("timesfm", ported(gold, folder), **flags)
    past, future = gold.io["hf/past_values"], gold.io["train/x_future"]
    with torch.no_grad():
        full = model._outputs(past[:, None], 16, None)[:, 0]
    close(gold, "hf/full_predictions", full)
    loc, scale = past.mean(1, keepdim=True), past.std(1, keepdim=True)
    error = ((future - loc) / scale)[..., None] - (full - loc[..., None]) / scale[..., None]
    others = error[..., [0, 1, 2, 3, 4, 6, 7, 8, 9]]  # the port pairs these with all nine levels
    level = torch.tensor(model.levels)
    pinball = torch.maximum(level * others, (level - 1) * others)
    close(gold, "hf/loss", error[..., 5].square().mean() + pinball.mean())


def test_a_state_dict_survives_loading(gold):
    original, state = load_file(gold.folder / "model.safetensors"), load(gold).state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


def test_the_preset_has_the_keys_and_shapes_of_the_published_checkpoint(gold):
    published = json.loads((gold.folder / "published_shapes.json").read_text())
    expected = published["google/timesfm-2.5-200m-pytorch"]
    preset = models.preset("timesfm:2.5-200m")
    for config in (preset.config, expected["config"]):  # ours holds the fields that fix shapes
        with torch.device("meta"):
            model = models.get("timesfm").variant(config)(config)
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected["shapes"]
        assert sum(p.numel() for p in model.parameters()) == expected["params"]
        assert (model.lookback, model.horizon) == (preset.lookback, preset.horizon) == (16384, 128)


def shrunk(monkeypatch):
    """`timesfm:2.5-200m` at the size of the golden folder, so that its folders can be loaded."""
    config = _shape_25(16384, patch=8, block=16, spread=48, width=32, heads=4, layers=2)
    small = dataclasses.replace(models.preset("timesfm:2.5-200m"), config=config)
    monkeypatch.setitem(models.get("timesfm").presets, "2.5-200m", small)


def test_a_folder_loads_under_the_presets_name_whichever_way_its_config_is_published(
    gold, tmp_path, monkeypatch
):
    shrunk(monkeypatch)
    past = torch.randn(2, 1, 60)
    expected = load(gold).forecast(past, 40)
    official = tmp_path / "official"
    official.mkdir()
    shutil.copy(gold.folder / "model.safetensors", official)
    config = config_of(gold)
    del config["context_limit"]  # fixed in the authors' code
    for published in (config_of(gold), config, {"torch_compile": True}):
        (official / "config.json").write_text(json.dumps(published))
        model = models.load("timesfm:2.5-200m", official)
        assert torch.equal(model.forecast(past, 40), expected)
        assert model.lookback == 16384
    other = tmp_path / "port"
    other.mkdir()
    ported(gold, other, context_length=16384)
    model = models.load("timesfm:2.5-200m", other, use_continuous_quantile_head=False)
    assert torch.equal(model.forecast(past, 40), expected)
    ported(gold, other, context_length=128)
    with pytest.raises(InputError, match=r"no timesfm:2.5-200m: context_limit is 128, not 16384"):
        models.load("timesfm:2.5-200m", other)


def test_a_folder_of_another_size_is_no_2_5_200m(gold):
    with pytest.raises(InputError, match="input_patch_len is 8, not 32") as caught:
        models.load("timesfm:2.5-200m", gold.folder)
    assert "\n" not in str(caught.value)


def test_maps_of_queries_keys_and_values_that_were_published_apart_are_joined(gold, tmp_path):
    shutil.copy(gold.folder / "config.json", tmp_path)
    state = {}
    for name, tensor in load_file(gold.folder / "model.safetensors").items():
        if "qkv_proj" in name:
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[name.replace("qkv_proj", part)] = rows.clone()
        else:
            state[name] = tensor
    save_file(state, tmp_path / "model.safetensors")
    past = torch.randn(2, 1, 64)
    model = models.load("timesfm", tmp_path)
    assert torch.equal(model.forecast(past, 20), load(gold).forecast(past, 20))
    del state["stacked_xf.1.attn.key.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"missing stacked_xf.1.attn.qkv_proj.weight"):
        models.load("timesfm", tmp_path)


@pytest.mark.parametrize("init", ["usable", "published"])
def test_initial_is_torchs_own_but_for_gains_and_scales(gold, init):
    table = load(gold).initial(init)
    model = load(gold)
    for name, parameter in model.named_parameters():
        law = table.pop(name)
        if name.endswith(".scale"):
            assert (law.kind, law.a) == ("constant", float(init == "usable")), name
        elif name.endswith("per_dim_scale"):
            assert (law.kind, law.a) == ("constant", 0.0), name
        else:
            owner = model.get_submodule(name.rpartition(".")[0])
            bound = owner.in_features**-0.5
            assert (law.kind, law.a, law.b) == ("uniform", -bound, bound), name
            reference = torch.nn.Linear(owner.in_features, 4096 // owner.in_features)
            drawn = sffkernels.draw(law, reference.weight.shape, seed=0, name=name)
            assert drawn.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
            assert parameter.shape[0] == owner.out_features
    assert not table


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stacked_transformers.transformer.qk_norm", "none", "qk_norm='none' is not supported"),
        ("stacked_transformers.transformer.num_heads", 3, "must be a multiple of 2 . num_heads=3"),
        ("tokenizer.activation", "relu", "tokenizer.activation='relu' is not supported"),
        ("tokenizer.input_dims", 24, "tokenizer.input_dims=24 is not supported, allowed: 16"),
        ("output_projection_point.output_dims", 7, "output_dims=7 is not supported, allowed: 160"),
        ("output_patch_len", 20, "output_patch_len=20 must be a multiple of input_patch_len=8"),
        ("decode_index", 10, "decode_index=10 is no quantile, allowed: 1 to 9"),
        ("force_flip_invariance", 2, "force_flip_invariance=2 is not supported"),
        ("stacked_transformers", None, "config.json lacks stacked_transformers"),
    ],
)
def test_a_config_beyond_this_file_is_one_clear_line(gold, path, value, message):
    config = config_of(gold)
    *parents, key = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[key] = value
    if value is None:
        del inner[key]
    with pytest.raises(InputError, match=message) as caught:
        models.get("timesfm").variant(config)(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 4}, "head_dim=4 is not supported, allowed: 8"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2 is not supported, allowed: 4"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"rope_parameters": {"rope_theta": 500.0}}, "rope_parameters.rope_theta=500.0 is not"),
    ],
)
def test_a_config_of_the_port_beyond_this_file_is_one_clear_line(gold, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        models.load("timesfm", ported(gold, tmp_path, **change))


def test_options_of_the_older_networks_are_refused_by_name(gold):
    for option in ("freq", "point_forecast_mode", "return_backcast"):
        with pytest.raises(InputError, match=f"unknown option of timesfm '{option}'") as caught:
            load(gold, **{option: 1})
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="draws no samples"):
        load(gold).sample(torch.randn(1, 1, 64), 8, 5)
