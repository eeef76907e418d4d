"""MOIRAI 2: a decoder over patches, nine quantiles of the next four patches out of each token.

Tokens are values and their mask; a token sees all variables up to its own time, and the layers are
those of 1.x. There is one patch size, no mask token and no mixture. State-dict names are those of
`uni2ts` (2.0.0), whose outputs `golden/moirai2` records.
Call: `sffbench.models.load("moirai", folder).quantiles(past, 96, [0.1, 0.9])`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models._moirai_layers import Encoder
from sffbench.models._moirai_packing import Packed, carried, pack
from sffbench.models.base import LTSM
from sffbench.models.blocks import at_levels, call, quantile
from sffbench.models.moirai import Moirai, num_heads

REQUIRED = ("d_model", "d_ff", "num_layers", "patch_size")
DEFAULTS: dict[str, Any] = {
    "num_predict_token": 1,
    "quantile_levels": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    "attn_dropout_p": 0.0,
    "dropout_p": 0.0,
    "scaling": True,
}


class ResidualBlock(nn.Module):
    """W_o silu(W_h x) + W_r x, biases everywhere: [..., D_in] -> [..., D_out]."""

    def __init__(self, given: int, inner: int, out: int):
        super().__init__()
        self.hidden_layer = nn.Linear(given, inner)
        self.output_layer = nn.Linear(inner, out)
        self.residual_layer = nn.Linear(given, out)

    def forward(self, values: Tensor) -> Tensor:
        inner = F.silu(self.hidden_layer(values))
        return call(self.output_layer, inner) + call(self.residual_layer, values)


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names what is missing or cannot be built."""
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"moirai: config.json lacks {', '.join(absent)}")
    full = DEFAULTS | dict(config)
    full["num_heads"] = num_heads(full)
    for key in ("patch_size", "num_predict_token"):
        if not isinstance(full[key], int) or full[key] < 1:
            raise InputError(f"moirai: {key}={full[key]!r} must be an integer >= 1")
    levels = full["quantile_levels"] = list(full["quantile_levels"])
    if not levels or levels != sorted(set(levels)) or not 0.0 < levels[0] <= levels[-1] < 1.0:
        raise InputError(f"moirai: quantile_levels={levels} must increase between 0 and 1")
    return full


