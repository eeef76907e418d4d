"""TTM's forecast channel mixing: each step of all forecasts is corrected by what surrounds it.

The window around a step holds k steps before and after it, of the forecast channels and of those
whose future is known (exogenous); past values stand before the first step, zeros after the last.
Upstream joins forecasts that are still scaled with past and known values in the units of the data,
and so do we: data should be standardised. Used by `ttm.py` under the key `head.fcm_block`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models._ttm_layers import MixerLayer, Mixers, gate
from sffbench.models.blocks import call


class Reconciler(nn.Module):
    """y + W g(flatten(mix(windows))), g(x) = x * softmax(Wg x), mix optional; s = 2 k + 1 steps.

    forecast [B, T, H] (scaled), past [B, T + E, L] and known [B, E, H] (in the units of the data)
    -> [B, T, H] (scaled), T channels that are forecast and E whose future is known, in this order.
    """

    def __init__(self, config: Mapping[str, Any], num_targets: int, num_known: int):
        super().__init__()
        self.reach, gated = config["fcm_context_length"], config["fcm_gated_attn"]
        self.offset = config["fcm_prepend_past_offset"] or 0
        self.prepend = config["fcm_prepend_past"]
        channels, width = num_targets + num_known, 2 * self.reach + 1
        self.mixes = config["fcm_use_mixer"]
        if self.mixes:
            self.fcm_embedding = nn.Linear(width, 2 * width)
            width *= 2
            inner = {**config, "gated_attn": gated}
            # Channels stand where patches stood: the layers are those of the network.
            layers = [
                MixerLayer(inner, channels, width, config["head_dropout"])
                for _ in range(config["fcm_mix_layers"])
            ]
            self.exog_mixer = Mixers([*layers])
        self.fcm_gating_block = gate(channels * width, gated)
        self.mlp = nn.Linear(channels * width, num_targets)

    def forward(self, forecast: Tensor, past: Tensor, known: Tensor) -> Tensor:
        windows = self._windows(torch.cat([forecast, known], dim=1), past)
        if self.mixes:
            mixed = call(self.exog_mixer, self.fcm_embedding(windows.flatten(0, 1)))
            windows = mixed.view(*windows.shape[:2], *mixed.shape[1:])
        flat = windows.flatten(2)
        if self.fcm_gating_block:
            flat = flat * torch.softmax(self.fcm_gating_block["attn_layer"](flat), dim=-1)
        return forecast + call(self.mlp, flat).transpose(1, 2)

    def _windows(self, future: Tensor, past: Tensor) -> Tensor:
        """Each step with its surroundings: [B, T + E, H] -> [B, H, T + E, 2 k + 1]."""
        end = past.shape[-1] - self.offset
        before = past[..., end - self.reach : end]
        if not self.prepend:
            before = torch.zeros_like(before)
        whole = F.pad(torch.cat([before, future], dim=-1), (0, self.reach))
        return whole.unfold(-1, 2 * self.reach + 1, 1).transpose(1, 2)
