"""TimesFM 2.5: rotary positions, norms around each part, running statistics, a second head.

Patches of P values and their padding bits, each scaled by the mean and deviation of all values up
to its end; a head gives the next O values, mean and quantiles, another the quantiles of a longer
stretch at once. State-dict names are those of `timesfm` 3.0.2, whose outputs `golden/timesfm-2.5`
records. Call: `sffbench.models.load("timesfm", folder).forecast(past, 128)`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import _timesfm_25_inputs as inputs
from sffbench.models._timesfm_inputs import interpolated
from sffbench.models.base import InitName, default_init
from sffbench.models.blocks import call, causal_attention, masked_mean
from sffbench.models.timer import Cache, rotate
from sffbench.models.timesfm import LOG2_E, TimesFM

if TYPE_CHECKING:
    from sffbench.models.twin import Start

ROPE_BASE = 10_000.0


class Places(NamedTuple):
    """Where the tokens of one pass stand and what they see.

    `cos` and `sin` [M or 1, N, 1, d] turn queries and keys. Where patches are absent, `seen`
    [M, 1, N, K] is true where a token sees another (and itself), and `live` [M, N, 1, 1] is 0 at
    those tokens; elsewhere both are None, and tokens see all earlier ones.
    """

    cos: Tensor
    sin: Tensor
    seen: Tensor | None
    live: Tensor | None


class ResidualBlock(nn.Module):
    """W_o silu(W_h x) + W_r x, biases in all three or in none."""

    def __init__(self, given: int, inner: int, out: int, bias: bool):
        super().__init__()
        self.hidden_layer = nn.Linear(given, inner, bias=bias)
        self.output_layer = nn.Linear(inner, out, bias=bias)
        self.residual_layer = nn.Linear(given, out, bias=bias)

    def forward(self, values: Tensor) -> Tensor:
        change = call(self.output_layer, F.silu(self.hidden_layer(values)))
        return change + call(self.residual_layer, values)


class RMSNorm(nn.Module):
    """scale * x / sqrt(mean x^2 + eps), in float32 or more."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, values: Tensor) -> Tensor:
        values = values.to(self.scale)
        return F.rms_norm(values, self.scale.shape, self.scale, self.eps)


class PerDimScale(nn.Module):
    """x_d softplus(s_d) / ln 2; attention itself divides by sqrt(d)."""

    def __init__(self, width: int):
        super().__init__()
        self.per_dim_scale = nn.Parameter(torch.empty(width))

    def forward(self, values: Tensor) -> Tensor:
        return values * (LOG2_E * F.softplus(self.per_dim_scale))


class Attention(nn.Module):
    """Causal self-attention: queries and keys are turned, then normed, the queries then scaled."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.shape = (3, heads, width // heads)
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_ln = RMSNorm(width // heads, eps)
        self.key_ln = RMSNorm(width // heads, eps)
        self.per_dim_scale = PerDimScale(width // heads)

    def forward(
        self, hidden: Tensor, places: Places, earlier: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[M, N, D] -> [M, N, D], and the keys and values so far."""
        query, key, value = self.qkv_proj(hidden).unflatten(-1, self.shape).unbind(-3)
        query = self.query_ln(rotate(query, places.cos, places.sin))
        query = self.per_dim_scale(query).to(value.dtype)
        key = self.key_ln(rotate(key, places.cos, places.sin)).to(value.dtype)
        if earlier is not None:
            key, value = torch.cat([earlier[0], key], 1), torch.cat([earlier[1], value], 1)
        mixed = attended(query, key, value, places)
        return call(self.out, mixed.flatten(-2)), (key, value)


def attended(query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor:
    """Causal attention over the patches that are there, [M, N, heads, d]; 0 for those that are not.

    A key-less row is 0 in torch's kernels too, but not on all devices, so each token sees itself.
    """
    if places.seen is None or places.live is None:
        return causal_attention(query, key, value)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, places.seen).transpose(1, 2)
    return mixed * places.live.to(mixed.dtype)


