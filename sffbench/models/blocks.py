"""Blocks that several models share, written for the speed of one CPU core.

`Dropout` is `nn.Dropout` with a cheaper stream of random bits, `linear_over_rows` applies a linear
layer to the last axis but one without transposing. Both compute what their plain counterparts do
(`tests/models/test_blocks.py`), and both make way for hooks and replaced layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """x * m / q with P(m = 1) = q = 1 - p, p rounded to 1 / 65536, from torch's global generator.

    `bernoulli_` spends one generator step per element; here one 64-bit step serves four elements,
    which makes training a mixer about a third faster on a CPU. Other devices use torch's own.
    """

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return values
        if values.device.type != "cpu" or self.p == 1.0:
            return F.dropout(values, self.p)
        return values * dropout_mask(values, self.p)


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Random 0 or 1 / q in the shape and dtype of `like`, q = 1 - round(p * 65536) / 65536."""
    dropped = round(p * 65536)
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    mask = torch.empty(like.shape, dtype=like.dtype)
    torch.ge(bits, dropped - 32768, out=mask)  # a float result: half the time of a bool and a cast
    return mask.mul_(65536 / (65536 - dropped))


def linear_over_rows(linear: nn.Module, values: Tensor) -> Tensor:
    """W x + b along the last axis but one: [M, N, D] -> [M, N', D].

    The plain layer is multiplied from the left, which saves two copies. A layer that somebody
    hooked, wrapped or replaced (adapters, masks, parametrisations) is called as the module it is.
    """
    if not is_plain(linear):
        return call(linear, values.transpose(-1, -2)).transpose(-1, -2)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.expand(values.shape[0], -1, -1)
    if linear.bias is None:
        return torch.bmm(weight, values)
    return torch.baddbmm(linear.bias[:, None], weight, values)


def pointwise(conv: nn.Module, values: Tensor) -> Tensor:
    """A convolution of width 1 over tokens, as the linear map it is: [M, N, D] -> [M, N, D']."""
    if not is_plain(conv, nn.Conv1d):
        return call(conv, values.transpose(-1, -2)).transpose(-1, -2)
    assert isinstance(conv, nn.Conv1d)
    return F.linear(values, conv.weight[..., 0], conv.bias)


def is_plain(module: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """True for an untouched layer: calling it is nothing but its formula."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is kind and not any(hooks)


def call(module: nn.Module, *inputs: object) -> Tensor:
    """`module(*inputs)` for a module that returns one tensor, with a type (torch gives it none)."""
    result: Tensor = module(*inputs)
    return result


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(q k' / sqrt(d), keys up to the query's own place) v, heads apart.

    Shapes: query [M, N, heads, d], key and value [M, K, heads, d] with K >= N: the queries are the
    last N places -> [M, N, heads, d]. `dropout` acts on the attention weights. On a CPU a few
    tokens go through plain products with the heads innermost, three times as fast as the fused
    kernel there.
    """
    num_queries, num_keys = query.shape[1], key.shape[1]
    if query.device.type != "cpu" or num_keys > 32:
        mask = None if num_queries == num_keys else _seen(num_queries, num_keys, query.device)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
        )
        return mixed.transpose(1, 2)
    scores = torch.einsum("mihd,mjhd->mijh", query * query.shape[-1] ** -0.5, key)
    if num_queries > 1:
        unseen = ~_seen(num_queries, num_keys, query.device)
        scores = scores.masked_fill(unseen[None, :, :, None], float("-inf"))
    weights = scores.softmax(2)
    if dropout > 0.0:
        weights = weights * dropout_mask(weights, dropout)
    return torch.einsum("mijh,mjhd->mihd", weights, value)


def _seen(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[N, K], true where a key is not later than the query."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(num_keys - num_queries)


def next_tokens(past: Tensor, future: Tensor, token: int) -> tuple[Tensor, Tensor]:
    """Teacher forcing for next-token models: [M, N * P], [M, H] -> input [M, K * P], target [M, T].

    The target is the series without its first token, T = (N - 1) * P + H values. The input is as
    many whole tokens as it takes to predict them: future tokens but the last, so no value sees
    itself. Where H is no multiple of P, the last token is supervised by its first values only.
    """
    series = torch.cat([past, future], dim=1)
    target = series[:, token:]
    return series[:, : -(-target.shape[1] // token) * token], target


def sinusoids(num_places: int, width: int) -> Tensor:
    """pe[i, 2j] = sin(i w), pe[i, 2j + 1] = cos(i w), w = 10000^(-2j/D): [places, D]."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(num_places)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :width]


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of `values`, or of those with mask 1 (0 if there are none)."""
    if mask is None:
        return values.mean()
    return (values * mask).sum() / mask.sum().clamp_min(1.0)


def location_scale(series: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(population variance + 1e-5) of the observed values; [M, L] -> two [M, 1].

    Two passes in plain sums: `var_mean` walks one value at a time, five times as slow on a CPU.
    """
    if mask is None:
        loc = series.mean(1, keepdim=True)
        variance = (series - loc).square().mean(1, keepdim=True)
    else:
        observed = mask.sum(1, keepdim=True).clamp_min(1.0)
        loc = (series * mask).sum(1, keepdim=True) / observed
        variance = ((series - loc) * mask).square().sum(1, keepdim=True) / observed
    return loc, (variance + 1e-5).sqrt()


def quantile(values: Tensor, levels: Sequence[float], dim: int) -> Tensor:
    """Linearly interpolated quantiles along `dim`, which then has one place per level.

    `torch.quantile` puts the levels first and refuses more than 2^24 values; this does neither.
    """
    ordered = values.sort(dim).values.movedim(dim, 0)
    places = torch.tensor(levels, dtype=torch.float64) * (len(ordered) - 1)
    lower = places.floor().long()
    upper = (lower + 1).clamp_max(len(ordered) - 1)
    share = (places - lower).to(ordered).view(-1, *[1] * (ordered.ndim - 1))
    device = ordered.device
    return torch.lerp(ordered[lower.to(device)], ordered[upper.to(device)], share).movedim(0, dim)


def at_levels(values: Tensor, known: Sequence[float], levels: Sequence[float], dim: int) -> Tensor:
    """Quantiles at `levels` from those at the increasing levels `known`, which lie along `dim`.

    On lines between neighbours; a level beyond the outermost takes the outermost.
    """
    own = torch.tensor(known, dtype=torch.float64)
    wanted = torch.tensor(levels, dtype=torch.float64).clamp(own[0], own[-1])
    upper = torch.searchsorted(own, wanted)
    lower = (upper - 1).clamp_min(0)
    share = (wanted - own[lower]) / (own[upper] - own[lower]).clamp_min(1e-12)
    last = values.movedim(dim, -1)
    low, high = (last[..., place.to(values.device)] for place in (lower, upper))
    return torch.lerp(low, high, share.to(values)).movedim(-1, dim)
