"""How MOIRAI reads a batch: windows of several variables as one sequence of patches.

    packed = pack(past, horizon=96, size=32, past_mask=mask)     # [B, C, L] -> [B, T, s]
    forecast = unpack(values[:, packed.wanted], 7, 32, 96)       # [B, T', P] -> [B, C, H]

T counts the tokens of all contexts, variable by variable, then those of all horizons.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # added to the variance


class Packed(NamedTuple):
    """A batch as the encoder reads it: T tokens, all contexts by variable, then all horizons."""

    target: Tensor  # [B, T, s] values, 0 where missing, padded or to come
    observed: Tensor  # [B, T, s] bool, true for values to come
    real: Tensor  # [B, T] bool, false for a token that is padding throughout
    time: Tensor  # [B, T] from 0 at the first token with an observed value
    variate: Tensor  # [T]
    wanted: Tensor  # [T] bool, tokens of the horizon
    loc: Tensor  # [B, T, 1]
    scale: Tensor  # [B, T, 1]


def pack(
    past: Tensor,
    horizon: int,
    size: int,
    past_mask: Tensor | None = None,
    *,
    scaling: bool = True,
    carry: bool = False,
) -> Packed:
    """Tokens of windows past [B, C, L] and of the H values to come.

    The context is padded on the left, the horizon on the right; H = 0 packs the context alone.
    Leading steps that no variable has observed are padding. A missing value is 0 in the units of
    the input, as published; with `carry` it is the last observed one.
    """
    num_windows, num_channels, length = past.shape
    seen = torch.ones_like(past, dtype=torch.bool) if past_mask is None else past_mask != 0
    ahead = seen.new_ones(num_windows, num_channels, horizon)
    past = carried(past, seen) if carry else past * seen

    def tokens(values: Tensor, left: bool) -> Tensor:  # [B, C, L] -> [B, C * N, s]
        missing = -values.shape[-1] % size
        return F.pad(values, (missing, 0) if left else (0, missing)).reshape(num_windows, -1, size)

    both = tokens(seen, True)
    num_context, num_horizon = -(-length // size), -(-horizon // size)
    begun = both.view(num_windows, num_channels, num_context, size).any(3).any(1)
    time = (begun.long().cummax(1).values.cumsum(1) - 1).clamp_min(0)
    later = time[:, -1:] + 1 + torch.arange(num_horizon, device=past.device)
    channels = torch.arange(num_channels, device=past.device)
    counts = (num_context, num_horizon)
    variate = torch.cat([channels.repeat_interleave(count) for count in counts])
    wanted = torch.arange(len(variate), device=past.device) >= num_channels * num_context
    # A token is real from the first observed value of the window on, whoever observed it.
    real = begun.cummax(1).values.repeat(1, num_channels)
    real = F.pad(real, (0, num_channels * num_horizon), value=True)
    loc, scale = (
        location_scale(past, seen) if scaling else (past[..., :1] * 0, past[..., :1] * 0 + 1)
    )
    return Packed(
        target=torch.cat([tokens(past, True), tokens(ahead.to(past) * 0, False)], 1),
        observed=torch.cat([both, tokens(ahead, False)], 1),
        real=real,
        time=torch.cat([time.repeat(1, num_channels), later.repeat(1, num_channels)], 1),
        variate=variate,
        wanted=wanted,
        loc=loc[:, variate] * real[..., None],
        scale=scale[:, variate].masked_fill(~real[..., None], 1.0),
    )


def unpack(tokens: Tensor, num_channels: int, size: int, horizon: int) -> Tensor:
    """Values of the horizon's tokens by variable: [B, C * N, P, ...] -> [B, C, H, ...]."""
    kept = tokens[:, :, :size]
    return kept.reshape(len(kept), num_channels, -1, *kept.shape[3:])[:, :, :horizon]


def carried(values: Tensor, seen: Tensor) -> Tensor:
    """The last observed value at or before each step, 0 where there is none: [B, C, L]."""
    steps = torch.arange(values.shape[-1], device=values.device)
    last = torch.where(seen, steps, -1).cummax(-1).values
    return values.gather(-1, last.clamp_min(0)).masked_fill(last < 0, 0.0)


def location_scale(past: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + 1e-5) of each variable, in float64: two [B, C, 1]."""
    values, count = past.double(), seen.sum(-1, keepdim=True)
    loc = (values * seen).sum(-1, keepdim=True) / count.clamp_min(1)
    squares = ((values - loc) * seen).square().sum(-1, keepdim=True)
    scale = (squares / (count - 1).clamp_min(1) + EPSILON).sqrt()
    return loc.to(past.dtype), scale.to(past.dtype)
