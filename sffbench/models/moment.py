"""MOMENT: a T5 encoder over patches that was taught to fill in hidden ones.

Univariate and channel independent: a window is scaled by its own mean and deviation, cut into
patches, a hidden patch replaced by a learned token, encoded, and either reconstructed patch by
patch (the published head) or mapped to a whole horizon at once (a head that fine-tuning trains).
State-dict names are those of `momentfm` (0.1.4), whose outputs `golden/moment` records.
Call: `sffbench.models.load("moment", folder, horizon=96)`; read top to bottom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import _t5
from sffbench.models._moment_presets import PRESETS
from sffbench.models.base import LTSM, InitName
from sffbench.models.blocks import Dropout, call, masked_mean, sinusoids

if TYPE_CHECKING:
    from sffbench.models.twin import Start

POSITIONS = "patch_embedding.position_embedding.pe"
WORDS = "encoder.embed_tokens.weight"
HEAD = ("head.linear.weight", "head.linear.bias")
REQUIRED = ("seq_len", "patch_len", "t5_config")
DEFAULTS: dict[str, Any] = {
    "head_dropout": 0.1,
    "max_len": 5000,
    "orth_gain": 1.41,
    "patch_dropout": 0.1,
    "task_name": "reconstruction",
}
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "add_positional_embedding": (True,),
    "revin_affine": (False,),
    "task_name": ("reconstruction", "forecasting"),
    "transformer_type": ("encoder_only",),
    "value_embedding_bias": (False,),
}


class PatchEmbedding(nn.Module):
    """Patches [M, N, P] -> W x + position, or the learned token of a hidden patch, [M, N, D]."""

    def __init__(self, patch: int, width: int, num_places: int, dropout: float):
        super().__init__()
        self.value_embedding = nn.Linear(patch, width, bias=False)
        self.mask_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Module()
        # A buffer that follows from a formula, and yet part of the published state dict.
        self.position_embedding.register_buffer("pe", torch.empty(1, num_places, width))
        self.dropout = Dropout(dropout)

    def forward(self, patches: Tensor, kept: Tensor) -> Tensor:
        """`kept` [M, N] is true where a patch is shown."""
        tokens = torch.where(kept[..., None], self.value_embedding(patches), self.mask_embedding)
        places = self.position_embedding.get_buffer("pe")[:, : patches.shape[1]]
        return call(self.dropout, tokens + places)


class Head(nn.Module):
    """One linear map: dropout before it where it reconstructs, after it where it forecasts."""

    def __init__(self, given: int, out: int, dropout: float, forecasts: bool):
        super().__init__()
        self.linear = nn.Linear(given, out)
        self.dropout = Dropout(dropout)
        self.forecasts = forecasts

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, N, D] -> [M, N * P] or [M, H]."""
        if self.forecasts:
            return call(self.dropout, self.linear(hidden.flatten(1)))
        return call(self.linear, self.dropout(hidden)).flatten(1)


