"""What stands around the TimesFM 2.5 network: config fields, running statistics, key names.

`nested` reads any of the published configs, `complete` checks one and names its fields as the rest
of the family does, `running_statistics` is the authors' normalisation, `official_names` reads
checkpoints of the `transformers` port and of the authors' first release. Used by `_timesfm_25.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sffbench.errors import InputError
from sffbench.models._timesfm_inputs import joined

TOLERANCE = 1e-6  # a spread below this is taken for none
OPTIONS: dict[str, bool] = {  # the authors' `ForecastConfig`, its defaults
    "force_flip_invariance": True,
    "infer_is_positive": True,
    "use_continuous_quantile_head": False,
    "fix_quantile_crossing": False,
    "normalize_inputs": False,
}
# The official definition is nested; the port's fields are flat, and these alone carry other names.
FLAT = {
    "context_length": "context_limit",
    "patch_length": "input_patch_len",
    "horizon_length": "output_patch_len",
}
REQUIRED_FLAT = (
    *FLAT,
    "output_quantile_len",
    "quantiles",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
)
REQUIRED = (
    "input_patch_len",
    "output_patch_len",
    "output_quantile_len",
    "quantiles",
    "stacked_transformers",
)
BLOCKS = ("tokenizer", "output_projection_point", "output_projection_quantiles")
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "activation": ("swish", "silu"),
    "attention_bias": (False,),
    "attention_dropout": (0.0,),
    "use_bias": (False,),
    "rope_theta": (10_000.0,),
    "rope_type": ("default",),
}
SUPPORTED_LAYER: dict[str, tuple[Any, ...]] = {
    "attention_norm": ("rms",),
    "feedforward_norm": ("rms",),
    "qk_norm": ("rms",),
    "use_bias": (False,),
    "use_rotary_position_embeddings": (True,),
    "ff_activation": ("swish",),
}
KEYS = (  # names of the port and of the first release, and the authors' of today
    ("model.input_ff_layer.", "tokenizer."),
    (".input_layer.", ".hidden_layer."),
    ("model.layers.", "stacked_xf."),
    (".self_attn.o_proj.", ".attn.out."),
    (".self_attn.q_norm.weight", ".attn.query_ln.scale"),
    (".self_attn.k_norm.weight", ".attn.key_ln.scale"),
    (".self_attn.scaling", ".attn.per_dim_scale.per_dim_scale"),
    (".self_attn.", ".attn."),
    (".attn.query.", ".attn.q_proj."),
    (".attn.key.", ".attn.k_proj."),
    (".attn.value.", ".attn.v_proj."),
    (".mlp.fc1.", ".ff0."),
    (".mlp.fc2.", ".ff1."),
    (".mlp.", "."),
    (".input_layernorm.weight", ".pre_attn_ln.scale"),
    (".post_attention_layernorm.weight", ".post_attn_ln.scale"),
    (".pre_feedforward_layernorm.weight", ".pre_ff_ln.scale"),
    (".post_feedforward_layernorm.weight", ".post_ff_ln.scale"),
)


def is_25(config: Mapping[str, Any]) -> bool:
    """Only this network has a second head, for quantiles alone."""
    return "output_quantile_len" in config


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the fields of the official definition; those of the port become such."""
    full = {"context_limit": 16384, "decode_index": 5} | dict(config)
    for flat, own in FLAT.items():
        if flat in config:
            full[own] = config[flat]
    if "hidden_size" not in config:
        return full
    _check_present(config, REQUIRED_FLAT)
    _check("", config, SUPPORTED)
    _check("rope_parameters.", config.get("rope_parameters") or {}, SUPPORTED)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    for key, allowed in (("head_dim", width // heads), ("num_key_value_heads", heads)):
        _check("", config, {key: (allowed,)})
    layer = {
        "model_dims": width,
        "hidden_dims": config.get("intermediate_size", width),
        "num_heads": heads,
    }
    layers = config["num_hidden_layers"]
    full["stacked_transformers"] = {"num_layers": layers, "transformer": layer}
    for name, (inputs, outputs) in _sizes(full, width).items():
        full[name] = {
            "input_dims": inputs,
            "hidden_dims": width,
            "output_dims": outputs,
            "use_bias": name == "tokenizer",
        }
    return full


def _sizes(full: Mapping[str, Any], width: int) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the three residual blocks."""
    columns = 1 + len(full["quantiles"])
    outputs = (width, full["output_patch_len"] * columns, full["output_quantile_len"] * columns)
    inputs = (2 * full["input_patch_len"], width, width)
    return dict(zip(BLOCKS, zip(inputs, outputs, strict=True), strict=True))


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the family's names, with defaults; `InputError` names what does not fit."""
    full = nested(config)
    _check_present(full, REQUIRED)
    stack = full["stacked_transformers"]
    layer = stack["transformer"]
    _check("stacked_transformers.transformer.", layer, SUPPORTED_LAYER)
    width, heads = layer["model_dims"], layer["num_heads"]
    fields = {
        "context_len": full["context_limit"],
        "input_patch_len": full["input_patch_len"],
        "output_patch_len": full["output_patch_len"],
        "output_quantile_len": full["output_quantile_len"],
        "quantiles": full["quantiles"],
        "decode_index": full["decode_index"],
        "num_layers": stack["num_layers"],
        "model_dims": width,
        "num_heads": heads,
        "intermediate_size": layer["hidden_dims"],
        "rms_norm_eps": full.get("rms_norm_eps", 1e-6),
    }
    _check_sizes(fields)
    for name, (inputs, outputs) in _sizes(full, width).items():
        block = full.get(name, {})
        sizes = {"input_dims": (inputs,), "output_dims": (outputs,)}
        _check(f"{name}.", block, sizes | {"activation": SUPPORTED["activation"]})
        bias = block.get("use_bias", name == "tokenizer")
        fields[name] = (inputs, block.get("hidden_dims", width), outputs, bias)
    for name, default in OPTIONS.items():
        fields[name] = full.get(name, default)
        _check("", fields, {name: (True, False)})
    return fields


def _check_present(given: Mapping[str, Any], required: tuple[str, ...]) -> None:
    if absent := [key for key in required if key not in given]:
        raise InputError(f"timesfm: config.json lacks {', '.join(absent)}")


def _check(prefix: str, given: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    for key, allowed in supported.items():
        if key in given and given[key] not in allowed:
            choices = " or ".join(repr(choice) for choice in allowed)
            raise InputError(
                f"timesfm: {prefix}{key}={given[key]!r} is not supported, allowed: {choices}"
            )


def _check_sizes(fields: Mapping[str, Any]) -> None:
    patch, block = fields["input_patch_len"], fields["output_patch_len"]
    width, heads = fields["model_dims"], fields["num_heads"]
    if block % patch:
        raise InputError(
            f"timesfm: output_patch_len={block} must be a multiple of input_patch_len={patch}"
        )
    if width % (2 * heads):
        raise InputError(f"timesfm: model_dims={width} must be a multiple of 2 * num_heads={heads}")
    if not 1 <= fields["decode_index"] <= len(fields["quantiles"]):
        raise InputError(
            f"timesfm: decode_index={fields['decode_index']!r} is no quantile, "
            f"allowed: 1 to {len(fields['quantiles'])}"
        )


def running_statistics(patches: Tensor, pads: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population std of all that was observed up to and with each patch, [M, N] each.

    0 and 0 before the first observed value. Patches are pooled as upstream does, two groups of n
    and k values with means apart by d having the squares of both and d^2 n k / (n + k), but by
    doubling distances, and in float64: a constant far from 0 keeps no spread of rounding.
    """
    seen, wide = 1.0 - pads.double(), patches.double()
    count = seen.sum(-1)
    mean = (wide * seen).sum(-1) / count.clamp_min(1.0)
    squares = ((wide - mean[..., None]) * seen).square().sum(-1)
    distance = 1
    while distance < count.shape[1]:
        before, level, spread = (
            F.pad(part[:, :-distance], (distance, 0)) for part in (count, mean, squares)
        )
        apart, total = level - mean, (count + before).clamp_min(1.0)
        squares = squares + spread + apart.square() * count * before / total
        mean, count = mean + apart * before / total, count + before
        distance *= 2
    variance = squares / count.clamp_min(1.0)
    flat = variance == 0  # whose root has no derivative
    scale = variance.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
    return mean.to(patches), scale.to(patches)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the authors' names of today, q, k and v joined; theirs is left alone."""
    named = {}
    for key, tensor in state.items():
        for other, own in KEYS:
            key = key.replace(other, own)
        named[key] = tensor
    return joined(named)