class Layer(nn.Module):
    """u = h + norm(attention(norm(h))); u + norm(W_1 silu(W_0 norm(u)))."""

    def __init__(self, fields: Mapping[str, Any]):
        super().__init__()
        width, inner, eps = (
            fields[key] for key in ("model_dims", "intermediate_size", "rms_norm_eps")
        )
        self.pre_attn_ln = RMSNorm(width, eps)
        self.post_attn_ln = RMSNorm(width, eps)
        self.attn = Attention(width, fields["num_heads"], eps)
        self.pre_ff_ln = RMSNorm(width, eps)
        self.post_ff_ln = RMSNorm(width, eps)
        self.ff0 = nn.Linear(width, inner, bias=False)
        self.ff1 = nn.Linear(inner, width, bias=False)

    def forward(
        self, hidden: Tensor, places: Places, earlier: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, earlier = self.attn(self.pre_attn_ln(hidden), places, earlier)
        hidden = hidden + self.post_attn_ln(mixed)
        change = call(self.ff1, F.silu(self.ff0(self.pre_ff_ln(hidden))))
        return hidden + self.post_ff_ln(change), earlier


class TimesFM25(TimesFM):
    """TimesFM 2.5: scale each patch by what came up to its end, feed the median back.

    z = (x - mean_i) / std_i of all observed values up to the end of patch i (population std, 1
    where it is below 1e-6); the values after patch i are y * std_i + mean_i. A longer lookback is
    cut on the left to `context_limit` values, fewer than a whole number of patches are padded
    there. Missing values inside are interpolated, leading ones are padding (the authors' rule).

    The forecast is the median. Beyond O steps it is fed back as new patches, which continue the
    statistics and see the keys of all earlier ones: the context grows, where 2.0's slides.

    Options are those of the authors' `ForecastConfig`, with its defaults. On:
    `force_flip_invariance`, (f(x) - f(-x)) / 2 with the quantiles of f(-x) in reverse, at twice the
    cost; `infer_is_positive`, no forecast below 0 for a context without negative values. Off:
    `use_continuous_quantile_head`, quantiles around the median from the second head, for a horizon
    up to its length; `fix_quantile_crossing`; `normalize_inputs`, scale the whole context first.
    """

    head_prefixes = ("output_projection_",)
    options = frozenset(inputs.OPTIONS)
    unused: ClassVar[tuple[str, ...]] = ("output_projection_quantiles.*",)

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super(TimesFM, self).__init__(config)
        self.fields = fields = inputs.complete(config)
        self.context, self.patch = fields["context_len"], fields["input_patch_len"]
        self.block, self.levels = fields["output_patch_len"], list(fields["quantiles"])
        self.lookback, self.horizon = lookback or self.context, horizon or self.block
        self.point = fields["decode_index"]
        if fields["use_continuous_quantile_head"]:
            self.unused = ()  # type: ignore[misc]
        self.head_width = fields["model_dims"] // fields["num_heads"]
        self.tokenizer = ResidualBlock(*fields["tokenizer"])
        self.stacked_xf = nn.ModuleList(Layer(fields) for _ in range(fields["num_layers"]))
        self.output_projection_point = ResidualBlock(*fields["output_projection_point"])
        self.output_projection_quantiles = ResidualBlock(*fields["output_projection_quantiles"])

    @classmethod
    def own_names(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the `transformers` port become the authors' nested ones."""
        return inputs.nested(config)

    def network(  # type: ignore[override]  # 2.5 knows no frequency classes
        self, series: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """Patches [M, N * P], in any units -> O values after each, [M, N, O, 1 + quantiles].

        `padding` [M, N * P] is 1 where there is no value; a patch whose last place is, is absent.
        """
        return self._values(self.output_projection_point, *self._states(series, padding, []))

    def _states(
        self, series: Tensor, padding: Tensor | None, cache: Cache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden [M, N, D], mean and std [M, N] of the patches whose keys are not in `cache`."""
        patches = series.reshape(len(series), -1, self.patch)
        pads = torch.zeros_like(patches) if padding is None else padding.view_as(patches)
        loc, scale = inputs.running_statistics(patches, pads)
        absent = None if padding is None else pads[..., -1] > 0
        start = cache[0][0].shape[1] if cache else 0
        patches, pads, loc, scale = (part[:, start:] for part in (patches, pads, loc, scale))
        divisor = scale.masked_fill(scale < inputs.TOLERANCE, 1.0)
        normed = (patches - loc[..., None]) / divisor[..., None] * (1.0 - pads)
        hidden = self.tokenizer(torch.cat([normed, pads], dim=-1))
        places = places_of(start, hidden.shape[1], self.head_width, absent, hidden)
        for index, layer in enumerate(self.stacked_xf):
            hidden, seen = layer(hidden, places, cache[index] if start else None)
            cache[index : index + 1] = [seen]
        return hidden, loc, scale

    def _values(self, head: nn.Module, hidden: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """[M, N, D] -> [M, N, steps, 1 + quantiles], in the units of the series."""
        outputs = call(head, hidden).unflatten(-1, (-1, 1 + len(self.levels)))
        return torch.addcmul(loc[..., None, None], outputs, scale[..., None, None])

    def unroll(  # type: ignore[override]
        self, series: Tensor, padding: Tensor | None, horizon: int
    ) -> tuple[Tensor, Tensor | None]:
        """The H values after [M, N * P] series, [M, H, 1 + quantiles]: mean, then the levels.

        With `use_continuous_quantile_head` also what that head says after the last patch.
        """
        cache: Cache = []
        last = [part[:, -1:] for part in self._states(series, padding, cache)]
        spread = None
        if self.fields["use_continuous_quantile_head"]:
            spread = self._values(self.output_projection_quantiles, *last)[:, 0, :horizon]
        blocks = [self._values(self.output_projection_point, *last)[:, 0]]
        while len(blocks) * self.block < horizon:
            series = torch.cat([series, blocks[-1][..., self.point]], dim=1)
            padding = None if padding is None else F.pad(padding, (0, self.block))
            last = [part[:, -1:] for part in self._states(series, padding, cache)]
            blocks.append(self._values(self.output_projection_point, *last)[:, 0])
        return torch.cat(blocks, dim=1)[:, :horizon], spread

    def _window(
        self, past: Tensor, horizon: int, past_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, C, L] -> the context [M, N * P] and its padding, None where there is none."""
        limit = self.fields["output_quantile_len"]
        if self.fields["use_continuous_quantile_head"] and horizon > limit:
            raise InputError(
                f"timesfm: use_continuous_quantile_head reaches {limit} steps, horizon is {horizon}"
            )
        series, padding = past.flatten(0, 1), None
        if past_mask is not None:
            series, padding = interpolated(series, past_mask.flatten(0, 1))
        return self._fit(series, padding, self.context)

    def _outputs(self, past: Tensor, horizon: int, past_mask: Tensor | None) -> Tensor:
        """[B, C, L] -> [B, C, H, 1 + quantiles]; the options are applied in the authors' order."""
        series, padding = self._window(past, horizon, past_mask)
        positive = (series >= 0).all(1)[:, None, None]
        loc, scale = series.new_zeros(len(series), 1), series.new_ones(len(series), 1)
        if self.fields["normalize_inputs"]:
            loc, scale = whole_statistics(series, padding)
        outputs = self._flipped((series - loc) / scale, padding, horizon)
        if self.fields["fix_quantile_crossing"]:
            outputs = uncrossed(outputs, self.point)
        outputs = torch.addcmul(loc[..., None], outputs, scale[..., None])
        if self.fields["infer_is_positive"]:
            outputs = torch.where(positive, outputs.clamp_min(0.0), outputs)
        return outputs.reshape(*past.shape[:2], horizon, -1)

    def _flipped(self, series: Tensor, padding: Tensor | None, horizon: int) -> Tensor:
        """The outputs, averaged with those of the series upside down where that is asked for."""
        if not self.fields["force_flip_invariance"]:
            return self._around(*self.unroll(series, padding, horizon))
        both = None if padding is None else padding.repeat(2, 1)
        outputs, spread = self.unroll(torch.cat([series, -series]), both, horizon)
        return self._around(turned(outputs), None if spread is None else turned(spread))

    def _around(self, outputs: Tensor, spread: Tensor | None) -> Tensor:
        """The second head's quantiles, moved to the median of the first; its mean is not used."""
        if spread is None:
            return outputs
        point = slice(self.point, self.point + 1)
        moved = spread[..., 1:] - spread[..., point] + outputs[..., point]
        return torch.cat([outputs[..., :1], moved], dim=-1)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean (median - x)^2 + mean pinball of the levels, in the units of the input.

        Ours: no official loss of 2.5 is published. Without the flip and the floor at 0, which cost
        a pass and gradients; a horizon beyond O steps is scored through the recursion.
        """
        outputs = self._around(
            *self.unroll(*self._window(past, future.shape[-1], past_mask), future.shape[-1])
        )
        return self.score(outputs.reshape(*future.shape, -1), future, future_mask)

    def score(self, outputs: Tensor, future: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of outputs [..., H, 1 + quantiles] against a future [..., H]."""
        error = future[..., None] - outputs
        level = error.new_tensor(self.levels)
        pinball = torch.maximum(level * error[..., 1:], (level - 1.0) * error[..., 1:])
        return masked_mean(error[..., self.point].square() + pinball.mean(-1), mask)

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names of the `transformers` port become the authors'; q, k and v are joined."""
        return inputs.official_names(state)

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """PyTorch's defaults for linear maps; query scales 0, which scale by 1 / sqrt(d).

        The authors' norm gains start at 0 ("published"), which cuts every layer off; "usable" has
        1.
        """
        from sffkernels import Init

        gain = Init("constant", 1.0 if init == "usable" else 0.0)
        given = {
            name: Init("constant", 0.0) if name.endswith("per_dim_scale") else gain
            for name, parameter in self.named_parameters()
            if name.endswith("scale")
        }
        return default_init(self, given)


def places_of(
    start: int, num_tokens: int, width: int, absent: Tensor | None, like: Tensor
) -> Places:
    """The places of N tokens after `start` earlier ones; `absent` [M, start + N] are not there.

    Positions count from the first patch that is there. Dimension j turns with j + d/2.
    """
    place = torch.arange(start, start + num_tokens, device=like.device)
    half = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    if absent is None:
        position, seen, live = place[None], None, None
    else:
        key = torch.arange(start + num_tokens, device=like.device)
        first = absent.sum(1)[:, None]  # absent patches lead
        position = place[None] - first
        known = (key <= place[:, None]) & (key >= first[:, None])
        seen = (known | (key == place[:, None]))[:, None]  # no row without a weight
        live = (place >= first)[..., None, None]
    angle = (position[..., None] * ROPE_BASE ** (-half / width)).repeat(1, 1, 2)[:, :, None]
    return Places(angle.cos(), angle.sin(), seen, live)


def turned(outputs: Tensor) -> Tensor:
    """(f(x) - f(-x)) / 2 of outputs for x, then -x: [2 M, H, 1 + Q] -> [M, H, 1 + Q].

    The level q of -x is the level 1 - q of x, so the quantiles of f(-x) come in reverse.
    """
    upright, flipped = outputs.chunk(2)
    flipped = torch.cat([flipped[..., :1], flipped[..., 1:].flip(-1)], dim=-1)
    return (upright - flipped) / 2


def uncrossed(outputs: Tensor, point: int) -> Tensor:
    """Levels below the median are at most their upper neighbour, those above at least the lower."""
    below = outputs[..., 1 : point + 1].flip(-1).cummin(-1).values.flip(-1)
    above = outputs[..., point:].cummax(-1).values[..., 1:]
    return torch.cat([outputs[..., :1], below, above], dim=-1)


def whole_statistics(series: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and unbiased std of the observed values, [M, 1] each; 1 where it is below 1e-6."""
    seen = torch.ones_like(series) if padding is None else 1.0 - padding
    count = seen.sum(1, keepdim=True)
    loc = (series * seen).sum(1, keepdim=True) / count
    squares = ((series - loc) * seen).square().sum(1, keepdim=True)
    scale = (squares / (count - 1.0).clamp_min(1.0)).sqrt()
    return loc, scale.masked_fill(scale < inputs.TOLERANCE, 1.0)
