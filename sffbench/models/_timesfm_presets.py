"""The presets of TimesFM: two networks, 1.0 and 2.0 by flat fields, 2.5 by its nested definition.

`config` holds the fields that fix shapes, under the authors' names. The other names under which
these networks are published are read by `_timesfm_inputs.py` and `_timesfm_25_inputs.py`.
"""

from __future__ import annotations

from typing import Any

from sffbench.models.base import Preset


def _shape(
    context: int, patch: int, block: int, width: int, heads: int, layers: int, positions: bool
) -> dict[str, Any]:
    return {
        "context_len": context,
        "input_patch_len": patch,
        "output_patch_len": block,
        "num_layers": layers,
        "num_heads": heads,
        "model_dims": width,
        "use_positional_embedding": positions,
    }


def _shape_25(
    context: int, patch: int, block: int, spread: int, width: int, heads: int, layers: int
) -> dict[str, Any]:
    def residual(inputs: int, outputs: int, bias: bool) -> dict[str, Any]:
        return {
            "input_dims": inputs,
            "hidden_dims": width,
            "output_dims": outputs,
            "use_bias": bias,
        }

    levels = [level / 10 for level in range(1, 10)]
    layer = {"model_dims": width, "hidden_dims": width, "num_heads": heads}
    return {
        "context_limit": context,
        "input_patch_len": patch,
        "output_patch_len": block,
        "output_quantile_len": spread,
        "quantiles": levels,
        "decode_index": 5,
        "tokenizer": residual(2 * patch, width, bias=True),
        "stacked_transformers": {"num_layers": layers, "transformer": layer},
        "output_projection_point": residual(width, block * 10, bias=False),
        "output_projection_quantiles": residual(width, spread * 10, bias=False),
    }


PRESETS = {
    "tiny": Preset(
        config=_shape(512, patch=32, block=96, width=64, heads=4, layers=4, positions=False),
        lookback=512,
        horizon=96,
        num_parameters=242_304,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain timesfm:tiny` on synthetic series",
    ),
    "2.0-500m": Preset(
        config=_shape(2048, patch=32, block=128, width=1280, heads=16, layers=50, positions=False),
        lookback=2048,
        horizon=128,
        num_parameters=498_828_960,
        lr=1e-4,
        licence="Apache-2.0",
        hub="google/timesfm-2.0-500m-pytorch",
        files=("torch_model.ckpt",),
        note="the one that SFF fine-tuned",
    ),
    "1.0-200m": Preset(
        config=_shape(512, patch=32, block=128, width=1280, heads=16, layers=20, positions=True),
        lookback=512,
        horizon=128,
        num_parameters=203_568_960,
        lr=1e-4,
        licence="Apache-2.0",
        hub="google/timesfm-1.0-200m-pytorch",
        files=("torch_model.ckpt",),
    ),
    "2.5-200m": Preset(
        config=_shape_25(16384, patch=32, block=128, spread=1024, width=1280, heads=16, layers=20),
        lookback=16384,
        horizon=128,
        num_parameters=231_289_280,
        lr=1e-4,
        licence="Apache-2.0",
        hub="google/timesfm-2.5-200m-pytorch",
        note="model.safetensors; no frequency class",
    ),
}
