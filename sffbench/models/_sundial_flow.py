"""The flow head of Sundial: a small network that finds the clean target in a noised one.

Residual blocks whose norms are shifted, scaled and gated by the time and by what a token knows
(its condition). State-dict names are those of the authors' `flow_loss.net`. Used by `sundial.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sffbench.models.blocks import call

TIME_FEATURES = 256
TIME_SCALE = 1000.0  # the time embedding sees 1000 t


class Modulated(nn.Module):
    """Parts of W silu(y) + b, as shift, scale and gate of a block: `adaLN_modulation`."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))
        self.parts = parts

    def modulation(self, about: Tensor) -> tuple[Tensor, ...]:
        return call(self.adaLN_modulation, about).chunk(self.parts, dim=-1)


class FlowBlock(Modulated):
    """x + gate * mlp(LN(x) * (1 + scale) + shift), mlp(h) = W2 silu(W1 h)."""

    def __init__(self, width: int):
        super().__init__(width, parts=3)
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, hidden: Tensor, about: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(about)
        return hidden + gate * call(self.mlp, self.in_ln(hidden) * (1 + scale) + shift)


class FlowOutput(Modulated):
    """W (LN(x) * (1 + scale) + shift) + b; this norm has no weights."""

    def __init__(self, width: int, block: int):
        super().__init__(width, parts=2)
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, block)

    def forward(self, hidden: Tensor, about: Tensor) -> Tensor:
        shift, scale = self.modulation(about)
        return call(self.linear, self.norm_final(hidden) * (1 + scale) + shift)


class FlowNet(nn.Module):
    """The clean target out of a noised one: x_t [..., O], t [...], condition [..., D] -> [..., O].

    It predicts y itself, not a velocity. Shapes broadcast: what depends on time and condition alone
    is computed once for all samples of a window.
    """

    def __init__(self, block: int, width: int, depth: int):
        super().__init__()
        embed = [nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width)]
        self.time_embed = nn.ModuleDict({"mlp": nn.Sequential(*embed)})
        self.cond_embed = nn.Linear(width, width)
        self.input_proj = nn.Linear(block, width)
        self.res_blocks = nn.ModuleList(FlowBlock(width) for _ in range(depth))
        self.final_layer = FlowOutput(width, block)

    def forward(self, noised: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        features = time_features(TIME_SCALE * time)
        about = self.time_embed["mlp"](features) + self.cond_embed(condition)
        hidden = self.input_proj(noised)
        for block in self.res_blocks:
            hidden = block(hidden, about)
        return call(self.final_layer, hidden, about)


def time_features(time: Tensor) -> Tensor:
    """[cos, sin] of time * 10000^(-k / 128), [...] -> [..., 256]."""
    half = TIME_FEATURES // 2
    rate = torch.arange(half, device=time.device) * (-math.log(10_000.0) / half)
    angle = time[..., None] * rate.exp()
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
