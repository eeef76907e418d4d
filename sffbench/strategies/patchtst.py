"""PatchTST (Nie et al., ICLR 2023): a Transformer over patches of one channel, from scratch.

    z = normalise(x);  h = W_p patches(z) + positions;  h <- 3 encoder layers;  x_hat = W vec(h)

Instance normalisation without an affine part, patches of 16 steps every 8, attention scores that
add up over layers, batch norms: as in the authors' supervised scripts. One row per data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models.base import InitName, default_init
from sffbench.models.blocks import Dropout
from sffbench.strategies.specialised import ChannelNetwork, Specialised
from sffkernels import Init

if TYPE_CHECKING:
    from sffbench.models.base import LTSM
    from sffbench.models.twin import Start

PATCH, STRIDE, NUM_LAYERS = 16, 8, 3
SIZES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 16, "num_heads": 4, "d_ff": 128, "dropout": 0.3},
    "base": {"d_model": 128, "num_heads": 16, "d_ff": 256, "dropout": 0.2},
}
SMALL_BELOW = 10_000  # train rows: the authors' small sets, ETTh1, ETTh2 and ILI, lie below


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of the features of tokens: [N, tokens, D] -> the same."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, 1)).view_as(tokens)


class Layer(nn.Module):
    """u = BN(h + attention(h)); BN(u + mlp(u)). Scores are added to those of the layer before."""

    def __init__(self, width: int, num_heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.attention_norm, self.mlp_norm = BatchNorm(width), BatchNorm(width)
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, earlier: Tensor | None) -> tuple[Tensor, Tensor]:
        """[N, tokens, D], scores [N, heads, tokens, tokens] -> both anew."""
        heads = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if earlier is not None:
            scores = scores + earlier
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        # The authors drop the projection's output and then the residual branch: twice.
        hidden = self.attention_norm(hidden + self.dropout(self.dropout(self.out(mixed))))
        inner = self.down(self.dropout(F.gelu(self.up(hidden))))
        return self.mlp_norm(hidden + self.dropout(inner)), scores


class PatchTransformer(ChannelNetwork, registered=False):
    """Patches of a normalised channel, encoded, flattened, mapped to the horizon."""

    name: ClassVar[str] = "patchtst"

    def __init__(self, lookback: int, horizon: int, **config: Any) -> None:
        super().__init__(lookback, horizon, **config)
        if lookback < PATCH:
            raise InputError(f"patchtst: a lookback of {lookback} holds no patch of {PATCH} steps")
        width, dropout = config["d_model"], config["dropout"]
        self.num_patches = (lookback - PATCH) // STRIDE + 2  # the last value pads one more
        self.embedding = nn.Linear(PATCH, width)
        self.positions = nn.Parameter(torch.empty(self.num_patches, width))
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            Layer(width, config["num_heads"], config["d_ff"], dropout) for _ in range(NUM_LAYERS)
        )
        self.head = nn.Linear(width * self.num_patches, horizon)

    def initial(self, init: InitName = "usable") -> Mapping[str, Start]:
        """PyTorch's defaults, and positions U(-0.02, 0.02)."""
        own: dict[str, Start] = {"positions": Init.uniform(-0.02, 0.02)}
        for name, _ in self.named_parameters():
            if "_norm." in name:
                own[name] = Init.constant(1.0 if name.endswith("weight") else 0.0)
        return default_init(self, own)

    def predict(self, past: Tensor) -> Tensor:
        """[N, L] -> [N, H], in the units of `past`."""
        mean = past.mean(-1, keepdim=True)
        std = (past.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        padded = F.pad((past - mean) / std, (0, STRIDE), mode="replicate")
        patches = padded.unfold(-1, PATCH, STRIDE)
        hidden = self.dropout(self.embedding(patches) + self.positions)
        scores: Tensor | None = None
        for layer in self.layers:
            hidden, scores = layer(hidden, scores)
        forecast: Tensor = self.head(hidden.transpose(1, 2).flatten(1))
        return forecast * std + mean


class PatchTST(Specialised):
    """A patch Transformer (patch 16, stride 8, 3 layers) of each channel, from scratch.

    `size` is the authors': "small" (D = 16) for their small sets, "base" (D = 128) for the others;
    "auto" takes small below 10,000 train rows, which is their choice on every set that they have.
    Lookback 512 (their PatchTST/64) and their step, 1e-4, for which they train 100 epochs.
    """

    name: ClassVar[str] = "patchtst"

    lr: float | None = 1e-4
    context: PositiveInt = 512
    size: Literal["auto", "small", "base"] = "auto"

    def network(self, lookback: int, horizon: int, num_rows: int, seed: int) -> LTSM:
        """Small or base, by the field or by the number of train rows."""
        by_rows = "small" if num_rows < SMALL_BELOW else "base"
        size = by_rows if self.size == "auto" else self.size
        return PatchTransformer(lookback, horizon, **SIZES[size]).drawn(seed)
