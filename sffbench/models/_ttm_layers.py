"""The layers of TTM: mixers over patches, features and channels, their stacks, encoder, decoder.

A hidden state is [M, N, D]: M = B * C windows of one variable each, N patches, D features. Mixing
over the channels of a window views M as [B, C], so nothing else needs to know of it. Names are
those of `granite-tsfm`. Used by `ttm.py`; `_ttm_reconcile.py` has what comes after the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models.blocks import Dropout, call, linear_over_rows


def mlp(width: int, expansion: int) -> nn.ModuleDict:
    """Two linear maps, to `expansion` times the width and back."""
    return nn.ModuleDict(
        {"fc1": nn.Linear(width, expansion * width), "fc2": nn.Linear(expansion * width, width)}
    )


def gate(width: int, gated: bool) -> nn.ModuleDict:
    """The linear map of a gate, or nothing."""
    return nn.ModuleDict({"attn_layer": nn.Linear(width, width)} if gated else {})


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
        self.mlp = mlp(mixed, expansion)
        self.dropout = Dropout(dropout)
        self.gating_block = gate(mixed, gated)

    def forward(self, hidden: Tensor) -> Tensor:
        apply = linear_over_rows if self.over_patches else call
        mixed: Tensor = self.dropout(F.gelu(apply(self.mlp["fc1"], self.norm["norm"](hidden))))
        mixed = self.dropout(apply(self.mlp["fc2"], mixed))
        if self.gating_block:
            axis = -2 if self.over_patches else -1
            mixed = mixed * torch.softmax(apply(self.gating_block["attn_layer"], mixed), dim=axis)
        return hidden + mixed


class ChannelMixer(nn.Module):
    """h + mlp(gate(LayerNorm(h))) over the C channels of a window; here the gate comes first.

    Shapes: [B * C, N, D] -> same; C is that of the checkpoint.
    """

    def __init__(
        self, width: int, channels: int, expansion: int, dropout: float, gated: bool, eps: float
    ):
        super().__init__()
        self.channels = channels
        self.norm = nn.ModuleDict({"norm": nn.LayerNorm(width, eps=eps)})
        self.mlp = mlp(channels, expansion)
        self.dropout = Dropout(dropout)
        self.gating_block = gate(channels, gated)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.norm["norm"](hidden)
        mixed = normed.reshape(-1, self.channels, normed.shape[1] * normed.shape[2])
        if self.gating_block:
            weights = linear_over_rows(self.gating_block["attn_layer"], mixed)
            mixed = mixed * torch.softmax(weights, dim=-2)
        mixed = self.dropout(F.gelu(linear_over_rows(self.mlp["fc1"], mixed)))
        mixed = self.dropout(linear_over_rows(self.mlp["fc2"], mixed))
        return hidden + mixed.reshape(hidden.shape)


class MixerLayer(nn.Module):
    """Mix over channels (`mix_channel`), over patches (if there are several), over features."""

    def __init__(
        self,
        config: Mapping[str, Any],
        num_patches: int,
        width: int,
        dropout: float,
        mode: str = "common_channel",
    ):
        super().__init__()
        shared = (config["expansion_factor"], dropout, config["gated_attn"], config["norm_eps"])
        if num_patches > 1:
            self.patch_mixer = Mixer(width, num_patches, *shared)
            self.patch_mixer.over_patches = True
        self.feature_mixer = Mixer(width, width, *shared)
        if mode == "mix_channel":
            self.channel_feature_mixer = ChannelMixer(width, config["num_input_channels"], *shared)
        self.num_patches, self.mode = num_patches, mode

    def forward(self, hidden: Tensor) -> Tensor:
        if self.mode == "mix_channel":
            hidden = self.channel_feature_mixer(hidden)
        if self.num_patches > 1:
            hidden = self.patch_mixer(hidden)
        return call(self.feature_mixer, hidden)


class Level(nn.Module):
    """One resolution of adaptive patching: [M, N, D] viewed as [M, N * f, D / f], and mixed."""

    def __init__(self, config: Mapping[str, Any], factor: int):
        super().__init__()
        self.shape = (config["num_patches"] * factor, config["d_model"] // factor)
        self.mixer_layers = nn.ModuleList(
            MixerLayer(config, *self.shape, config["dropout"], config["mode"])
            for _ in range(config["num_layers"])
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
    """Patches [M, N, P] -> hidden [M, N, D], or [M, 1 + N, D] with the frequency before them.

    The frequency's token is W2 gelu(W1 E[freq_token]), E with one row of P values a frequency.
    """

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, num_patches, patch = config["d_model"], config["num_patches"], config["patch_length"]
        self.patcher = nn.Linear(patch, width)
        # A level that would leave 4 features or fewer keeps the plain resolution, as upstream.
        factors = [2**level for level in reversed(range(config["adaptive_patching_levels"]))]
        levels = [Level(config, factor if width // factor > 4 else 1) for factor in factors]
        plain = [
            MixerLayer(config, num_patches, width, config["dropout"], config["mode"])
            for _ in range(config["num_layers"] if not levels else 0)
        ]
        self.mlp_mixer_encoder = Mixers([*levels, *plain])
        if config["resolution_prefix_tuning"]:
            inner = (patch + width) // 2
            self.freq_mod = nn.Sequential(
                nn.Embedding(config["frequency_token_vocab_size"], patch),
                nn.Linear(patch, inner),
                nn.GELU(),
                nn.Linear(inner, width),
            )

    def forward(self, patches: Tensor, freq_token: Tensor | None = None) -> Tensor:
        """`freq_token` [M] holds the class of each window's frequency, if the network has any."""
        hidden = call(self.patcher, patches)
        if freq_token is not None:
            prefix = call(self.freq_mod, freq_token)[:, None]
            hidden = torch.cat([prefix.to(hidden.dtype), hidden], dim=1)
        return call(self.mlp_mixer_encoder, hidden)


class Decoder(nn.Module):
    """Hidden [M, N, D] -> [M, N, decoder D], at the coarse resolution."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, num_patches = config["decoder_d_model"], config["num_patches"]
        same = width == config["d_model"]
        self.adapter = nn.Identity() if same else nn.Linear(config["d_model"], width)
        dropout, mode = config["head_dropout"], config["decoder_mode"]
        self.decoder_block = Mixers(
            [
                MixerLayer(config, num_patches, width, dropout, mode)
                for _ in range(config["decoder_num_layers"])
            ]
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return call(self.decoder_block, self.adapter(hidden))
