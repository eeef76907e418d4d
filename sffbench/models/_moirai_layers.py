"""The layers of MOIRAI: projections of several patch sizes (1.x alone), and the encoder.

B windows, T tokens of all variables in one sequence, D features. Attribute names are those of the
official state dict. The models that join these parts are in `moirai.py` and `_moirai_2.py`:
`sffbench.models.create("moirai:tiny").encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models.blocks import Dropout, call

if TYPE_CHECKING:
    from sffbench.models.twin import Start

ROPE_BASE = 10_000.0
EPSILON = 1e-5  # of all norms


class InProjection(nn.Module):
    """One linear map per patch size, [..., s] -> [..., D]; each uses its first s columns only."""

    def __init__(self, sizes: list[int], width: int):
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.empty(len(sizes), width, max(sizes)))
        self.bias = nn.Parameter(torch.empty(len(sizes), width))

    def forward(self, values: Tensor, which: int) -> Tensor:
        size = self.sizes[which]
        return F.linear(values[..., :size], self.weight[which, :, :size], self.bias[which])

    def start(self) -> tuple[Start, Start]:
        """Weight and bias U(-k, k) with k = 1 / sqrt(s) for patch size s; unused columns 0."""
        from sffbench.models.twin import Slabs
        from sffkernels import Init

        every = slice(None)
        laws = tuple(Init.fan_in_uniform(size) for size in self.sizes)
        columns = tuple((every, slice(size)) for size in self.sizes)
        return Slabs(laws, columns), Slabs(laws, ((every,),) * len(laws))


class OutProjection(nn.Module):
    """One linear map per patch size, [..., D] -> [..., P, dim], P the largest patch size.

    Rows are laid out (dim, P), yet only the first dim * s of them are used: right for dim = 1, and
    the reason why a small patch has input-dependent logits for the first components alone. The bias
    is always whole. Kept, because checkpoints were trained so.
    """

    def __init__(self, width: int, sizes: list[int], dim: int = 1):
        super().__init__()
        self.sizes, self.dim = sizes, dim
        rows = dim * max(sizes)
        self.weight = nn.Parameter(torch.empty(len(sizes), rows, width))
        self.bias = nn.Parameter(torch.empty(len(sizes), rows))

    def forward(self, hidden: Tensor, which: int) -> Tensor:
        used = self.dim * self.sizes[which]
        found = F.linear(hidden, self.weight[which, :used])
        found = F.pad(found, (0, self.weight.shape[1] - used)) + self.bias[which]
        return found.reshape(*hidden.shape[:-1], self.dim, -1).transpose(-1, -2)

    def start(self) -> tuple[Start, Start]:
        """Weight and bias U(-k, k) with k = 1 / sqrt(D); unused rows 0, those of the bias too."""
        from sffbench.models.twin import Slabs
        from sffkernels import Init

        laws = (Init.fan_in_uniform(self.weight.shape[2]),) * len(self.sizes)
        rows = tuple((slice(self.dim * size),) for size in self.sizes)
        return Slabs(laws, rows), Slabs(laws, rows)


def rotary(time: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin of time * base^(-2j/d) for pairs (2j, 2j + 1): [B, T] -> [B, T, 1, d] each."""
    pairs = torch.arange(0, width, 2, device=time.device, dtype=torch.float32)
    angle = time[..., None, None] * (ROPE_BASE ** (-pairs / width)).repeat_interleave(2)
    return angle.cos(), angle.sin()


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first half of each head, [B, T, heads, d], by its time; the rest stays."""
    turned, rest = values[..., : cos.shape[-1]], values[..., cos.shape[-1] :]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    swapped = torch.stack([-odd, even], dim=-1).flatten(-2)
    return torch.cat([turned * cos + swapped * sin, rest.to(cos.dtype)], dim=-1)


class Attention(nn.Module):
    """Attention among all tokens of a window; q and k normalised per head, then turned by time.

    A learned number per head is added to the scores: one for two tokens of a variable, another for
    tokens of two (not divided by sqrt(d)). [B, T, D] -> [B, T, D].
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = (heads, width // heads)
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(self.heads[1], eps=EPSILON)
        self.k_norm = nn.RMSNorm(self.heads[1], eps=EPSILON)
        self.var_attn_bias = nn.ModuleDict({"emb": nn.Embedding(2, heads)})

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        same: Tensor,
        hidden_from: Tensor | None,
    ) -> Tensor:
        """`same` [T, T]: one variable; `hidden_from` [B, 1, T, T]: a row must not see a column."""
        query = rotate(self.q_norm(self.q_proj(hidden).unflatten(-1, self.heads)), *angles)
        key = rotate(self.k_norm(self.k_proj(hidden).unflatten(-1, self.heads)), *angles)
        value = self.v_proj(hidden).unflatten(-1, self.heads)
        bias = self.var_attn_bias["emb"](same.long()).permute(2, 0, 1)[None]
        if hidden_from is not None:
            bias = bias.masked_fill(hidden_from, float("-inf"))
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2).to(value.dtype),
            key.transpose(1, 2).to(value.dtype),
            value.transpose(1, 2),
            attn_mask=bias.to(value.dtype),
            # Upstream passes its dropout in eval mode too; here it acts in training only.
            dropout_p=self.dropout if self.training else 0.0,
        )
        return call(self.out_proj, mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """fc2(silu(fc_gate h) * fc1 h), no biases."""

    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, inner, bias=False)
        self.fc_gate = nn.Linear(width, inner, bias=False)
        self.fc2 = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(F.silu(self.fc_gate(hidden)) * self.fc1(hidden))
        return call(self.dropout, self.fc2(inner))


class Layer(nn.Module):
    """u = h + attention(norm1 h); u + feed_forward(norm2 u)."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, dropout = config["d_model"], config["dropout_p"]
        inner = config.get("d_ff") or (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.self_attn = Attention(width, config["num_heads"], config["attn_dropout_p"])
        self.ffn = FeedForward(width, inner, dropout)
        self.norm1 = nn.RMSNorm(width, eps=EPSILON)
        self.norm2 = nn.RMSNorm(width, eps=EPSILON)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, *context: Any) -> Tensor:
        hidden = hidden + self.dropout(self.self_attn(self.norm1(hidden), *context))
        return hidden + call(self.ffn, self.norm2(hidden))


class Encoder(nn.Module):
    """All layers and a last norm: [B, T, D] -> [B, T, D]; `causal` hides later tokens."""

    def __init__(self, config: Mapping[str, Any], *, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_layers"]))
        self.norm = nn.RMSNorm(config["d_model"], eps=EPSILON)
        self.turned = config["d_model"] // config["num_heads"] // 2

    def forward(self, hidden: Tensor, time: Tensor, variate: Tensor, real: Tensor) -> Tensor:
        same = variate[:, None] == variate
        apart = self._apart(time, real)
        angles = rotary(time, self.turned)
        for layer in self.layers:
            hidden = layer(hidden, angles, same, apart)
        return call(self.norm, hidden)

    def _apart(self, time: Tensor, real: Tensor) -> Tensor | None:
        """[B, 1, T, T], true where a token (row) must not see another (column); None: nowhere.

        Without padding the windows of a batch share their times, and so one mask [1, 1, T, T].
        """
        if whole := bool(real.all()):
            time, real = time[:1], real[:1]
        apart = None if whole else real[:, :, None] != real[:, None, :]
        if self.causal:
            later = time[:, None, :] > time[:, :, None]
            apart = later if apart is None else apart | later
        return None if apart is None else apart[:, None]
