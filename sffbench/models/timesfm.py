"""TimesFM 1.0 and 2.0: a decoder over patches of one variable, mean and quantiles at each patch.

Patches of P values and their padding bits, causal attention without rotary positions, and a head
that gives the next O values after each patch: their mean and their quantiles. 2.0 knows no
positions at all, 1.0 adds sinusoids. State-dict names are those of `timesfm` 1.3.0, whose outputs
`golden/timesfm-2.0` records. TimesFM 2.5, another network, is in `_timesfm_25.py`. Call:
`sffbench.models.load("timesfm", folder).forecast(past, 128)`; read top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models._timesfm_25_inputs import is_25
from sffbench.models._timesfm_inputs import (
    complete,
    interpolated,
    official_names,
    own_names,
    statistics,
)
from sffbench.models._timesfm_presets import PRESETS
from sffbench.models.base import LTSM, InitName
from sffbench.models.blocks import at_levels, call, causal_attention, masked_mean

if TYPE_CHECKING:
    from sffbench.models.twin import Start

LOG2_E = 1.442695041  # 1 / softplus(0), in the authors' digits
BLOCKED = -0.7 * torch.finfo(torch.float32).max  # the authors' score of a pair that is not seen


class ResidualBlock(nn.Module):
    """W_o silu(W_h x) + W_r x, all three with biases."""

    def __init__(self, inputs: int, inner: int, outputs: int):
        super().__init__()
        self.hidden_layer = nn.Sequential(nn.Linear(inputs, inner), nn.SiLU())
        self.output_layer = nn.Linear(inner, outputs)
        self.residual_layer = nn.Linear(inputs, outputs)

    def forward(self, values: Tensor) -> Tensor:
        return call(self.output_layer, self.hidden_layer(values)) + call(
            self.residual_layer, values
        )


class Attention(nn.Module):
    """Causal self-attention; dimension d of a query is scaled by softplus(s_d) / (ln 2 sqrt(d))."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_width: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width
        self.scaling = nn.Parameter(torch.empty(head_width))
        self.qkv_proj = nn.Linear(width, (heads + 2 * kv_heads) * head_width)
        self.o_proj = nn.Linear(heads * head_width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """[M, N, D] -> [M, N, D]; `mask` [M, 1, N, N] is added to the scores, None is causal."""
        each = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_width))
        query, key, value = each.split([self.heads, self.kv_heads, self.kv_heads], dim=-2)
        query = query * (LOG2_E * F.softplus(self.scaling)).to(query.dtype)
        if self.heads != self.kv_heads:
            group = self.heads // self.kv_heads
            key, value = key.repeat_interleave(group, -2), value.repeat_interleave(group, -2)
        if mask is None:
            mixed = causal_attention(query, key, value)
        else:
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype))
            mixed = mixed.transpose(1, 2)
        return call(self.o_proj, mixed.flatten(-2))


class FeedForward(nn.Module):
    """h + W_down relu(W_gate LayerNorm(h)) * live, with biases; `live` is 0 at padded patches."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner)
        self.down_proj = nn.Linear(inner, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, hidden: Tensor, live: Tensor | None) -> Tensor:
        change = call(self.down_proj, F.relu(self.gate_proj(self.layer_norm(hidden))))
        return hidden + (change if live is None else change * live)


class Layer(nn.Module):
    """u = h + attention(RMSNorm(h)); feed_forward(u), which adds u itself."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, heads = config["model_dims"], config["num_heads"]
        self.self_attn = Attention(width, heads, config["num_kv_heads"], config["head_dim"])
        self.mlp = FeedForward(width, config["intermediate_size"])
        self.input_layernorm = nn.RMSNorm(width, eps=config["rms_norm_eps"])

    def forward(self, hidden: Tensor, mask: Tensor | None, live: Tensor | None) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), mask)
        return call(self.mlp, hidden, live)


