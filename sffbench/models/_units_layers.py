"""The layers of UniTS: resizable linear maps, the two attentions, the blocks and the heads.

Shapes are [B, C, N, D] throughout: windows, variables, tokens, features. Attribute names are those
of the authors' state dict, some of which name maps that are never called. The model that joins
these parts is in `units.py`: `sffbench.models.create("units:tiny").blocks[0]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models.blocks import Dropout, call

NATIVE = 128  # token counts that the resizable maps were made for
CLS_HEADS = 8  # the classification head ignores `n_heads`


class DynamicLinear(nn.Module):
    """W x + b for any number of inputs and outputs: W and b are images that are resized to fit.

    The first `fixed` input columns keep their number. Bilinear, half-pixel centres, only where the
    wanted size is not the native one. Acts on the last axis: [..., in] -> [..., `num_out`].
    """

    def __init__(self, num_in: int, num_out: int, fixed: int):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(num_out, num_in))  # the authors' plural
        self.bias = nn.Parameter(torch.empty(num_out))
        self.fixed = fixed

    def forward(self, values: Tensor, num_out: int) -> Tensor:
        num_in = values.shape[-1]
        weights: Tensor = self.weights
        bias: Tensor = self.bias
        if weights.shape != (num_out, num_in):
            fixed = _resized(weights[:, : self.fixed], num_out, self.fixed)
            moving = _resized(weights[:, self.fixed :], num_out, num_in - self.fixed)
            weights = torch.cat([fixed, moving], dim=1)
        if len(bias) != num_out:
            bias = _resized(bias[None], 1, num_out)[0]
        return F.linear(values, weights, bias)


def _resized(image: Tensor, rows: int, columns: int) -> Tensor:
    if image.shape == (rows, columns):
        return image
    return F.interpolate(image[None, None], size=(rows, columns), mode="bilinear")[0, 0]


def over_tokens(linear: DynamicLinear, hidden: Tensor, num_out: int) -> Tensor:
    """A resizable map along the token axis, [..., N, D] -> [..., `num_out`, D]."""
    return call(linear, hidden.transpose(-1, -2), num_out).transpose(-1, -2)


class SeqAttention(nn.Module):
    """Attention over all tokens of one variable, in both directions: [B, C, N, D] -> same."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = (heads, width // heads)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.qkv(hidden.flatten(0, 1)).unflatten(-1, (3, *self.heads))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return call(self.dropout, self.proj(mixed.transpose(1, 2).flatten(-2))).view_as(hidden)


