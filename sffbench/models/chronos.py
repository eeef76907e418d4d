"""Chronos-Bolt: patches into a T5 encoder, nine quantiles of the next block out of one token.

A window is scaled by its own mean and deviation, cut into patches of values and their mask, and
encoded; the decoder reads it with a single token, from which every quantile of the whole block
follows. State-dict names are those of `chronos-forecasting` (2.3.2), whose outputs
`golden/chronos-bolt` records. The family's other networks are in `_chronos_t5.py` (the older one)
and `_chronos_2.py` (the newer one).
Call: `sffbench.models.load("chronos", folder).quantiles(past, 64, [0.1, 0.9])`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import _t5, checkpoint
from sffbench.models._chronos_presets import PRESETS
from sffbench.models.base import LTSM, InitName
from sffbench.models.blocks import Dropout, call, quantile

if TYPE_CHECKING:
    from sffkernels import Init

REQUIRED = ("context_length", "input_patch_size", "prediction_length", "quantiles")
EMBEDDING, HEAD = "shared.weight", "lm_head.weight"
TIED = tuple(f"{name}.weight" for name in ("encoder.embed_tokens", "decoder.embed_tokens"))


class ResidualBlock(nn.Module):
    """dropout(W_o act(W_h x)) + W_r x, biases everywhere: [..., D_in] -> [..., D_out].

    act is that of the stacks' feed-forward maps.
    """

    def __init__(self, given: int, out: int, config: Mapping[str, Any]):
        super().__init__()
        inner = config["d_ff"]
        self.act, _ = _t5.activation(config)
        self.hidden_layer = nn.Linear(given, inner)
        self.output_layer = nn.Linear(inner, out)
        self.residual_layer = nn.Linear(given, out)
        self.dropout = Dropout(config["dropout_rate"])

    def forward(self, values: Tensor) -> Tensor:
        inner = call(self.output_layer, self.act(self.hidden_layer(values)))
        return call(self.dropout, inner) + call(self.residual_layer, values)


class Chronos(LTSM):
    """Chronos-Bolt: scale, patch, encode, decode one token, nine quantiles of 64 steps at once.

    z = (x - loc) / scale, loc the mean and scale the population deviation of what was observed
    (1e-5 where that is 0; 0 and 1 where nothing was). Missing values are 0 in z, a patch with none
    observed is not attended. The forecast is the 0.5 quantile. A longer lookback is cut on the
    left, a shorter one left as it is, and filled up to whole patches with missing values.

    A longer horizon is unrolled as upstream does: each quantile path continues a copy of the
    context, and the quantiles of all their forecasts (9 * 9) are the next block. Levels between the
    trained ones are interpolated, those outside are the outermost. There are quantiles only: no
    samples are drawn.
    """

    name = "chronos"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "probabilistic"})
    head_prefixes = ("output_patch_embedding.",)
    options = frozenset({"dropout_rate"})
    tied: ClassVar[tuple[str, ...]] = TIED  # names under which the embedding may be stored again

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[LTSM]:
        """Chronos-T5's settings name a tokeniser, those of Chronos-2 the patch of its output."""
        settings = config.get("chronos_config")
        if not isinstance(settings, Mapping):
            return cls
        if "tokenizer_class" in settings:
            from sffbench.models._chronos_t5 import ChronosT5

            return ChronosT5
        if "output_patch_size" in settings:
            from sffbench.models._chronos_2 import Chronos2

            return Chronos2
        return cls

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(config)
        self.settings = self._settings(config)
        self.t5 = _t5.complete(self.name, config)
        self.context, self.block = (
            self.settings[key] for key in ("context_length", "prediction_length")
        )
        self.lookback = lookback or self.context
        self.horizon = horizon or self.block
        self._build()

    def _settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`chronos_config`; `InputError` names what it lacks."""
        settings = dict(config.get("chronos_config") or {})
        if absent := [key for key in REQUIRED if key not in settings]:
            raise InputError(f"chronos: chronos_config lacks {', '.join(absent)}")
        return settings

    def _build(self) -> None:
        width = self.t5["d_model"]
        self.patch = self.settings["input_patch_size"]
        self.stride = self.settings.get("input_patch_stride", self.patch)
        self.levels = list(self.settings["quantiles"])
        self.register = bool(self.settings.get("use_reg_token", False))
        # Row 0 starts the decoder, row 1 closes the encoder's tokens, whatever `vocab_size` says.
        self.shared = nn.Embedding(1 + self.register, width)
        self.start = self.config.get("decoder_start_token_id", 0)
        if self.start not in range(1 + self.register):
            raise InputError(
                f"chronos: decoder_start_token_id={self.start!r} is not supported, "
                f"allowed: 0{' or 1' if self.register else ''}"
            )
        self.encoder: nn.Module = _t5.Encoder(self.t5)
        self.decoder = _t5.Decoder(self.t5)
        out = len(self.levels) * self.block
        self.input_patch_embedding = ResidualBlock(2 * self.patch, width, self.t5)
        self.output_patch_embedding = ResidualBlock(width, out, self.t5)

    def network(self, scaled: Tensor, seen: Tensor | None = None) -> Tensor:
        """Scaled windows [M, L] -> scaled quantiles of the next block, [M, Q, P]."""
        embedded, observed = self.embed(scaled, seen)
        start = self.shared.weight[self.start].expand(len(scaled), 1, -1)
        hidden = self.decoder(start, self.encoder(embedded, observed), observed)
        out = call(self.output_patch_embedding, hidden)
        return out.to(scaled.dtype).view(-1, len(self.levels), self.block)

    def embed(self, scaled: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Tokens [M, N, D] and which of them are attended, [M, N] (None: all)."""
        missing = -scaled.shape[1] % self.patch
        if seen is None and missing:
            seen = torch.ones_like(scaled)
        if seen is None:
            patches = scaled.unfold(1, self.patch, self.stride)
            mask, observed = torch.ones_like(patches), None
        else:
            mask = F.pad(seen, (missing, 0)).unfold(1, self.patch, self.stride)
            patches = F.pad(scaled, (missing, 0)).unfold(1, self.patch, self.stride) * mask
            observed = (mask.sum(-1) > 0).to(scaled.dtype)
        embedded = call(self.input_patch_embedding, torch.cat([patches, mask], dim=-1))
        if self.register:
            last = self.shared.weight[1:].expand(len(scaled), 1, -1)
            embedded = torch.cat([embedded, last], dim=1)
            observed = None if observed is None else F.pad(observed, (0, 1), value=1.0)
        return embedded, observed

    def _next(self, past: Tensor, seen: Tensor | None) -> Tensor:
        """Quantiles of the next block: [M, L] -> [M, Q, P], in the units of `past`."""
        past, seen = past[:, -self.context :], None if seen is None else seen[:, -self.context :]
        loc, scale = location_scale(past, seen)
        quantiles = self.network((past - loc) / scale, seen)
        return torch.addcmul(loc[..., None], quantiles, scale[..., None])

    def _unrolled(self, past: Tensor, horizon: int, seen: Tensor | None) -> Tensor:
        """Trained quantiles of the whole horizon, [M, L] -> [M, Q, H]."""
        num_rows, num_levels = len(past), len(self.levels)
        blocks = [self._next(past, seen)]
        if len(blocks) * self.block < horizon:  # from here on, one row per window and path
            past = past.repeat_interleave(num_levels, 0)
            seen = None if seen is None else seen.repeat_interleave(num_levels, 0)
        while len(blocks) * self.block < horizon:
            past = torch.cat([past, blocks[-1].flatten(0, 1)], dim=1)[:, -self.context :]
            if seen is not None:
                seen = F.pad(seen, (0, self.block), value=1.0)[:, -self.context :]
            paths = self._next(past, seen).reshape(num_rows, -1, self.block)
            blocks.append(quantile(paths, self.levels, dim=1))
        return torch.cat(blocks, dim=2)[..., :horizon]

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
        seen = None if past_mask is None else past_mask.flatten(0, 1)
        trained = self._unrolled(past.flatten(0, 1), horizon, seen)
        if set(levels) <= set(self.levels):
            chosen = trained[:, [self.levels.index(level) for level in levels]]
        else:  # trained levels are taken for evenly spaced from 0 to 1, the ends doubled
            chosen = quantile(torch.cat([trained[:, :1], trained, trained[:, -1:]], 1), levels, 1)
        return chosen.view(*past.shape[:2], *chosen.shape[1:])

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

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over blocks of the authors' loss, each block given the true values before it.

        Upstream trains on one block and refuses more; a shorter future leaves the block's rest out.
        """
        series = torch.cat([past, future], dim=-1).flatten(0, 1)
        seen = None
        if past_mask is not None or future_mask is not None:
            masks = [
                torch.ones_like(values) if mask is None else mask.to(values.dtype)
                for values, mask in ((past, past_mask), (future, future_mask))
            ]
            seen = torch.cat(masks, dim=-1).flatten(0, 1)
            series = series.masked_fill(seen == 0, 0.0)
        losses = []
        for border in range(past.shape[-1], series.shape[1], self.block):
            parts = slice(max(0, border - self.context), border), slice(border, border + self.block)
            losses.append(
                self.block_loss(
                    *(series[:, part] for part in parts),
                    *((None, None) if seen is None else (seen[:, part] for part in parts)),
                )
            )
        return torch.stack(losses).mean()

    def block_loss(
        self, past: Tensor, target: Tensor, seen: Tensor | None, wanted: Tensor | None
    ) -> Tensor:
        """Pinball loss of the next block, in units of the context's deviation.

        A context that is constant has deviation 1e-5, so that one such window outweighs all others:
        upstream's rule, kept.
        """
        loc, scale = location_scale(past, seen)
        quantiles = self.network((past - loc) / scale, seen)
        return self.pinball(quantiles, (target - loc) / scale, wanted)

    def pinball(self, quantiles: Tensor, target: Tensor, wanted: Tensor | None = None) -> Tensor:
        """2 |(t - q)(1[t <= q] - level)|, mean over quantiles and windows, SUM over steps.

        Shapes: quantiles [M, Q, P], target [M, N] with N <= P: the first N steps.
        """
        error = target[:, None] - quantiles[..., : target.shape[1]]
        level = torch.tensor(self.levels, device=error.device, dtype=error.dtype)[:, None]
        loss = 2.0 * (error * ((error <= 0).to(error.dtype) - level)).abs()
        if wanted is not None:
            loss = loss * wanted[:, None]
        return loss.mean(1).sum(-1).mean()

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The shared embedding may be stored once, or again under each name that it is tied to."""
        state = dict(state)
        checkpoint.merge(state, dict.fromkeys(self.tied, EMBEDDING))
        return state if HEAD in self.tied else {k: v for k, v in state.items() if k != HEAD}

    def initial(self, init: InitName = "usable") -> dict[str, Init]:
        """T5's rules, all spreads and the gains of norms times the config's factor, published 0.05.

        With that factor a fresh network is nearly zero and its norms shrink 20-fold, so `usable`
        takes 1, and the spread of the last residual block from its own width; published, that
        block has the spread of the first one, 1 / sqrt(2 * patch).
        """
        from sffkernels import Init

        table, factor = self._initial_stacks(init)
        patches, width, inner = (2 * self.patch, self.t5["d_model"], self.t5["d_ff"])
        for prefix, given in (
            ("input_patch_embedding.", patches),
            ("output_patch_embedding.", width if init == "usable" else patches),
        ):
            for layer, fan_in in (("hidden", given), ("output", inner), ("residual", given)):
                table[f"{prefix}{layer}_layer.weight"] = Init("normal", 0.0, factor * fan_in**-0.5)
                table[f"{prefix}{layer}_layer.bias"] = Init("constant", 0.0)
        return table

    def _initial_stacks(self, init: InitName) -> tuple[dict[str, Init], float]:
        """What Bolt and T5 share: embedding, encoder, decoder; and the factor."""
        from sffkernels import Init

        factor = 1.0 if init == "usable" else float(self.t5["initializer_factor"])
        table = {"shared.weight": Init("normal", 0.0, factor)}
        for prefix, stack in (("encoder.", self.encoder), ("decoder.", self.decoder)):
            table |= _t5.initial(stack, prefix, self.t5, factor)
        return table, factor


def location_scale(series: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and population deviation of the observed values, each [M, 1]; 1e-5 for deviation 0."""
    if seen is None:
        seen = torch.ones_like(series)
    number = seen.sum(1, keepdim=True)
    loc = (series * seen).sum(1, keepdim=True) / number.clamp_min(1.0)
    variance = ((series - loc) * seen).square().sum(1, keepdim=True) / number.clamp_min(1.0)
    scale = variance.sqrt()
    scale = scale.masked_fill(scale == 0, 1e-5).masked_fill(number == 0, 1.0)
    return loc, scale
