"""Timer 1.0 (`Timer_forecast_1.0.ckpt` and its siblings): the network that SFF fine-tuned.

Tokens of P values with fixed sinusoidal positions, causal attention, a GELU feed-forward kept as
1x1 convolutions, LayerNorm after each residual sum, one linear head with bias; token i predicts
token i + 1. State-dict names are those of the authors' `TimerBackbone`, whose outputs
`golden/timer_legacy` records. Call: `sffbench.models.create("timer:1.0", e_layers=2, d_model=128,
d_ff=256)`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import checkpoint
from sffbench.models.base import LTSM, InitName, default_init
from sffbench.models.blocks import (
    Dropout,
    call,
    causal_attention,
    location_scale,
    masked_mean,
    next_tokens,
    pointwise,
    sinusoids,
)
from sffbench.models.timer import Timer

if TYPE_CHECKING:
    from sffbench.models.twin import Start

POSITIONS = "patch_embedding.position_embedding.pe"
# The names by which the authors' wrapper knows its backbone and, again, the parts of it.
ALIASES = {"backbone.": "", "enc_embedding.": "patch_embedding."}
REQUIRED = ("patch_len", "d_model", "d_ff", "e_layers", "n_heads")


class Embedding(nn.Module):
    """Tokens [M, N, P] -> W x + fixed positions, [M, N, D]."""

    def __init__(self, patch: int, width: int, dropout: float):
        super().__init__()
        self.value_embedding = nn.Linear(patch, width, bias=False)
        self.position_embedding = nn.Module()
        # 5000 places as published; a buffer, and yet part of the published state dict.
        self.position_embedding.register_buffer("pe", torch.empty(1, 5000, width))
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        places = self.position_embedding.get_buffer("pe")[:, : tokens.shape[1]]
        return call(self.dropout, self.value_embedding(tokens) + places)


class Attention(nn.Module):
    """Causal self-attention, all four maps with biases, dropout on the weights."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = (heads, width // heads)
        self.dropout = Dropout(dropout)
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.out_projection = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query = self.query_projection(hidden).unflatten(-1, self.heads)
        key = self.key_projection(hidden).unflatten(-1, self.heads)
        value = self.value_projection(hidden).unflatten(-1, self.heads)
        dropped = self.dropout.p if self.training else 0.0
        mixed = causal_attention(query, key, value, dropped)
        return call(self.out_projection, mixed.flatten(-2))


class Layer(nn.Module):
    """u = LN1(h + attention(h)); LN2(u + conv2(act(conv1(u)))), dropout after each map."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, dropout = config["d_model"], config.get("dropout", 0.1)
        self.attention = Attention(width, config["n_heads"], dropout)
        self.conv1 = nn.Conv1d(width, config["d_ff"], kernel_size=1)
        self.conv2 = nn.Conv1d(config["d_ff"], width, kernel_size=1)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.act = F.relu if config.get("activation") == "relu" else F.gelu
        self.dropout = Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.norm1(hidden + self.dropout(self.attention(hidden)))
        inner = self.dropout(self.act(pointwise(self.conv1, hidden)))
        return call(self.norm2, hidden + self.dropout(pointwise(self.conv2, inner)))


class Decoder(nn.Module):
    """The layers and a last norm, [M, N, D] -> [M, N, D]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.attn_layers = nn.ModuleList(Layer(config) for _ in range(config["e_layers"]))
        self.norm = nn.LayerNorm(config["d_model"])

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.attn_layers:
            hidden = layer(hidden)
        return call(self.norm, hidden)


