"""MOMENT's sizes: what to build for each published checkpoint, and for the tiny one.

A part of `moment.py`. The T5 sizes are those of flan-t5's encoders, confirmed by the published
totals; the numbers of parameters count the unused word embeddings, as the publishers do.
"""

from __future__ import annotations

from typing import Any

from sffbench.models.base import Preset


def _t5_shape(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "d_model": width,
        "d_ff": inner,
        "d_kv": 64,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": 32_128,
        "feed_forward_proj": "gated-gelu",
    }


def _published(size: str, num_parameters: int, **shape: int) -> Preset:
    """A released size; its head reconstructs, so a horizon has to be asked for."""
    return Preset(
        config={"seq_len": 512, "patch_len": 8, "t5_config": _t5_shape(**shape)},
        lookback=512,
        horizon=504,
        num_parameters=num_parameters,
        lr=1e-4,
        licence="MIT",
        hub=f"AutonLab/MOMENT-1-{size}",
        note="nearly half of `small` are unused word embeddings; 504 steps is the longest zero-shot"
        " forecast, any other horizon gets a new head",
    )


PRESETS = {
    "tiny": Preset(
        config={
            "task_name": "forecasting",
            "forecast_horizon": 96,
            "seq_len": 512,
            "patch_len": 16,
            "max_len": 32,
            "t5_config": _t5_shape(width=48, inner=96, layers=3, heads=3)
            | {"d_kv": 16, "vocab_size": 0},
        },
        lookback=512,
        horizon=96,
        num_parameters=217_920,
        lr=1e-3,
        licence="MIT",
        note="made here by `sffbench pretrain moment:tiny` on synthetic series, with a forecasting"
        " head of 96 steps",
    ),
    "small": _published("small", 35_341_512, width=512, inner=1024, layers=8, heads=6),
    "base": _published("base", 109_641_608, width=768, inner=2048, layers=12, heads=12),
    "large": _published("large", 341_248_520, width=1024, inner=2816, layers=24, heads=16),
}
