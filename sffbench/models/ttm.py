"""TinyTimeMixer (TTM r1, r2): an MLP mixer over patches, no attention; the fastest model here.

Univariate and channel independent: a window is scaled by its own mean and standard deviation, cut
into patches, mixed at several patch resolutions, decoded, and mapped to the whole horizon at once.
State-dict names are those of `granite-tsfm` (0.3.11), whose outputs `golden/ttm` records.
Call: `sffbench.models.load("ttm", folder).forecast(past, 96)`; read top to bottom.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models.base import LTSM, InitName, Preset, default_init
from sffbench.models.blocks import Dropout, call, linear_over_rows, location_scale

if TYPE_CHECKING:
    from sffkernels import Init


LOSSES = {"mse": F.mse_loss, "mae": F.l1_loss}
DEFAULTS: dict[str, Any] = {
    "adaptive_patching_levels": 0,
    "decoder_num_layers": 2,
    "dropout": 0.2,
    "expansion_factor": 2,
    "gated_attn": True,
    "head_dropout": 0.2,
    "loss": "mse",
    "norm_eps": 1e-5,
    "num_layers": 3,
    "prediction_filter_length": None,
}
# Fields of the published schema that change the computation, with the values this file computes.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "decoder_adaptive_patching_levels": (0,),
    "decoder_mode": ("common_channel",),
    "decoder_raw_residual": (False,),
    "enable_forecast_channel_mixing": (False,),
    "exogenous_channel_indices": (None, []),
    "loss": tuple(LOSSES),
    "masked_context_length": (None,),
    "mode": ("common_channel",),
    "multi_quantile_head": (False,),
    "norm_mlp": ("LayerNorm",),
    "prediction_channel_indices": (None, []),
    "categorical_vocab_size_list": (None, []),
    "resolution_prefix_tuning": (False,),
    "scaling": ("std", True),
    "self_attn": (False,),
    "use_decoder": (True,),
    "use_positional_encoding": (False,),
}


def _published(model: str, lookback: int, horizon: int, num_parameters: int, branch: str) -> Preset:
    """A released size: all share d_model = 3, decoder = 2 patch lengths, 3 levels x 2 layers."""
    patch = 64 if lookback == 512 or model == "r1" else 128
    confirmed = horizon == 96
    return Preset(
        config={
            "context_length": lookback,
            "prediction_length": horizon,
            "patch_length": patch,
            "d_model": 3 * patch,
            "decoder_d_model": 2 * patch,
            "adaptive_patching_levels": 3,
            "num_layers": 2,
            "decoder_num_layers": 2,
            "expansion_factor": 2,
        },
        lookback=lookback,
        horizon=horizon,
        num_parameters=num_parameters,
        lr=1e-4,
        licence="Apache-2.0",
        hub=f"ibm-granite/granite-timeseries-ttm-{model}",
        revision=branch,
        note=""
        if confirmed
        else "size from the 96-step configuration of the same context: only the head differs",
    )


_R2_SIZES = {
    (512, 96): 805_280,
    (512, 192): 903_680,
    (512, 336): 1_051_280,
    (512, 720): 1_444_880,
    (1024, 96): 2_964_960,
    (1024, 192): 3_161_664,
    (1024, 336): 3_456_720,
    (1024, 720): 4_243_536,
    (1536, 96): 3_081_120,
    (1536, 192): 3_376_128,
    (1536, 336): 3_818_640,
    (1536, 720): 4_998_672,
}
PRESETS = {
    "tiny": Preset(
        config={
            "context_length": 512,
            "prediction_length": 96,
            "patch_length": 64,
            "d_model": 64,
            "decoder_d_model": 64,
            "adaptive_patching_levels": 3,
            "num_layers": 2,
            "decoder_num_layers": 2,
            "expansion_factor": 2,
            "dropout": 0.1,
            "head_dropout": 0.1,
        },
        lookback=512,
        horizon=96,
        num_parameters=165_536,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain ttm:tiny` on synthetic series",
    ),
    "r1-512-96": _published("r1", 512, 96, 805_280, "main"),
    "r1-1024-96": _published("r1", 1024, 96, 946_336, "1024_96_v1"),
    **{
        f"r2-{lookback}-{horizon}": _published(
            "r2", lookback, horizon, size, f"{lookback}-{horizon}-r2"
        )
        for (lookback, horizon), size in _R2_SIZES.items()
    },
}


class Mixer(nn.Module):
    """h + gate(mlp(LayerNorm(h))), over the last axis or, `over_patches`, over the one before.

    mlp(x) = W2 gelu(W1 x); gate(x) = x * softmax(Wg x), whose weights sum to 1 over the mixed axis.
    Shapes: [M, N, D] -> [M, N, D], M = B * C windows, N patches, D features.
    """

    def __init__(
        self, width: int, mixed: int, expansion: int, dropout: float, gated: bool, eps: float
    ):
        super().__init__()
        self.over_patches = False
        self.norm = nn.ModuleDict({"norm": nn.LayerNorm(width, eps=eps)})
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(mixed, expansion * mixed), "fc2": nn.Linear(expansion * mixed, mixed)}
        )
        self.dropout = Dropout(dropout)
        self.gating_block = nn.ModuleDict({"attn_layer": nn.Linear(mixed, mixed)} if gated else {})

    def forward(self, hidden: Tensor) -> Tensor:
        apply = linear_over_rows if self.over_patches else call
        mixed: Tensor = self.dropout(F.gelu(apply(self.mlp["fc1"], self.norm["norm"](hidden))))
        mixed = self.dropout(apply(self.mlp["fc2"], mixed))
        if self.gating_block:
            axis = -2 if self.over_patches else -1
            mixed = mixed * torch.softmax(apply(self.gating_block["attn_layer"], mixed), dim=axis)
        return hidden + mixed


class MixerLayer(nn.Module):
    """Mix over patches (skipped when there is only one), then over features."""

    def __init__(self, config: Mapping[str, Any], num_patches: int, width: int, dropout: float):
        super().__init__()
        shared = (config["expansion_factor"], dropout, config["gated_attn"], config["norm_eps"])
        if num_patches > 1:
            self.patch_mixer = Mixer(width, num_patches, *shared)
            self.patch_mixer.over_patches = True
        self.feature_mixer = Mixer(width, width, *shared)
        self.num_patches = num_patches

    def forward(self, hidden: Tensor) -> Tensor:
        if self.num_patches > 1:
            hidden = self.patch_mixer(hidden)
        return call(self.feature_mixer, hidden)


class Level(nn.Module):
    """One resolution of adaptive patching: [M, N, D] viewed as [M, N * f, D / f], and mixed."""

    def __init__(self, config: Mapping[str, Any], factor: int):
        super().__init__()
        self.shape = (config["num_patches"] * factor, config["d_model"] // factor)
        self.mixer_layers = nn.ModuleList(
            MixerLayer(config, *self.shape, config["dropout"]) for _ in range(config["num_layers"])
        )

    def forward(self, hidden: Tensor) -> Tensor:
        fine = hidden.view(-1, *self.shape)
        for layer in self.mixer_layers:
            fine = layer(fine)
        return fine.view(hidden.shape)


class Mixers(nn.Module):
    """A stack under the key `mixers`: levels from fine to coarse, or plain layers."""

    def __init__(self, mixers: list[nn.Module]):
        super().__init__()
        self.mixers = nn.ModuleList(mixers)

    def forward(self, hidden: Tensor) -> Tensor:
        for mixer in self.mixers:
            hidden = mixer(hidden)
        return hidden


class Encoder(nn.Module):
    """Patches [M, N, P] -> hidden [M, N, D]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, num_patches = config["d_model"], config["num_patches"]
        self.patcher = nn.Linear(config["patch_length"], width)
        # A level that would leave 4 features or fewer keeps the plain resolution, as upstream.
        factors = [2**level for level in reversed(range(config["adaptive_patching_levels"]))]
        levels = [Level(config, factor if width // factor > 4 else 1) for factor in factors]
        plain = [
            MixerLayer(config, num_patches, width, config["dropout"])
            for _ in range(config["num_layers"] if not levels else 0)
        ]
        self.mlp_mixer_encoder = Mixers([*levels, *plain])

    def forward(self, patches: Tensor) -> Tensor:
        return call(self.mlp_mixer_encoder, self.patcher(patches))


class Decoder(nn.Module):
    """Hidden [M, N, D] -> [M, N, decoder D], at the coarse resolution."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, num_patches = config["decoder_d_model"], config["num_patches"]
        same = width == config["d_model"]
        self.adapter = nn.Identity() if same else nn.Linear(config["d_model"], width)
        self.decoder_block = Mixers(
            [
                MixerLayer(config, num_patches, width, config["head_dropout"])
                for _ in range(config["decoder_num_layers"])
            ]
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return call(self.decoder_block, self.adapter(hidden))


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with defaults; `InputError` names a field that asks for something else."""
    for key, allowed in SUPPORTED.items():
        if key in config and config[key] not in allowed:
            raise InputError(
                f"ttm: {key}={config[key]!r} is not supported, allowed: {allowed[0]!r}"
            )
    required = ("context_length", "prediction_length", "patch_length", "d_model", "decoder_d_model")
    if absent := [key for key in required if key not in config]:
        raise InputError(f"ttm: config.json lacks {', '.join(absent)}")
    full = DEFAULTS | dict(config)
    if full.get("patch_stride", full["patch_length"]) != full["patch_length"]:
        raise InputError(f"ttm: patch_stride={full['patch_stride']} must equal patch_length")
    full["num_patches"] = full["context_length"] // full["patch_length"]
    return full


class TTM(LTSM):
    """TTM for prediction: scale, patch, encode, decode, one linear head over the whole horizon.

    z = (x - loc) / scale with loc the mean and scale = sqrt(population variance + 1e-5) of the
    window, forecast = head(decoder(encoder(patches of z))) * scale + loc. A longer lookback is cut
    on the left, a shorter one padded there with zeros that count as observed (as granite-tsfm
    0.3.11; other releases refuse). A horizon beyond the native one feeds the forecast back
    (official recursion), a shorter one is cut. The official few-shot recipe trains decoder and
    head; `head_prefixes` names the last linear map alone, which is what a linear probe trains.
    """

    name = "ttm"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot"})
    head_prefixes = ("head.",)
    options = frozenset({"dropout", "head_dropout", "loss"})

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(_complete(config))
        config = self.config
        self.context, self.block = config["context_length"], config["prediction_length"]
        self.lookback = lookback or self.context
        self.horizon = min(horizon or self.block, config["prediction_filter_length"] or self.block)
        self.backbone = nn.ModuleDict({"encoder": Encoder(config)})
        self.decoder = Decoder(config)
        flat = config["num_patches"] * config["decoder_d_model"]
        self.head = nn.ModuleDict({"base_forecast_block": nn.Linear(flat, self.block)})
        self.head_dropout = Dropout(config["head_dropout"])

    def network(self, scaled: Tensor) -> Tensor:
        """Scaled windows [M, L] -> scaled forecasts [M, H of the head]."""
        num_patches, length = self.config["num_patches"], self.config["patch_length"]
        patches = scaled[:, -num_patches * length :].reshape(-1, num_patches, length)
        hidden = self.decoder(self.backbone["encoder"](patches))
        return call(self.head["base_forecast_block"], self.head_dropout(hidden.flatten(1)))

    def _roll(self, past: Tensor, mask: Tensor | None) -> Tensor:
        """One native forecast: [M, L] -> [M, H of the head], in the units of `past`."""
        past, mask = self._fit(past), None if mask is None else self._fit(mask)
        loc, scale = location_scale(past, mask)
        return torch.addcmul(loc, self.network((past - loc) / scale), scale)

    def _fit(self, values: Tensor) -> Tensor:
        """The last L values, or zeros before fewer."""
        missing = self.context - values.shape[-1]
        return F.pad(values, (missing, 0)) if missing > 0 else values[..., -self.context :]

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
        past = past.flatten(0, 1)
        mask = None if past_mask is None else past_mask.flatten(0, 1)
        blocks = [self._roll(past, mask)]
        while len(blocks) * self.block < horizon:
            past = torch.cat([past, blocks[-1]], dim=1)
            mask = None if mask is None else F.pad(mask, (0, self.block), value=1.0)
            blocks.append(self._roll(past, mask))
        joined = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]
        return joined[:, :horizon].reshape(*lead, horizon)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean of (forecast - future)^2 in the units of the input, over the observed values."""
        forecast = self._forecast(past, future.shape[-1], past_mask)
        if future_mask is not None:
            forecast, future = forecast[future_mask.bool()], future[future_mask.bool()]
        return LOSSES[self.config["loss"]](forecast, future)

    def initial(self, init: InitName = "usable") -> dict[str, Init]:
        """PyTorch's defaults (the published `post_init` is false); nothing is degenerate."""
        return default_init(self)