class TimerLegacy(Timer):
    """Timer 1.0: the window slides by one token per step and is normalised anew each time.

    z = (x - mean) / sqrt(population variance + 1e-5). The context is cut on the left to whole
    tokens; fewer values than one token are refused. With a mask, mean and variance are those of the
    observed values and missing ones enter the network as 0 (the authors' rule for imputation).
    """

    capabilities = frozenset({"forecast", "zero-shot", "imputation", "anomaly"})
    head_prefixes = ("proj.",)
    options = frozenset({"dropout"})
    prefixes = ("module.", "model.", "timer.")

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        LTSM.__init__(self, config)
        if absent := [key for key in REQUIRED if key not in config]:
            raise InputError(f"timer: config.json lacks {', '.join(absent)}")
        if config.get("activation", "gelu") not in {"gelu", "relu"}:
            raise InputError(
                f"timer: activation={config['activation']!r} is not supported, "
                "allowed: 'gelu', 'relu'"
            )
        width, heads = config["d_model"], config["n_heads"]
        if width % heads or width % 2:
            raise InputError(f"timer: d_model={width} must be even, a multiple of n_heads={heads}")
        self.token = config["patch_len"]
        self.lookback = lookback or 7 * self.token  # the authors' 672
        self.horizon = horizon or self.token
        self.patch_embedding = Embedding(self.token, width, config.get("dropout", 0.1))
        self.decoder = Decoder(config)
        self.proj = nn.Linear(width, self.token)

    def network(self, series: Tensor, cache: Any = None) -> Tensor:
        """Normalised tokens [M, N * P] -> the token after each, [M, N * P]."""
        tokens = series.reshape(len(series), -1, self.token)
        return call(self.proj, self.decoder(self.patch_embedding(tokens))).flatten(1)

    def next_values(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Place i predicts place i + P, in the units of `values`: [B, C, L] -> [B, C, L].

        Forecast (its last token), imputation (with `mask`, 1 where observed; the prediction of a
        missing token stands one token earlier) and anomaly detection (errors against what came) all
        read this.
        """
        series, seen = self._tokens(values), None if mask is None else self._tokens(mask)
        predicted = self._predict(series, *location_scale(series, seen), seen)
        return predicted.reshape(*values.shape[:2], -1)

    def _predict(self, series: Tensor, mean: Tensor, std: Tensor, seen: Tensor | None) -> Tensor:
        normed = (series - mean) / std
        return torch.addcmul(mean, self.network(normed if seen is None else normed * seen), std)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        window, seen = self._tokens(past), None if past_mask is None else self._tokens(past_mask)
        blocks: list[Tensor] = []
        while len(blocks) * self.token < horizon:
            predicted = self._predict(window, *location_scale(window, seen), seen)
            blocks.append(predicted[:, -self.token :])
            window = torch.cat([window[:, self.token :], blocks[-1]], dim=1)
            seen = (
                None if seen is None else F.pad(seen[:, self.token :], (0, self.token), value=1.0)
            )
        return torch.cat(blocks, dim=1)[:, :horizon].reshape(*past.shape[:2], horizon)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over all predicted values of (forecast - x)^2 in the units of the input.

        The official fine-tuning loss (`--use_ims`); statistics are those of the context.
        """
        past, future = self._tokens(past), future.flatten(0, 1)
        inputs, target = next_tokens(past, future, self.token)
        masks = None
        if past_mask is not None or future_mask is not None:
            seen = torch.ones_like(past) if past_mask is None else self._tokens(past_mask)
            wanted = torch.ones_like(future) if future_mask is None else future_mask.flatten(0, 1)
            masks = next_tokens(seen.to(past), wanted.to(past), self.token)
        mean, std = location_scale(past, masks[0][:, : past.shape[1]] if masks else None)
        predicted = self._predict(inputs, mean, std, masks[0] if masks else None)
        predicted = predicted[:, : target.shape[1]]
        if masks is None:
            return F.mse_loss(predicted, target)
        return masked_mean((predicted - target).square(), masks[1])

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The wrapper's aliases are dropped; positions may be fewer than 5000, or none.

        What the authors' wrapper saves holds every tensor twice, as `backbone.*` and under one of
        `ALIASES`. Positions follow from a formula.
        """
        state = dict(state)
        for alias, name in ALIASES.items():
            found = [key for key in state if key.startswith(alias)]
            checkpoint.merge(state, {key: name + key.removeprefix(alias) for key in found})
        positions = state.get(POSITIONS)
        own = self.get_buffer(POSITIONS)
        if positions is None:
            return {**state, POSITIONS: own}
        if positions.ndim == 3 and positions.shape[2] == own.shape[2]:
            self.patch_embedding.position_embedding.register_buffer(
                "pe", torch.empty_like(positions)
            )
        return state

    def reset_buffers(self) -> None:
        """The positions follow from a formula."""
        table = self.get_buffer(POSITIONS)
        table.copy_(sinusoids(*table.shape[1:])[None])

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """PyTorch's defaults, as the authors leave them; the positions are no parameter."""
        return default_init(self)
