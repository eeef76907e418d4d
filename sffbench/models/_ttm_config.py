"""The fields of TTM's `config.json`: defaults, what is computed, what is refused by name.

`complete` gives the config that `ttm.py` builds from, with the number of patches and sorted lists
of channels. A field that asks for something else than this port computes is an `InputError` that
names it: the options of TTM r3 (`decompose`, `register_tokens`, ...), static categories, attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sffbench.errors import InputError

DEFAULTS: dict[str, Any] = {  # those of `TinyTimeMixerConfig`
    "adaptive_patching_levels": 0,
    "decoder_mode": "common_channel",
    "decoder_num_layers": 8,
    "dropout": 0.2,
    "enable_forecast_channel_mixing": False,
    "exogenous_channel_indices": None,
    "expansion_factor": 2,
    "fcm_context_length": 1,
    "fcm_gated_attn": True,
    "fcm_mix_layers": 2,
    "fcm_prepend_past": True,
    "fcm_prepend_past_offset": None,
    "fcm_use_mixer": False,
    "freq_token": None,  # ours: upstream's is an argument of each call
    "frequency_token_vocab_size": 5,
    "gated_attn": True,
    "head_dropout": 0.2,
    "huber_delta": 1.0,
    "init_embed": "pytorch",
    "init_linear": "pytorch",
    "init_std": 0.02,
    "loss": "mse",
    "mode": "common_channel",
    "norm_eps": 1e-5,
    "num_input_channels": 1,
    "num_layers": 3,
    "post_init": False,
    "prediction_channel_indices": None,
    "prediction_filter_length": None,
    "quantile": 0.5,
    "resolution_prefix_tuning": False,
}
REQUIRED = ("context_length", "prediction_length", "patch_length", "d_model", "decoder_d_model")
MODES = ("common_channel", "mix_channel")
INITS = ("pytorch", "normal", "uniform", "xavier_uniform")
FREQUENCIES = {  # pandas aliases, in the authors' order; 0 is any other
    "min": 1,
    "2min": 2,
    "5min": 3,
    "10min": 4,
    "15min": 5,
    "30min": 6,
    "h": 7,
    "D": 8,
    "W": 9,
}
# Fields of the published schema that change the computation, with the values that are computed.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "categorical_vocab_size_list": (None, []),
    "decoder_adaptive_patching_levels": (0,),
    "decoder_mode": MODES,
    "decoder_raw_residual": (False,),
    "decompose": (False,),
    "enable_base_norm_always": (False,),
    "fft_length": (0,),
    "gate_mode": ("softmax",),
    "init_embed": INITS,
    "init_linear": INITS,
    "keepdim": (True,),
    "loss": ("mse", "mae", "pinball", "huber"),
    "masked_context_length": (None,),
    "minimum_scale": (1e-5,),
    "mode": MODES,
    "multi_quantile_head": (False,),
    "multi_scale": (False,),
    "norm_mlp": ("LayerNorm",),
    "patch_last": (True,),
    "register_tokens": (0,),
    "scaling": ("std", True),
    "scaling_dim": (1,),
    "self_attn": (False,),
    "use_decoder": (True,),
    "use_positional_encoding": (False,),
    "use_register_context_gating": (False,),
}


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names what is absent, foreign or contradictory."""
    for key, allowed in SUPPORTED.items():
        if key in config and config[key] not in allowed:
            values = ", ".join(map(repr, allowed[:1] if allowed[0] is None else allowed))
            raise InputError(f"ttm: {key}={config[key]!r} is not supported, allowed: {values}")
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"ttm: config.json lacks {', '.join(absent)}")
    full = DEFAULTS | dict(config)
    if full.get("patch_stride", full["patch_length"]) != full["patch_length"]:
        raise InputError(f"ttm: patch_stride={full['patch_stride']} must equal patch_length")
    _count_patches(full)
    _check_lengths(full)
    _choose_channels(full)
    _check_frequency(full)
    return full


def _count_patches(full: dict[str, Any]) -> None:
    """`num_patches`: whole patches of the context, and one for the frequency."""
    number = full["context_length"] // full["patch_length"] + bool(full["resolution_prefix_tuning"])
    if full.get("num_patches") not in (None, number):
        raise InputError(
            f"ttm: num_patches={full['num_patches']} contradicts context_length="
            f"{full['context_length']} and patch_length={full['patch_length']}, which make {number}"
        )
    full["num_patches"] = number


def _check_lengths(full: Mapping[str, Any]) -> None:
    kept, native = full["prediction_filter_length"], full["prediction_length"]
    if kept is not None and not 1 <= kept <= native:
        raise InputError(f"ttm: prediction_filter_length={kept} must lie between 1 and {native}")
    width, levels = full["d_model"], full["adaptive_patching_levels"]
    factors = [2**level for level in range(levels) if width // 2**level > 4]
    if any(width % factor for factor in factors):
        raise InputError(
            f"ttm: d_model={width} must be a multiple of {max(factors)} "
            f"for adaptive_patching_levels={levels}"
        )
    if full["enable_forecast_channel_mixing"] and full["fcm_context_length"] < 1:
        raise InputError(f"ttm: fcm_context_length={full['fcm_context_length']} must be 1 or more")


def _choose_channels(full: dict[str, Any]) -> None:
    """Sorted lists, or None; channels whose future is known are not forecast unless asked for."""
    number = full["num_input_channels"]
    for key in ("prediction_channel_indices", "exogenous_channel_indices"):
        full[key] = _indices(key, full[key], number)
    known = set(full["exogenous_channel_indices"] or ())
    if known and full["prediction_channel_indices"] is None:
        full["prediction_channel_indices"] = sorted(set(range(number)) - known)
        if not full["prediction_channel_indices"]:
            raise InputError("ttm: exogenous_channel_indices leave no channel to forecast")
    if both := sorted(known & set(full["prediction_channel_indices"] or ())):
        raise InputError(
            f"ttm: channels {both} stand in prediction_channel_indices and "
            "in exogenous_channel_indices"
        )


def _indices(key: str, given: Sequence[int] | None, number: int) -> list[int] | None:
    if not given:
        return None
    if len(set(given)) < len(given) or not all(0 <= index < number for index in given):
        raise InputError(
            f"ttm: {key}={list(given)} must be different channels of num_input_channels={number}"
        )
    return sorted(given)


def _check_frequency(full: dict[str, Any]) -> None:
    """`freq_token` as a number or a list of them, all in the vocabulary."""
    given, number = full["freq_token"], full["frequency_token_vocab_size"]
    if given is None:
        return
    if not full["resolution_prefix_tuning"]:
        raise InputError(f"ttm: freq_token={given!r} is given, but the checkpoint has no prefix")
    given = given.tolist() if hasattr(given, "tolist") else given
    tokens = given if isinstance(given, list | tuple) else [given]
    if not all(type(token) is int and 0 <= token < number for token in tokens):
        raise InputError(
            f"ttm: freq_token={given!r} must lie between 0 and {number - 1}, "
            "or be a list of such numbers, one for each window"
        )
    full["freq_token"] = given