class Moirai2(Moirai):
    """MOIRAI 2: z = (x - mean) / sqrt(unbiased variance + 1e-5) per variable, one decoder.

    The forecast is the 0.5 quantile. K patches of P steps follow from one pass, and in it the
    variables of a window see each other: windows are independent, channels are not. A longer
    horizon is unrolled as upstream does: each quantile path continues a copy of the context, which
    is scaled anew with what was generated, and the quantiles of all their forecasts (9 * 9) are the
    next block. Upstream fails there with more than one variable; here each is then forecast alone,
    from its first step on.

    Levels between the trained ones are interpolated, those outside are the outermost; upstream lets
    quantiles cross, and so does this. There are quantiles only: no samples are drawn. A context of
    any length is padded on the left to whole patches, with 0 in its own units (upstream's rule). A
    missing value enters as the last observed one, as in the recorded inputs, and its mask tells so;
    the authors' data pipeline, outside of the network, takes the mean of what came before.
    """

    head_prefixes = ("out_proj.",)
    options = frozenset({"attn_dropout_p", "dropout_p"})
    _sample = LTSM._sample  # 1.x draws, 2 does not

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        LTSM.__init__(self, _complete(config))
        config = self.config
        self.patch: int = config["patch_size"]
        self.levels: list[float] = config["quantile_levels"]
        self.layout = (config["num_predict_token"], len(self.levels), self.patch)
        self.block = config["num_predict_token"] * self.patch
        self.lookback, self.horizon = lookback or 1680, horizon or self.block
        width = config["d_model"]
        self.in_proj = ResidualBlock(2 * self.patch, width, width)
        self.encoder = Encoder(config, causal=True)
        self.out_proj = ResidualBlock(width, width, self.block * len(self.levels))

    def _pack(self, past: Tensor, horizon: int, seen: Tensor | None) -> Packed:
        scaling = self.config["scaling"]
        return pack(past, horizon, self.patch, seen, scaling=scaling, carry=True)

    def hidden(self, packed: Packed) -> Tensor:
        """Packed windows -> hidden [B, T, D]."""
        scaled = (packed.target - packed.loc) / packed.scale
        tokens = torch.cat([scaled, packed.observed.to(scaled)], dim=-1)
        embedded = call(self.in_proj, tokens)
        return call(self.encoder, embedded, packed.time, packed.variate, packed.real)

    def decode(self, hidden: Tensor) -> Tensor:
        """Hidden [..., D] -> quantiles of the next K patches in z, [..., K, Q, P]."""
        return call(self.out_proj, hidden).float().unflatten(-1, self.layout)

    def _next(self, past: Tensor, seen: Tensor | None) -> Tensor:
        """Quantiles of the next block: [B, C, L] -> [B, C, Q, K * P], in the units of `past`."""
        packed = self._pack(past, 0, seen)
        step = -(-past.shape[-1] // self.patch)  # tokens of one variable; its last one predicts
        last = slice(step - 1, None, step)
        quantiles = self.decode(self.hidden(packed)[:, last]).transpose(2, 3).flatten(3)
        loc, scale = packed.loc[:, last, :, None], packed.scale[:, last, :, None]
        return torch.addcmul(loc, quantiles, scale)

    def _unrolled(self, past: Tensor, horizon: int, seen: Tensor | None) -> Tensor:
        """Trained quantiles of the whole horizon, [B, C, L] -> [B, C, Q, H]."""
        if horizon <= self.block:
            return self._next(past, seen)[..., :horizon]
        shape, num_levels = past.shape[:2], len(self.levels)
        past = past.flatten(0, 1)[:, None]
        seen = None if seen is None else seen.flatten(0, 1)[:, None]
        blocks = [self._next(past, seen)[:, 0]]
        past = past.repeat_interleave(num_levels, 0)  # one row per window, variable and path
        seen = None if seen is None else seen.repeat_interleave(num_levels, 0)
        while len(blocks) * self.block < horizon:
            past = torch.cat([past, blocks[-1].reshape(len(past), 1, -1)], dim=-1)
            seen = None if seen is None else F.pad(seen, (0, self.block), value=1.0)
            paths = self._next(past, seen).reshape(len(blocks[0]), -1, self.block)
            blocks.append(quantile(paths, self.levels, dim=1))
        return torch.cat(blocks, dim=-1)[..., :horizon].unflatten(0, shape)

    # -- the contract ----------------------------------------------------------------------------

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

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._quantiles(past, horizon, [0.5], past_mask)[:, :, 0]

    def teacher(
        self, past: Tensor, future: Tensor, past_mask: Tensor | None, future_mask: Tensor | None
    ) -> Packed:
        """The window with its true future as tokens; mean and deviation are those of the past."""
        packed = self._pack(past, future.shape[-1], past_mask)
        masks = [
            torch.ones_like(values, dtype=torch.bool) if mask is None else mask != 0
            for values, mask in ((past, past_mask), (future, future_mask))
        ]
        whole = carried(torch.cat([past, future], dim=-1), torch.cat(masks, dim=-1))

        def filled(context: Tensor, ahead: Tensor) -> Tensor:
            tokens = F.pad(ahead, (0, -ahead.shape[-1] % self.patch))
            tokens = tokens.reshape(len(ahead), -1, self.patch)
            return torch.cat([context[:, ~packed.wanted], tokens.to(context.dtype)], dim=1)

        return packed._replace(
            target=filled(packed.target, whole[..., past.shape[-1] :]),
            observed=filled(packed.observed, masks[1]),
        )

    def slot_errors(self, packed: Packed) -> Tensor:
        """Mean pinball loss, in z, of the k-th patch after each token: [K, B, C], k from 1 on.

        A mean over levels and over the observed values of a variable, context included, which a
        token of the same variable predicts that is not padding. Slots beyond the window are left
        out.
        """

        def by_variable(tokens: Tensor) -> Tensor:  # [B, T, ...] -> [B, C, N, ...]
            num_variables = int(packed.variate.max()) + 1
            parts = (tokens[:, ~packed.wanted], tokens[:, packed.wanted])
            return torch.cat([part.unflatten(1, (num_variables, -1)) for part in parts], dim=2)

        predicted = by_variable(self.decode(self.hidden(packed)))
        target = by_variable((packed.target - packed.loc) / packed.scale)
        observed, real = by_variable(packed.observed), by_variable(packed.real)
        level = predicted.new_tensor(self.levels)[:, None]
        slots = []
        for ahead in range(1, min(predicted.shape[3], target.shape[2] - 1) + 1):
            error = target[:, :, ahead:, None] - predicted[:, :, :-ahead, ahead - 1]
            pinball = torch.maximum(level * error, (level - 1.0) * error).mean(-2)
            wanted = (observed[:, :, ahead:] & real[:, :, :-ahead, None]).to(pinball)
            number = wanted.sum((2, 3)).clamp_min(1.0)
            slots.append((pinball * wanted).sum((2, 3)) / number)
        return torch.stack(slots)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean pinball loss over slots, windows and variables, in units of the past's deviation.

        Every token of the window is scored on the K patches after it, given the true values up to
        its own time. The authors released the parts of it, but no training code.
        """
        return self.slot_errors(self.teacher(past, future, past_mask, future_mask)).mean()