class Moment(LTSM):
    """MOMENT: one network, two heads. The checkpoint's reconstructs, a new one forecasts.

    z = (x - mean) / (std + 1e-5), population std of what was observed and shown. A patch that is
    not wholly observed is not attended, but embedded as it is. A longer lookback is cut on the
    left, a shorter one padded there with unobserved zeros, less than a patch is refused.

    Asked for a `horizon`, the network has a forecasting head of that length: the checkpoint's, or a
    new one (then `new_head` is true and there is no zero-shot), drawn from seed 0. Without, or with
    the reconstruction's own longest, L - P, it is what the config says, and a reconstruction
    forecasts as `short_forecast` of the authors: the window moves on, the patches to come are
    hidden, and read from the reconstruction. That is MOMENT's zero-shot forecast. Upstream has no
    longer one than its head or window; here the forecast is fed back.

    `encoder.embed_tokens` is never read: it is kept for the checkpoint's sake (or left out where
    a checkpoint does), frozen, and counts in no training. `max_len` (rows of positions) is ours.
    """

    name = "moment"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "imputation", "anomaly"})
    head_prefixes = ("head.",)
    options = frozenset({"dropout_rate", "head_dropout", "patch_dropout"})

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(config)
        full = _complete(config)
        self.t5, self.orth_gain = full["t5"], full["orth_gain"]
        self.window, self.patch = full["seq_len"], full["patch_len"]
        self.num_patches = self.window // self.patch
        width = self.t5["d_model"]
        self.patch_embedding = PatchEmbedding(
            self.patch, width, full["max_len"], full["patch_dropout"]
        )
        self.encoder = _t5.Encoder(self.t5)
        if self.t5.get("vocab_size"):
            self.encoder.embed_tokens = nn.Embedding(self.t5["vocab_size"], width)
            self.encoder.embed_tokens.weight.requires_grad_(False)
        self.head_dropout = full["head_dropout"]
        self.lookback = lookback or self.window
        self.asked = horizon if horizon != self.window - self.patch else None
        own = full.get("forecast_horizon") if full["task_name"] == "forecasting" else None
        self._put_head(self.asked or own)

    def _put_head(self, horizon: int | None) -> None:
        """A head for `horizon` steps, or the one that reconstructs; the config says which."""
        width, self.horizon = self.t5["d_model"], horizon or self.window - self.patch
        if horizon is None:
            self.head = Head(width, self.patch, self.head_dropout, forecasts=False)
            return
        self.config |= {"task_name": "forecasting", "forecast_horizon": horizon}
        self.head = Head(self.num_patches * width, horizon, self.head_dropout, forecasts=True)
        self.capabilities = frozenset({"forecast", "zero-shot"})  # type: ignore[misc]

    def hidden(self, normed: Tensor, seen: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """Normalised windows [M, L] -> [M, N, D]; `seen` was observed, what is not `kept` hides."""
        patches = normed.view(-1, self.num_patches, self.patch)
        shown = normed.new_ones(patches.shape[:2]) if kept is None else self._whole(kept)
        embedded = self.patch_embedding(patches, shown.bool())
        return call(self.encoder, embedded, None if seen is None else self._whole(seen))

    def _whole(self, mask: Tensor) -> Tensor:
        """1 for a patch whose places all are: [M, L] -> [M, N]."""
        return (mask.reshape(-1, self.num_patches, self.patch) > 0).all(-1).to(mask.dtype)

    def reconstruct(
        self, values: Tensor, mask: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Every value from those shown, [B, C, L] -> [B, C, L], in the units of `values`.

        Imputation hides with `mask` (0 = hidden; a whole patch hides with any of its places),
        anomaly detection shows all and reads the errors; `observed` is 0 for padding. Raises
        `InputError` for a forecasting head or a window of another length than the network's.
        """
        if self.head.forecasts:
            raise InputError("this moment has a forecasting head: load it without a horizon")
        if values.shape[-1] != self.window:
            raise InputError(f"moment reconstructs {self.window} values, given {values.shape[-1]}")
        series = values.flatten(0, 1)
        kept, seen = (None if m is None else m.flatten(0, 1) for m in (mask, observed))
        shown = kept if seen is None else seen if kept is None else kept * seen
        mean, std = statistics(series, shown)
        out = self.head(self.hidden((series - mean) / std, seen, kept))
        return torch.addcmul(mean, out.to(series.dtype), std).view(values.shape)

    def masked_loss(self, values: Tensor, mask: Tensor, observed: Tensor | None = None) -> Tensor:
        """The pretraining loss: mean squared error of the observed values that were hidden."""
        error = (self.reconstruct(values, mask, observed) - values).square()
        return masked_mean(error, (1 - mask) if observed is None else observed * (1 - mask))

    def _short(self, past: Tensor, num_steps: int, seen: Tensor | None) -> Tensor:
        """The zero-shot forecast of a reconstruction: [M, L] -> [M, H] with H <= L - P."""
        mean, std = statistics(past, seen)
        hidden = -(-num_steps // self.patch) * self.patch
        moved = torch.roll((past - mean) / std, -hidden, 1)
        kept = torch.ones_like(past)
        kept[:, -hidden:] = 0.0
        if seen is not None:
            seen = F.pad(seen[:, hidden:], (0, hidden), value=1.0)
        out = self.head(self.hidden(moved, seen, kept))[:, -hidden:][:, :num_steps]
        return torch.addcmul(mean, out.to(past.dtype), std)

    def _direct(self, past: Tensor, num_steps: int, seen: Tensor | None) -> Tensor:
        """The forecasting head's steps, or the first of them: [M, L] -> [M, H]."""
        mean, std = statistics(past, seen)
        out = self.head(self.hidden((past - mean) / std, seen))[:, :num_steps]
        return torch.addcmul(mean, out.to(past.dtype), std)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        lead = past.shape[:2]
        past, seen = self._fit(past, past_mask)
        ahead = self._direct if self.head.forecasts else self._short
        blocks: list[Tensor] = []
        for first in range(0, horizon, self.horizon):
            num_steps = min(self.horizon, horizon - first)
            blocks.append(ahead(past, num_steps, seen))
            past = torch.cat([past, blocks[-1]], dim=1)[:, -self.window :]
            if seen is not None:
                seen = F.pad(seen, (0, num_steps), value=1.0)[:, -self.window :]
        return torch.cat(blocks, dim=1).reshape(*lead, horizon)

    def _fit(self, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, C, L] -> the network's window [M, L] and what of it was observed (None: all)."""
        missing = self.window - past.shape[-1]
        if past.shape[-1] < self.patch:
            raise InputError(
                f"moment needs a lookback of at least one patch, {self.patch} values, "
                f"given {past.shape[-1]}"
            )
        if missing > 0:
            mask = torch.ones_like(past) if mask is None else mask
            past, mask = F.pad(past, (missing, 0)), F.pad(mask, (missing, 0))
        past = past[..., -self.window :].reshape(-1, self.window)
        return past, None if mask is None else mask[..., -self.window :].reshape(past.shape).to(
            past
        )

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of (forecast - future)^2 in the units of the input, over the observed values.

        The authors' loss of the forecasting head; a reconstruction learns from its zero-shot
        forecast, which is its pretraining with the patches to come as the hidden ones.
        """
        forecast = self._forecast(past, future.shape[-1], past_mask)
        if future_mask is not None:
            future = future.masked_fill(future_mask == 0, 0.0)
            future_mask = future_mask.to(forecast.dtype)
        return masked_mean((forecast - future).square(), future_mask)

    def accept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Positions and unused words may be absent or fewer; the head decides what the network is.

        A forecasting head in the weights is taken as it is, unless another horizon was asked for.
        """
        state = dict(state)
        own, positions = self.get_buffer(POSITIONS), state.setdefault(POSITIONS, self.positions())
        if positions.ndim == 3 and positions.shape[2] == own.shape[2]:
            table = self.patch_embedding.position_embedding
            table.register_buffer("pe", torch.empty_like(positions, dtype=own.dtype))
        if WORDS not in state and hasattr(self.encoder, "embed_tokens"):
            del self.encoder.embed_tokens
        self._accept_head(state)
        return state

    def _accept_head(self, state: dict[str, Tensor]) -> None:
        given, own = state.get(HEAD[0]), self.head.linear.weight.shape
        if given is not None and given.shape == own:
            return
        flat = self.num_patches * self.t5["d_model"]
        if self.asked is None and given is not None and given.ndim == 2 and given.shape[1] == flat:
            with torch.device("meta"):
                self._put_head(len(given))
            self.head.to_empty(device="cpu")
        elif self.head.forecasts:
            self._draw_head(state)

    def _draw_head(self, state: dict[str, Tensor]) -> None:
        """A new forecasting head in the place of what the checkpoint holds."""
        from sffbench.models.twin import start_of

        self.new_head = True
        self.capabilities = frozenset({"forecast"})  # type: ignore[misc]
        table, own = self.initial(), dict(self.named_parameters())
        # A stream of its own: under the parameter's name the head would equal the SFF twin's.
        state |= {
            key: start_of(table[key], own[key].shape, seed=0, name=f"new {key}") for key in HEAD
        }

    def positions(self) -> Tensor:
        """The authors' sinusoids in the own shape, [1, places, D]."""
        return sinusoids(*self.get_buffer(POSITIONS).shape[1:])[None]

    def reset_buffers(self) -> None:
        """The positions follow from a formula."""
        self.get_buffer(POSITIONS).copy_(self.positions())

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """T5's rules times the config's factor (1), and the authors' for the rest.

        Token of hidden patches 0; patch map and reconstruction head `orth_gain` times an orthogonal
        matrix, bias 0 (PyTorch's defaults where that gain is null, and for a forecasting head).
        Nothing is degenerate: `usable` is `published`.
        """
        from sffbench.models.twin import Orthogonal
        from sffkernels import Init

        zero, gain = Init("constant", 0.0), self.orth_gain
        head = Init.fan_in_uniform(self.head.linear.weight.shape[1])
        plain = self.head.forecasts or gain is None
        return {
            "patch_embedding.mask_embedding": zero,
            "patch_embedding.value_embedding.weight": (
                Init.fan_in_uniform(self.patch) if gain is None else Orthogonal(gain)
            ),
            **_t5.initial(self.encoder, "encoder.", self.t5, self.t5["initializer_factor"]),
            HEAD[0]: head if plain else Orthogonal(gain),
            HEAD[1]: head if plain else zero,
        }


def statistics(series: Tensor, shown: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and population std + 1e-5 (added after the root) of what is shown; [M, L] -> [M, 1]."""
    if shown is None:
        mean = series.mean(1, keepdim=True)
        return mean, (series - mean).square().mean(1, keepdim=True).sqrt() + 1e-5
    number = shown.sum(1, keepdim=True).clamp_min(1.0)
    mean = (series * shown).sum(1, keepdim=True) / number
    return mean, (((series - mean) * shown).square().sum(1, keepdim=True) / number).sqrt() + 1e-5


def hidden_patches(
    num_rows: int, num_patches: int, ratio: float, generator: torch.Generator | None = None
) -> Tensor:
    """The authors' pretraining masks, [M, N], 0 where hidden: all but ceil((1 - ratio) N) a row.

    Those that draw the highest of uniform numbers are hidden.
    """
    rank = torch.rand(num_rows, num_patches, generator=generator).argsort(1).argsort(1)
    return (rank < math.ceil(num_patches * (1 - ratio))).float()


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names a field that asks for something else."""
    for key, allowed in SUPPORTED.items():
        if key in config and config[key] not in allowed:
            raise InputError(
                f"moment: {key}={config[key]!r} is not supported, allowed: {allowed[0]!r}"
            )
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"moment: config.json lacks {', '.join(absent)}")
    full = DEFAULTS | dict(config)
    rate = {key: full[key] for key in ("dropout_rate",) if key in full}  # an option of `load`
    full["t5"] = _t5.complete("moment", full["t5_config"] | rate)
    if full.get("patch_stride_len", full["patch_len"]) != full["patch_len"]:
        raise InputError(
            f"moment: patch_stride_len={full['patch_stride_len']} must equal patch_len"
        )
    if full["seq_len"] % full["patch_len"] or full["seq_len"] < full["patch_len"]:
        raise InputError(f"moment: seq_len={full['seq_len']} must be a multiple of patch_len")
    if (full.get("d_model") or full["t5"]["d_model"]) != full["t5"]["d_model"]:
        raise InputError(f"moment: d_model={full['d_model']} must be that of t5_config, or null")
    return full
