"""Chronos-2: patches of context and future in one encoder, whose variables see each other.

Tokens are time, values and their mask; those of the future have no values. A block attends over
time, with rotary positions, then over the variables of a window at each time. Each token of the
future gives 21 quantiles of its patch. State-dict names are those of `chronos-forecasting` (2.3.2),
whose outputs `golden/chronos-2` records.
Call: `sffbench.models.load("chronos", folder).quantiles(past, 64, [0.1, 0.9])`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import _t5
from sffbench.models.base import InitName
from sffbench.models.blocks import Dropout, at_levels, call
from sffbench.models.chronos import Chronos, ResidualBlock, location_scale

if TYPE_CHECKING:
    from sffkernels import Init

PATHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]  # what continues the context of an unroll
REQUIRED = (
    "context_length",
    "input_patch_size",
    "output_patch_size",
    "max_output_patches",
    "quantiles",
)


class Attention(nn.Module):
    """softmax(q k') v, not scaled; q and k are turned by `angles` where there are any."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.heads = (config["num_heads"], config["d_kv"])
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.dropout = config["dropout_rate"]

    def forward(
        self, hidden: Tensor, mask: Tensor | None, angles: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """[M, N, D] -> [M, N, D]; `mask` [M, 1, 1, N] is true where a key may be seen."""
        query, key, value = (
            layer(hidden).unflatten(-1, self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        if angles is not None:
            query, key = (rotate(values, *angles).to(value.dtype) for values in (query, key))
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropped, scale=1.0)
        return call(self.o, mixed.transpose(1, 2).flatten(2))


def rotary(num_tokens: int, width: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of place * base^(-2j/d) for the pairs (j, j + d/2): two [N, d]."""
    pairs = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    place = torch.arange(num_tokens, device=like.device, dtype=torch.float32)
    angle = (place[:, None] * base ** (-pairs / width)).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + d/2) of each head, [M, heads, N, d]."""
    first, second = values.chunk(2, dim=-1)
    return values * cos + torch.cat([-second, first], dim=-1) * sin


class AttentionLayer(_t5.SubLayer):
    """h + dropout(attention(norm h))."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.self_attention = Attention(config)

    def forward(self, hidden: Tensor, *context: Any) -> Tensor:
        return hidden + call(self.dropout, self.self_attention(self.layer_norm(hidden), *context))


class FeedForwardLayer(_t5.SubLayer):
    """h + dropout(mlp(norm h))."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.mlp = _t5.FeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + call(self.dropout, self.mlp(self.layer_norm(hidden)))


class Block(nn.Module):
    """Attention over time, attention over the variables, the map; under the key `layer`."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.layer = nn.ModuleList(
            [AttentionLayer(config), AttentionLayer(config), FeedForwardLayer(config)]
        )

    def forward(
        self, hidden: Tensor, over_time: tuple[Any, ...], over_variables: Tensor | None, size: int
    ) -> Tensor:
        """[B * C, N, D] -> [B * C, N, D], `size` = C."""
        hidden = self.layer[0](hidden, *over_time)
        num_tokens = hidden.shape[1]
        turned = hidden.unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)  # [B * N, C, D]
        turned = self.layer[1](turned, over_variables)
        hidden = turned.unflatten(0, (-1, num_tokens)).transpose(1, 2).flatten(0, 1)
        return call(self.layer[2], hidden)


class Encoder(nn.Module):
    """The blocks and a last norm: [B * C, N, D] -> [B * C, N, D]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.block = nn.ModuleList(Block(config) for _ in range(config["num_layers"]))
        self.final_layer_norm = nn.RMSNorm(config["d_model"], eps=config["layer_norm_epsilon"])
        self.dropout = Dropout(config["dropout_rate"])
        self.rope = (config["d_kv"], float(config.get("rope_theta", 10_000.0)))

    def forward(self, embedded: Tensor, observed: Tensor, size: int) -> Tensor:
        """`observed` [B * C, N] bool: the tokens that others may see."""
        over_time, over_variables = None, None
        if not bool(observed.all()):
            over_time = observed[:, None, None, :]
            grouped = observed.unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)
            # Where no variable may be seen, nobody reads the result: any mask but an empty one.
            over_variables = (grouped | ~grouped.any(1, keepdim=True))[:, None, None, :]
        angles = rotary(embedded.shape[1], *self.rope, like=embedded)
        hidden = self.dropout(embedded)
        for block in self.block:
            hidden = block(hidden, (over_time, angles), over_variables, size)
        return call(self.dropout, self.final_layer_norm(hidden))


class Chronos2(Chronos):
    """Chronos-2: z = arsinh((x - loc) / scale), one pass for context and future, 21 quantiles.

    loc and scale are Bolt's. The variables of a window are one group, as the authors' API takes a
    series of several: they see each other, windows do not. The forecast is the 0.5 quantile. As
    many patches of the future are encoded as the horizon needs, and they see each other too: a
    longer horizon changes the first steps. A longer lookback is cut on the left, a shorter one left
    as it is, and filled up to whole patches with missing values.

    Beyond the largest number of patches nine quantile paths continue the context, each of them a
    window of its own, and the quantiles of all their forecasts (9 * 21), weighted by the share of
    probability that each stands for, are the next block. Levels between the trained ones are
    interpolated, those outside are the outermost. There are quantiles only: no samples are drawn.
    """

    mixes_channels = True

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        settings = dict(config.get("chronos_config") or {})
        if absent := [key for key in REQUIRED if key not in settings]:
            raise InputError(f"chronos: chronos_config lacks {', '.join(absent)}")
        patch = settings["input_patch_size"]
        for key in ("output_patch_size", "input_patch_stride"):
            if settings.get(key, patch) != patch:
                raise InputError(
                    f"chronos: {key}={settings[key]} is not supported, allowed: {patch}, "
                    "the input_patch_size"
                )
        if config.get("d_kv", 2) % 2:
            raise InputError(f"chronos: d_kv={config['d_kv']} must be even")
        return settings | {"prediction_length": patch * settings["max_output_patches"]}

    def _build(self) -> None:
        width = self.t5["d_model"]
        self.patch = self.settings["input_patch_size"]
        self.levels = list(self.settings["quantiles"])
        self.register = bool(self.settings.get("use_reg_token", False))
        self.curved = bool(self.settings.get("use_arcsinh", False))
        self.clock = float(self.settings.get("time_encoding_scale") or self.context)
        self.shared = nn.Embedding(1 + self.register, width)  # padding, and what closes a context
        self.encoder = Encoder(self.t5)
        self.input_patch_embedding = ResidualBlock(3 * self.patch, width, self.t5)
        out = len(self.levels) * self.patch
        self.output_patch_embedding = ResidualBlock(width, out, self.t5)

    def normed(self, values: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """z of values [..., L]."""
        scaled = (values - loc) / scale
        return scaled.arcsinh() if self.curved else scaled

    def tokens(self, scaled: Tensor, seen: Tensor, start: int) -> Tensor:
        """Whole patches of z [M, N * P], the first at time `start` -> embedded [M, N, D]."""
        time = torch.arange(start, start + scaled.shape[1], device=scaled.device) / self.clock
        parts = (time.to(scaled).expand_as(scaled), scaled * seen, seen)
        patches = torch.cat([part.unflatten(1, (-1, self.patch)) for part in parts], dim=-1)
        return call(self.input_patch_embedding, patches)

    def encode(
        self, scaled: Tensor, seen: Tensor, known: Tensor, given: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Hidden [M, N, D] of context, closing token and future, and who of them may be seen.

        Shapes: context `scaled` and its mask `seen` [M, L]; future `known`, in z, and its mask
        `given` [M, F * P], all zeros where nothing is known of it. M = B * C, `size` = C.
        """
        missing = -scaled.shape[1] % self.patch
        scaled, seen = F.pad(scaled, (missing, 0)), F.pad(seen, (missing, 0))
        embedded = [self.tokens(scaled, seen, -scaled.shape[1])]
        observed = seen.unflatten(1, (-1, self.patch)).sum(-1) > 0
        if self.register:
            embedded.append(self.shared.weight[1:].expand(len(scaled), 1, -1))
        embedded.append(self.tokens(known, given, 0))
        number = self.register + known.shape[1] // self.patch
        observed = F.pad(observed, (0, number), value=True)
        return call(self.encoder, torch.cat(embedded, dim=1), observed, size), observed

    def predict(
        self, past: Tensor, seen: Tensor | None, future: Tensor, given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantiles of z [B, C, Q, F * P], and loc and scale [B, C, 1].

        Shapes: past [B, C, L]; future [B, C, F * P], read where its mask `given` is 1: variables
        whose future is known. The public contract has none.
        """
        num_windows, size = past.shape[:2]
        past = past[..., -self.context :].flatten(0, 1)
        seen = torch.ones_like(past) if seen is None else seen[..., -self.context :].flatten(0, 1)
        loc, scale = location_scale(past, seen)
        known = self.normed(future.flatten(0, 1), loc, scale)
        hidden, _ = self.encode(
            self.normed(past, loc, scale), seen, known, given.flatten(0, 1), size
        )
        out = call(self.output_patch_embedding, hidden[:, -(known.shape[1] // self.patch) :])
        quantiles = out.float().unflatten(-1, (len(self.levels), self.patch)).transpose(1, 2)
        shape = (num_windows, size)
        return (
            quantiles.flatten(2).unflatten(0, shape),
            loc.unflatten(0, shape),
            scale.unflatten(0, shape),
        )

    def _ahead(self, past: Tensor, remaining: int, seen: Tensor | None) -> Tensor:
        """Quantiles of the next whole patches, a block at most: [B, C, L] -> [B, C, Q, F * P]."""
        steps = min(-(-remaining // self.patch) * self.patch, self.block)
        unknown = past.new_zeros(*past.shape[:2], steps)
        quantiles, loc, scale = self.predict(past, seen, unknown, unknown)
        quantiles = quantiles.sinh() if self.curved else quantiles
        return torch.addcmul(loc[..., None], quantiles, scale[..., None])

    def _unrolled(self, past: Tensor, horizon: int, seen: Tensor | None) -> Tensor:
        """Trained quantiles of the whole horizon, [B, C, L] -> [B, C, Q, H]."""
        blocks = [self._ahead(past, horizon, seen)]
        num_paths = len(PATHS)
        weights = torch.outer(shares(PATHS), shares(self.levels)).flatten()
        remaining = horizon - blocks[0].shape[-1]
        if remaining > 0:  # from here on, one window per path
            past = past.repeat_interleave(num_paths, 0)
            seen = None if seen is None else seen.repeat_interleave(num_paths, 0)
        while remaining > 0:
            paths = at_levels(blocks[-1], self.levels, PATHS, dim=2)
            past = torch.cat([past, paths.transpose(1, 2).flatten(0, 1)], dim=-1)
            seen = None if seen is None else F.pad(seen, (0, paths.shape[-1]), value=1.0)
            found = self._ahead(past, remaining, seen).unflatten(0, (-1, num_paths))
            found = found.transpose(1, 2).flatten(2, 3)  # [B, C, paths * Q, F * P]
            blocks.append(weighted_quantile(found, weights, self.levels))
            remaining -= found.shape[-1]
        return torch.cat(blocks, dim=-1)[..., :horizon]

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
        return at_levels(self._unrolled(past, horizon, past_mask), self.levels, levels, dim=2)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over blocks of the authors' loss, each block given the true values before it."""
        series = torch.cat([past, future], dim=-1)
        masks = [
            torch.ones_like(values) if mask is None else mask.to(values.dtype)
            for values, mask in ((past, past_mask), (future, future_mask))
        ]
        seen = torch.cat(masks, dim=-1)
        series = series.masked_fill(seen == 0, 0.0)
        losses = []
        for border in range(past.shape[-1], series.shape[-1], self.block):
            block = slice(border, border + self.block)
            losses.append(
                self.patches_loss(
                    series[..., :border], series[..., block], seen[..., :border], seen[..., block]
                )
            )
        return torch.stack(losses).mean()

    def patches_loss(
        self,
        past: Tensor,
        target: Tensor,
        seen: Tensor | None,
        wanted: Tensor,
        given: Tensor | None = None,
    ) -> Tensor:
        """2 |(t - q)(1[t <= q] - level)| in z: sum over levels, mean over windows and steps.

        Steps count up to whole patches, missing ones as 0. A variable whose future is `given` to
        the network is not scored there. A constant context has deviation 1e-5, upstream's rule,
        and outweighs all others.
        """
        missing = -target.shape[-1] % self.patch
        target, wanted = F.pad(target, (0, missing)), F.pad(wanted, (0, missing))
        given = torch.zeros_like(wanted) if given is None else F.pad(given, (0, missing))
        quantiles, loc, scale = self.predict(past, seen, target, given)
        error = self.normed(target, loc, scale)[:, :, None] - quantiles
        level = torch.tensor(self.levels, device=error.device, dtype=error.dtype)[:, None]
        pinball = 2.0 * (error * ((error <= 0).to(error.dtype) - level)).abs()
        return (pinball * (wanted * (1.0 - given))[:, :, None]).mean(-1).sum(-1).mean()

    def initial(self, init: InitName = "usable") -> dict[str, Init]:
        """T5's rules, all spreads and the gains of norms times the config's factor, published 0.05.

        Linear maps of the residual blocks are N(0, 1 / sqrt(inputs)), their biases 0. `usable`
        takes the factor 1, as for Bolt.
        """
        from sffkernels import Init

        factor = 1.0 if init == "usable" else float(self.t5["initializer_factor"])
        table = {"shared.weight": Init("normal", 0.0, factor)}
        for name, parameter in self.named_parameters():
            if "patch_embedding" in name:
                spread = parameter.shape[-1] ** -0.5
                drawn = Init("normal", 0.0, factor * spread)
                table[name] = drawn if name.endswith("weight") else Init("constant", 0.0)
        return table | _t5.initial(self.encoder, "encoder.", self.t5, factor)


def shares(levels: Sequence[float]) -> Tensor:
    """The probability that each quantile stands for: half-way to its neighbours, in sum 1."""
    edges = torch.tensor([0.0, *levels, 1.0], dtype=torch.float64)
    widths = edges[2:] - edges[:-2]
    return widths / widths.sum()


def weighted_quantile(values: Tensor, weights: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles of weighted values, [B, C, S, H] and [S] -> [B, C, Q, H].

    On lines between the points (weights up to a value, that value) of the sorted values.
    """
    ordered, order = values.movedim(2, -1).sort(-1)
    reached = weights.to(values)[order].cumsum(-1)
    wanted = torch.tensor(levels, device=values.device, dtype=values.dtype)
    wanted = wanted.expand(*reached.shape[:-1], -1).contiguous()
    upper = torch.searchsorted(reached, wanted, right=True).clamp_max(reached.shape[-1] - 1)
    lower = (upper - 1).clamp_min(0)
    below, above = reached.gather(-1, lower), reached.gather(-1, upper)
    share = ((wanted - below) / (above - below).clamp_min(1e-12)).clamp(0.0, 1.0)
    return torch.lerp(ordered.gather(-1, lower), ordered.gather(-1, upper), share).movedim(-1, 2)