class Stack(nn.Module):
    """The layers, [M, N, D] -> [M, N, D]; no norm follows the last one."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_layers"]))

    def forward(self, hidden: Tensor, absent: Tensor | None) -> Tensor:
        """`absent` [M, N] is 1 at patches of padding alone, which nobody sees."""
        mask = None if absent is None else seen_scores(absent)
        live = None if absent is None else 1.0 - absent[..., None]
        for layer in self.layers:
            hidden = layer(hidden, mask, live)
        return hidden


class TimesFM(LTSM):
    """TimesFM: scale by the first patch, predict the next O values, feed their mean back.

    z = (x - mean) / std of the first patch with at least 3 observed values (population std, 1 where
    it is below the tolerance of 1e-6), for the whole context and for the output: the authors' rule,
    and a flat first patch leaves the context unscaled. A longer lookback is cut on the left; fewer
    values than a whole number of patches are padded there, which the network knows. Missing values
    inside are interpolated between their neighbours, leading ones are padding, a series without any
    value is one of zeros (all as the authors' `forecast`).

    The forecast is the median, or the mean head with `point_forecast_mode="mean"`. Beyond O steps
    the mean is fed back (not the median: the authors' choice), and the context slides. `freq` is
    the authors' frequency class: 0 up to daily, 1 weekly and monthly, 2 slower.
    """

    name = "timesfm"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "probabilistic"})
    head_prefixes = ("horizon_ff_layer.",)
    options = frozenset({"freq", "point_forecast_mode", "use_quantile_loss"})

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[LTSM]:
        """2.5 has a second head, for quantiles alone."""
        if is_25(config):
            from sffbench.models._timesfm_25 import TimesFM25

            return TimesFM25
        return cls

    @classmethod
    def own_names(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the `transformers` port become the authors'."""
        return own_names(config)

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(config)
        fields = complete(config)
        self.context, self.patch = fields["context_len"], fields["input_patch_len"]
        self.block, self.levels = fields["output_patch_len"], list(fields["quantiles"])
        self.lookback, self.horizon = lookback or self.context, horizon or self.block
        self.freq, self.fields = fields["freq"], fields
        self.point = 0 if fields["point_forecast_mode"] == "mean" else 1 + self.levels.index(0.5)
        width, inner = fields["model_dims"], fields["intermediate_size"]
        self.input_ff_layer = ResidualBlock(2 * self.patch, inner, width)
        self.freq_emb = nn.Embedding(3, width)
        outputs = self.block * (1 + len(self.levels))
        self.horizon_ff_layer = ResidualBlock(width, inner, outputs)
        self.stacked_transformer = Stack(fields)

    def network(
        self,
        series: Tensor,
        padding: Tensor | None = None,
        freq: Tensor | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Patches [M, N * P], in any units -> O values after each, [M, N, O, 1 + quantiles].

        `padding` [M, N * P] is 1 where there is no value, `freq` [M, 1] the frequency classes.
        `last` asks for the last patch alone, [M, 1, O, 1 + quantiles].
        """
        patches = series.reshape(len(series), -1, self.patch)
        pads = torch.zeros_like(patches) if padding is None else padding.view_as(patches)
        pads = pads.masked_fill(patches == self.fields["pad_val"], 1.0)
        loc, scale = statistics(patches, pads, self.fields["tolerance"])
        normed = (patches - loc[:, None]) / scale[:, None] * (1.0 - pads)
        hidden = self.input_ff_layer(torch.cat([normed, pads], dim=-1))
        absent = None if padding is None else pads.amin(-1)
        if self.fields["use_positional_embedding"]:
            hidden = hidden + positions(hidden, absent)
        if freq is None:
            freq = torch.full((1, 1), self.freq, device=series.device)
        hidden = self.stacked_transformer(hidden + self.freq_emb(freq), absent)
        outputs = self.horizon_ff_layer(hidden[:, -1:] if last else hidden)
        outputs = outputs.reshape(*outputs.shape[:2], self.block, -1)
        return torch.addcmul(loc[..., None, None], outputs, scale[..., None, None])

    def unroll(
        self,
        series: Tensor,
        padding: Tensor | None,
        horizon: int,
        freq: Tensor | None = None,
        *,
        block: int | None = None,
        context: int | None = None,
    ) -> Tensor:
        """The H values after [M, L] series, [M, H, 1 + quantiles]: mean, then the levels.

        Each step takes `block` values (default O) from the last `context` ones (the config's).
        """
        blocks: list[Tensor] = []
        while sum(part.shape[1] for part in blocks) < horizon:
            window, pads = self._fit(series, padding, context or self.context)
            blocks.append(self.network(window, pads, freq, last=True)[:, 0, :block])
            series = torch.cat([series, blocks[-1][..., 0]], dim=1)
            padding = None if padding is None else F.pad(padding, (0, blocks[-1].shape[1]))
        return torch.cat(blocks, dim=1)[:, :horizon]

    def _fit(
        self, series: Tensor, padding: Tensor | None, context: int
    ) -> tuple[Tensor, Tensor | None]:
        """The last `context` values, padded on the left to whole patches."""
        series = series[:, -context:]
        missing = -series.shape[1] % self.patch
        if padding is None and missing == 0:
            return series, None
        padding = torch.zeros_like(series) if padding is None else padding[:, -context:]
        return F.pad(series, (missing, 0)), F.pad(padding, (missing, 0), value=1.0)

    def _outputs(self, past: Tensor, horizon: int, past_mask: Tensor | None) -> Tensor:
        """[B, C, L] -> [B, C, H, 1 + quantiles]."""
        series, padding = past.flatten(0, 1), None
        if past_mask is not None:
            series, padding = interpolated(series, past_mask.flatten(0, 1))
        return self.unroll(series, padding, horizon).reshape(*past.shape[:2], horizon, -1)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._outputs(past, horizon, past_mask)[..., self.point]

    def _quantiles(
        self,
        past: Tensor,
        horizon: int,
        levels: Sequence[float],
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The network's own levels, lines between them, and the outermost ones beyond them."""
        outputs = self._outputs(past, horizon, past_mask)[..., 1:]
        return at_levels(outputs.movedim(-1, 2), self.levels, levels, dim=2)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean (mean head - x)^2 + sum over the levels of mean 2 * pinball, in units of the input.

        The official fine-tuning loss with its `use_quantile_loss`, which is off there and on here:
        the squared error alone would not train the median that is forecast. Official fine-tuning
        takes exactly O steps; a longer horizon is scored as it is forecast, through the recursion.
        """
        return self.score(self._outputs(past, future.shape[-1], past_mask), future, future_mask)

    def score(self, outputs: Tensor, future: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of outputs [..., H, 1 + quantiles] against a future [..., H]."""
        error = future[..., None] - outputs
        loss = masked_mean(error[..., 0].square(), mask)
        if not self.fields["use_quantile_loss"]:
            return loss
        level = error.new_tensor(self.levels)
        pinball = torch.maximum(level * error[..., 1:], (level - 1.0) * error[..., 1:])
        return loss + 2.0 * masked_mean(pinball.sum(-1), mask)

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names of the `transformers` port become the authors'; q, k and v are joined."""
        return official_names(state)

    def initial(self, init: InitName = "usable") -> Mapping[str, Start]:
        """PyTorch's defaults for linear maps and LayerNorm, N(0, 1) for the frequency classes.

        The authors' RMSNorm gains start at 0 ("published"), which cuts attention off; "usable" has
        1. Their query scales are uninitialised memory; both have 0, which scales by 1 / sqrt(d).
        """
        from sffkernels import Init

        def drawn(name: str) -> Init:
            module = self.get_submodule(name.rpartition(".")[0])
            if isinstance(module, nn.Embedding):
                return Init("normal", 0.0, 1.0)
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                return Init("uniform", -bound, bound)
            gain = init == "usable" or isinstance(module, nn.LayerNorm)
            return Init("constant", 1.0 if gain and name.endswith("weight") else 0.0)

        return {name: drawn(name) for name, _ in self.named_parameters()}


def positions(hidden: Tensor, absent: Tensor | None) -> Tensor:
    """[sin, cos] of place * 10000^(-k / (D/2 - 1)), counted from the first patch that is there."""
    num_patches, half = hidden.shape[1], hidden.shape[2] // 2
    rate = torch.arange(half, device=hidden.device) * (-math.log(10_000.0) / max(half - 1, 1))
    place = torch.arange(num_patches, device=hidden.device)[None]
    if absent is not None:
        place = (place - (absent == 0).int().argmax(1)[:, None]) % num_patches
    angle = place[..., None] * rate.exp()
    return torch.cat([angle.sin(), angle.cos()], dim=-1).to(hidden)


def seen_scores(absent: Tensor) -> Tensor:
    """[M, 1, N, N]: 0 where a patch sees another, else a large negative score.

    A patch of padding sees nobody and is seen by nobody: all its scores are equal, so that it takes
    the mean of all patches, as upstream, and no row is left without a weight.
    """
    num_patches = absent.shape[1]
    ones = torch.ones(num_patches, num_patches, dtype=torch.bool, device=absent.device)
    blocked = ones.triu(1) | (absent[:, None] > 0) | (absent[:, :, None] > 0)
    return torch.zeros_like(blocked, dtype=torch.float32).masked_fill(blocked, BLOCKED)[:, None]