class VarAttention(SeqAttention):
    """Attention over variables, its weights shared by all tokens of a window.

    weights = softmax(mean over tokens of q . mean of k / sqrt(d)), [C, C] per head; the values keep
    their tokens. [B, C, N, D] -> same.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden).unflatten(-1, (3, *self.heads)).unbind(-3)
        query, key = query.mean(2) * self.heads[1] ** -0.5, key.mean(2)
        weights = torch.einsum("bihd,bjhd->bhij", query, key).softmax(-1)
        mixed = torch.einsum("bhij,bjnhd->binhd", weights, value)
        return call(self.dropout, self.proj(mixed.flatten(-2)))


class Mlp(nn.Module):
    """W2 gelu(W1 h), dropout after each."""

    def __init__(self, width: int, inner: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        return call(self.dropout, self.fc2(self.dropout(F.gelu(self.fc1(hidden)))))


class DynamicMlp(nn.Module):
    """W2 gelu(mix(conv h)): a convolution of width 3 over tokens to 8 D features.

    mix leaves half of the features alone; in the other half the prompts and the sequence are linear
    maps of all the first `num_mixed` tokens, and those beyond (a class token) stay.
    """

    def __init__(self, width: int, num_prompts: int, dropout: float):
        super().__init__()
        inner, native = 8 * width, 2 * width
        self.num_prompts = num_prompts
        self.fc1 = nn.Conv1d(width, inner, kernel_size=3, padding=1)
        self.seq_fc = DynamicLinear(native, native, num_prompts)
        self.prompt_fc = DynamicLinear(native, num_prompts, num_prompts)
        self.fc2 = nn.Linear(inner, width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, num_mixed: int) -> Tensor:
        wide = call(self.fc1, hidden.flatten(0, 1).transpose(1, 2))
        first, second = wide.chunk(2, dim=1)
        seen = first[..., :num_mixed]
        prompts = self.prompt_fc(seen, self.num_prompts)
        sequence = self.seq_fc(seen, num_mixed - self.num_prompts)
        first = torch.cat([prompts, sequence, first[..., num_mixed:]], dim=-1)
        wide = self.dropout(F.gelu(torch.cat([first, second], dim=1)))
        return call(self.dropout, self.fc2(wide.transpose(1, 2))).view_as(hidden)


class Residual(nn.Module):
    """h + sigmoid(w . u + b) u with u = inner(LayerNorm(h)): one scalar gate per token."""

    def __init__(self, width: int, place: int, name: str, inner: nn.Module):
        super().__init__()
        self.parts = (f"norm{place}", name, f"ls{place}")  # the authors' names
        self.add_module(self.parts[0], nn.LayerNorm(width))
        self.add_module(self.parts[1], inner)
        self.add_module(self.parts[2], nn.ModuleDict({"gate": nn.Linear(width, 1)}))

    def forward(self, hidden: Tensor, *sizes: int) -> Tensor:
        norm, inner, scale = (self.get_submodule(part) for part in self.parts)
        update = call(inner, norm(hidden), *sizes)
        return hidden + torch.sigmoid(call(scale.get_submodule("gate"), update)) * update


class Block(nn.Module):
    """Attention over time, over variables, then the dynamic MLP: [B, C, N, D] -> same."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, dropout = config["d_model"], config["dropout"]
        shape = (width, config["n_heads"], dropout)
        self.seq_att_block = Residual(width, 1, "attn_seq", SeqAttention(*shape))
        self.var_att_block = Residual(width, 1, "attn_var", VarAttention(*shape))
        self.dynamic_mlp = Residual(
            width, 2, "mlp", DynamicMlp(width, config["prompt_num"], dropout)
        )
        # Never called by the authors, and yet in every checkpoint.
        self.seq_att_block.add_module("proj", nn.Linear(width, width))
        self.var_att_block.add_module("proj", nn.Linear(width, width))

    def forward(self, hidden: Tensor, num_mixed: int) -> Tensor:
        hidden = self.var_att_block(self.seq_att_block(hidden))
        return call(self.dynamic_mlp, hidden, num_mixed)


class CrossAttention(nn.Module):
    """The class token (the last one) asks all tokens: [M, N, D] -> [M, 1, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = (CLS_HEADS, width // CLS_HEADS)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.q(hidden[:, -1:]).unflatten(-1, self.heads).transpose(1, 2)
        key, value = self.kv(hidden).unflatten(-1, (2, *self.heads)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return call(self.proj, mixed.transpose(1, 2).flatten(-2))


class ClassHead(nn.Module):
    """Summary of a window for classification: [B, C, N, D] -> [B, C, 1, D]."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.proj_in = nn.Linear(width, width)
        self.cross_att = CrossAttention(width)
        self.mlp = Residual(width, 2, "mlp", Mlp(width, 8 * width, dropout))

    def forward(self, hidden: Tensor) -> Tensor:
        asked = self.cross_att(self.proj_in(hidden).flatten(0, 1))
        return call(self.mlp, asked.view(*hidden.shape[:2], 1, -1))


class ForecastHead(nn.Module):
    """Tokens to values: [B, C, `fixed` + N, D] -> [B, C, N * P], each token its own patch."""

    def __init__(self, width: int, patch: int, fixed: int, dropout: float):
        super().__init__()
        self.proj_in = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width, dropout)
        self.proj_out = nn.Linear(width, patch)
        self.pos_proj = DynamicLinear(NATIVE, NATIVE, fixed)

    def forward(self, hidden: Tensor, num_tokens: int) -> Tensor:
        hidden = self.proj_in(hidden)
        mixed = over_tokens(self.pos_proj, hidden, num_tokens) + hidden[:, :, -num_tokens:]
        return call(self.proj_out, self.mlp(mixed)).flatten(-2)
