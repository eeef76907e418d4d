"""Chronos' sizes: what to build for each published checkpoint, and for the tiny one.

A part of `chronos.py` (Bolt) and `_chronos_t5.py`, which share the shapes of their stacks, and of
`_chronos_2.py`. The settings are those of the published `config.json`, numbers of parameters count
tied tensors once.
"""

from __future__ import annotations

from typing import Any

from sffbench.models.base import Preset

QUANTILES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def _bolt(context: int, patch: int, block: int) -> dict[str, Any]:
    return {
        "chronos_config": {
            "context_length": context,
            "input_patch_size": patch,
            "input_patch_stride": patch,
            "prediction_length": block,
            "quantiles": QUANTILES,
            "use_reg_token": True,
        }
    }


def _tokens(context: int, block: int, num_tokens: int) -> dict[str, Any]:
    return {
        "vocab_size": num_tokens,
        "chronos_config": {
            "tokenizer_class": "MeanScaleUniformBins",
            "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
            "n_tokens": num_tokens,
            "n_special_tokens": 2,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "use_eos_token": True,
            "model_type": "seq2seq",
            "context_length": context,
            "prediction_length": block,
            "num_samples": 20,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _shape(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_ff": inner,
        "d_kv": 64,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "feed_forward_proj": "relu",
        "initializer_factor": 0.05,
    }


_SIZES = {
    "tiny": _shape(width=256, inner=1024, layers=4, heads=4),
    "mini": _shape(width=384, inner=1536, layers=4, heads=8),
    "small": _shape(width=512, inner=2048, layers=6, heads=8),
    "base": _shape(width=768, inner=3072, layers=12, heads=12),
    "large": _shape(width=1024, inner=4096, layers=24, heads=16),
}


def _published(family: str, size: str, num_parameters: int) -> Preset:
    """A released size; Bolt and T5 share the shapes of their stacks."""
    head = _bolt(2048, 16, 64) if family == "bolt" else _tokens(512, 64, 4096)
    return Preset(
        config=_SIZES[size] | head,
        lookback=head["chronos_config"]["context_length"],
        horizon=64,
        num_parameters=num_parameters,
        lr=1e-4,
        licence="Apache-2.0",
        hub=f"amazon/chronos-{family}-{size}",
        note="sizes confirmed by the parameter count",
    )


PRESETS = {
    "tiny": Preset(
        config=_shape(width=48, inner=96, layers=3, heads=3)
        | {"d_kv": 16, "num_decoder_layers": 1}
        | _bolt(context=512, patch=16, block=96),
        lookback=512,
        horizon=96,
        num_parameters=224_016,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain chronos:tiny` on synthetic series",
    ),
    "bolt-tiny": _published("bolt", "tiny", 8_652_672),
    "bolt-mini": _published("bolt", "mini", 21_236_096),
    "bolt-small": _published("bolt", "small", 47_718_016),
    "bolt-base": _published("bolt", "base", 205_292_928),
    "t5-tiny": _published("t5", "tiny", 8_394_496),
    "t5-mini": _published("t5", "mini", 20_456_192),
    "t5-small": _published("t5", "small", 46_154_240),
    "t5-base": _published("t5", "base", 201_374_976),
    "t5-large": _published("t5", "large", 708_963_328),
    "2": Preset(
        config={
            "d_model": 768,
            "d_ff": 3072,
            "d_kv": 64,
            "num_layers": 12,
            "num_heads": 12,
            "feed_forward_proj": "relu",
            "initializer_factor": 0.05,
            "chronos_config": {
                "context_length": 8192,
                "input_patch_size": 16,
                "input_patch_stride": 16,
                "output_patch_size": 16,
                "max_output_patches": 64,
                "quantiles": [0.01, *(level / 100 for level in range(5, 100, 5)), 0.99],
                "time_encoding_scale": 8192,
                "use_arcsinh": True,
                "use_reg_token": True,
            },
        },
        lookback=8192,
        horizon=1024,
        num_parameters=119_477_664,
        lr=1e-5,
        licence="Apache-2.0",
        hub="amazon/chronos-2",
        note="sizes confirmed by the parameter count; lr: ours, lower than Bolt's, which its "
        "users find better for this one",
    ),
}
