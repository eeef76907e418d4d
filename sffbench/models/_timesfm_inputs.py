"""What stands around the TimesFM network: config fields, statistics, missing values, key names.

`complete` reads any of the published configs, `statistics` and `interpolated` are the authors'
normalisation and their treatment of missing values, `official_names` reads checkpoints of the
`transformers` port. Used by `timesfm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sffbench.errors import InputError
from sffbench.models import fields

MIN_OBSERVED = 3  # values that a patch needs to give the scale
# Our fields are those of `TimesFmHparams`; the same networks are also published under other names.
ALIASES = {
    "input_patch_len": ("patch_length", "patch_len"),
    "output_patch_len": ("horizon_length", "horizon_len"),
    "context_len": ("context_length",),
    "num_layers": ("num_hidden_layers",),
    "num_heads": ("num_attention_heads",),
    "model_dims": ("hidden_size",),
}
REQUIRED = (*ALIASES, "use_positional_embedding")
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0.0,),
    "freq": (0, 1, 2),
    "freq_size": (3,),
    "max_timescale": (10_000,),
    "min_timescale": (1,),
    "point_forecast_mode": ("median", "mean"),
    "use_quantile_loss": (True, False),
}


def own_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the fields of `TimesFmHparams`, whatever names it has them under."""
    full = dict(config)
    for name, others in ALIASES.items():
        for other in others:
            if other in config:
                full.setdefault(name, config[other])
    return full


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under our names, with defaults; `InputError` names what is absent or foreign."""
    full = own_names(config)
    if absent := [key for key in REQUIRED if key not in full]:
        raise InputError(f"timesfm: config.json lacks {', '.join(absent)}")
    for key, allowed in SUPPORTED.items():
        if key in full and full[key] not in allowed:
            raise InputError(f"timesfm: {key}={full[key]!r} is not supported, allowed: {allowed}")
    width, heads = full["model_dims"], full["num_heads"]
    defaults: dict[str, Any] = {
        "num_kv_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": width,
        "rms_norm_eps": 1e-6,
        "quantiles": [level / 10 for level in range(1, 10)],
        "tolerance": 1e-6,
        "pad_val": 1123581321.0,
        "freq": 0,
        "point_forecast_mode": "median",
        "use_quantile_loss": True,
    }
    full = defaults | full
    fields.check("timesfm", full, [defaults | {"freq": None}])
    if full["point_forecast_mode"] == "median" and 0.5 not in full["quantiles"]:
        raise InputError(f"timesfm: no median among quantiles={full['quantiles']!r}")
    if full["num_heads"] % full["num_kv_heads"]:
        raise InputError(
            f"timesfm: num_heads={heads} must be a multiple of num_kv_heads={full['num_kv_heads']}"
        )
    if full["use_positional_embedding"] and width % 2:
        raise InputError(f"timesfm: model_dims={width} must be even for positions")
    return full


def statistics(patches: Tensor, pads: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Mean and population std of the first patch with 3 observed values, or the last; [M, 1].

    Upstream subtracts squares, E[x^2] - E[x]^2, and so do we, digit by digit. Where the std is less
    than a thousandth of the mean, that difference is rounding: there we use deviations.
    """
    enough = (1.0 - pads).sum(-1) >= MIN_OBSERVED
    first = torch.where(enough.any(1), enough.int().argmax(1), patches.shape[1] - 1)
    row = torch.arange(len(patches), device=patches.device)
    patch, seen = patches[row, first], 1.0 - pads[row, first]
    count = seen.sum(-1, keepdim=True).clamp_min(1.0)
    loc = (patch * seen).sum(-1, keepdim=True) / count
    squares = (patch * seen).square().sum(-1, keepdim=True) / count - loc.square()
    wide, weight = patch.double(), seen.double()
    centre = (wide * weight).sum(-1, keepdim=True) / count
    exact = ((wide - centre) * weight).square().sum(-1, keepdim=True) / count
    scale = torch.where(squares > 1e-6 * loc.square(), squares, exact.to(squares)).sqrt()
    return loc, scale.masked_fill(scale < tolerance, 1.0)


def interpolated(series: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Missing values of [M, L] on the line between their neighbours, and the padding, [M, L].

    After the last observed value it is repeated; before the first there is padding.
    """
    length = series.shape[1]
    place = torch.arange(length, device=series.device).expand_as(series)
    before = torch.where(mask > 0, place, -1).cummax(1).values
    after = torch.where(mask > 0, place, length).flip(1).cummin(1).values.flip(1)
    left = series.gather(1, before.clamp_min(0))
    right = torch.where(after == length, left, series.gather(1, after.clamp_max(length - 1)))
    filled = torch.lerp(left, right, ((place - before) / (after - before).clamp_min(1)).to(series))
    leading = before < 0
    return filled.masked_fill(leading, 0.0), (leading & (mask > 0).any(1, keepdim=True)).to(series)


def official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the `transformers` port under the authors' names; theirs is left alone.

    The port calls the first linear map of a block `input_layer`, prefixes `decoder.`, and splits
    the joint projection of queries, keys and values in three.
    """
    if not any(key.startswith("decoder.") for key in state):
        return dict(state)
    named = {
        key.removeprefix("decoder.")
        .replace("_ff_layer.input_layer.", "_ff_layer.hidden_layer.0.")
        .replace("layers.", "stacked_transformer.layers.", 1): tensor
        for key, tensor in state.items()
    }
    return joined(named)


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with each complete trio of `q_proj`, `k_proj` and `v_proj` as one `qkv_proj`."""
    for query in [key for key in state if ".q_proj." in key]:
        keys = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(key in state for key in keys):
            joint = torch.cat([state.pop(key) for key in keys])
            state[query.replace(".q_proj.", ".qkv_proj.")] = joint
    return state
