"""TinyTimeMixer (TTM r1, r2): an MLP mixer over patches, no attention; the fastest model here.

A window is scaled by its own mean and standard deviation, cut into patches, mixed at several patch
resolutions, decoded, and mapped to the whole horizon at once, each variable by itself. Fine-tuning
variants mix the variables or know their frequency. State-dict names are those of `granite-tsfm`
(0.3.11), whose outputs `golden/ttm*` record. Layers are in `_ttm_layers.py`, the fields of the
config in `_ttm_config.py`. Call: `sffbench.models.load("ttm", folder).forecast(past, 96)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models._ttm_config import FREQUENCIES, complete
from sffbench.models._ttm_init import given_init
from sffbench.models._ttm_layers import Decoder, Encoder
from sffbench.models._ttm_presets import PRESETS
from sffbench.models._ttm_reconcile import Reconciler
from sffbench.models.base import LTSM, InitName, check_rank, default_init, evaluating
from sffbench.models.blocks import Dropout, call, location_scale

if TYPE_CHECKING:
    from sffbench.models.twin import Start


class TTM(LTSM):
    """TTM for prediction: scale, patch, encode, decode, one linear head over the whole horizon.

    z = (x - loc) / scale with loc the mean and scale = sqrt(population variance + 1e-5) of the
    window, forecast = head(decoder(encoder(patches of z))) * scale + loc. A longer lookback is cut
    on the left, a shorter one padded there with zeros that count as observed (as granite-tsfm
    0.3.11; other releases refuse). A horizon beyond the native one feeds the forecast back
    (official recursion), a shorter one is cut. The official few-shot recipe trains decoder and
    head; `head_prefixes` names the last linear map alone, which is what a linear probe trains.

    Channels: `mode` and `decoder_mode` "mix_channel" mix the variables of a window inside the
    network, `enable_forecast_channel_mixing` its forecasts; such a checkpoint is bound to windows
    of `num_channels`. `prediction_channel_indices` are the only ones that are forecast, in this
    order: [B, C, L] -> [B, T, H]. `exogenous_channel_indices` are known beforehand: `forecast`
    reads them in `future`, the loss in its own future, later steps than given count as 0.

    Frequency: with `resolution_prefix_tuning` a token of the sampling frequency stands before the
    patches. The option `freq_token` gives its class, one for all windows or one each; a run on a
    data set of the catalog gives it itself (`at_frequency`). Without either it is 0, the authors'
    class of unknown frequencies, where upstream fails.

    With `prediction_filter_length` the forecast has that many steps and, as upstream, the loss
    looks at no later ones. Refused fields: see `_ttm_config.py`.
    """

    name = "ttm"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot"})
    head_prefixes = ("head.",)
    options = frozenset({"dropout", "freq_token", "head_dropout", "loss"})

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(complete(config))
        config = self.config
        self.context = config["context_length"]
        self.block = config["prediction_filter_length"] or config["prediction_length"]
        self.lookback = lookback or self.context
        self.horizon = min(horizon or self.block, self.block)
        self._bind_channels()
        self.backbone = nn.ModuleDict({"encoder": Encoder(config)})
        self.decoder = Decoder(config)
        flat = config["num_patches"] * config["decoder_d_model"]
        self.head = nn.ModuleDict(
            {"base_forecast_block": nn.Linear(flat, config["prediction_length"])}
        )
        if config["enable_forecast_channel_mixing"]:
            self.head["fcm_block"] = Reconciler(config, len(self.targets), len(self.known))
        self.head_dropout = Dropout(config["head_dropout"])

    def _bind_channels(self) -> None:
        """`targets` and `known` channels; a network that mixes or picks has a number of them."""
        config = self.config
        number, picked = config["num_input_channels"], config["prediction_channel_indices"]
        mixes = config["enable_forecast_channel_mixing"] or "mix_channel" in (
            config["mode"],
            config["decoder_mode"],
        )
        self.mixes_channels = mixes and number > 1
        self.num_channels = number if mixes or picked else None
        self.targets: list[int] = picked or list(range(number))
        self.known: list[int] = config["exogenous_channel_indices"] or []

    # -- the frequency ---------------------------------------------------------------------------

    def at_frequency(self, frequency: str) -> None:
        """Take the token of a pandas alias, unless the option says which; unknown ones are 0."""
        if self.config["resolution_prefix_tuning"] and self.config["freq_token"] is None:
            token = FREQUENCIES.get(re.sub(r"^1(?=\D)", "", frequency), 0)
            known = token < self.config["frequency_token_vocab_size"]
            self.config["freq_token"] = token if known else 0

    def _freq_tokens(self, past: Tensor) -> Tensor | None:
        """The token of each series, [B * C], of a network that has a place for it."""
        if not self.config["resolution_prefix_tuning"]:
            return None
        token: int | Sequence[int] = self.config["freq_token"] or 0
        tokens = torch.as_tensor(token, device=past.device)
        if tokens.ndim == 1 and len(tokens) != past.shape[0]:
            raise InputError(
                f"ttm: freq_token has {len(tokens)} values for {past.shape[0]} windows"
            )
        return tokens.expand(past.shape[0]).repeat_interleave(past.shape[1])

    # -- the network -----------------------------------------------------------------------------

    def network(self, scaled: Tensor, freq_tokens: Tensor | None = None) -> Tensor:
        """Scaled windows [M, L] -> scaled forecasts [M, H of the head]."""
        length = self.config["patch_length"]
        num_patches = self.context // length
        patches = scaled[:, -num_patches * length :].reshape(-1, num_patches, length)
        hidden = self.decoder(self.backbone["encoder"](patches, freq_tokens))
        return call(self.head["base_forecast_block"], self.head_dropout(hidden.flatten(1)))

    def _roll(
        self, past: Tensor, mask: Tensor | None, freq_tokens: Tensor | None, known: Tensor
    ) -> Tensor:
        """One native forecast: [B * C, L] -> [B * T, H of the head], in the units of `past`."""
        past, mask = self._fit(past), None if mask is None else self._fit(mask)
        loc, scale = location_scale(past, mask)
        forecast = self.network((past - loc) / scale, freq_tokens)[:, : self.block]
        if self.num_channels is not None:
            forecast, loc, scale = map(self._picked, (forecast, loc, scale))
            if "fcm_block" in self.head:
                seen = past.unflatten(0, (-1, self.num_channels))[:, self.targets + self.known]
                by_window = forecast.unflatten(0, (-1, len(self.targets)))
                forecast = call(self.head["fcm_block"], by_window, seen, known).flatten(0, 1)
        return torch.addcmul(loc, forecast, scale)

    def _picked(self, values: Tensor) -> Tensor:
        """The channels that are forecast: [B * C, ...] -> [B * T, ...]."""
        return values.unflatten(0, (-1, self.num_channels or 1))[:, self.targets].flatten(0, 1)

    def _fit(self, values: Tensor) -> Tensor:
        """The last L values, or zeros before fewer."""
        missing = self.context - values.shape[-1]
        return F.pad(values, (missing, 0)) if missing > 0 else values[..., -self.context :]

    def forecast(
        self,
        past: Tensor,
        horizon: int,
        *,
        past_mask: Tensor | None = None,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        future: Tensor | None = None,
    ) -> Tensor:
        """Point forecast of the channels that are forecast, [B, C, L] -> [B, T, H].

        `future` [B, C, H or more] holds the channels that are known beforehand, what it holds of
        others is not read. Otherwise as every model's `forecast`, errors included.
        """
        self._check_samples(num_samples)
        past, past_mask = self._checked(past, horizon, past_mask)
        if future is not None:
            future = self._checked_future(future, past, horizon)
        with torch.no_grad(), evaluating(self):
            return self._forecast(past, horizon, past_mask, future=future)

    def _checked_future(self, future: Tensor, past: Tensor, horizon: int) -> Tensor:
        check_rank("future", future)
        if not self.known:
            raise InputError("ttm: future is given, but this checkpoint has no exogenous channel")
        if future.shape[:2] != past.shape[:2] or future.shape[2] < horizon:
            raise InputError(
                f"future is {tuple(future.shape)}, not {(*past.shape[:2], horizon)} (or longer)"
            )
        if not bool(torch.isfinite(future[:, self.known]).all()):
            raise InputError(f"future holds NaN or infinite values in channels {self.known}")
        return future.to(past.dtype)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        future: Tensor | None = None,
    ) -> Tensor:
        num_windows, num_blocks = len(past), -(-horizon // self.block)
        self._check_channels(past, num_blocks)
        known = self._known_blocks(past, num_blocks, future)
        freq_tokens = self._freq_tokens(past)
        past = past.flatten(0, 1)
        mask = None if past_mask is None else past_mask.flatten(0, 1)
        blocks = [self._roll(past, mask, freq_tokens, known[0])]
        while len(blocks) < num_blocks:
            past = torch.cat([past, self._seen(blocks[-1], known[len(blocks) - 1])], dim=1)
            mask = None if mask is None else F.pad(mask, (0, self.block), value=1.0)
            blocks.append(self._roll(past, mask, freq_tokens, known[len(blocks)]))
        joined = torch.cat(blocks, dim=1) if len(blocks) > 1 else blocks[0]
        return joined[:, :horizon].reshape(num_windows, -1, horizon)

    def _check_channels(self, past: Tensor, num_blocks: int) -> None:
        """`InputError` for a window of other channels, or one that forecasts cannot continue."""
        if self.num_channels is None:
            return
        if past.shape[1] != self.num_channels:
            raise InputError(
                f"ttm: this checkpoint takes windows of {self.num_channels} channels, "
                f"given {past.shape[1]}"
            )
        lost = sorted(set(range(self.num_channels)) - set(self.targets) - set(self.known))
        if num_blocks > 1 and lost:
            raise InputError(
                f"ttm: beyond {self.block} steps forecasts are fed back, "
                f"but channels {lost} are neither forecast nor known"
            )

    def _known_blocks(self, past: Tensor, num_blocks: int, future: Tensor | None) -> list[Tensor]:
        """Per block of the horizon, the channels that are known: [B, E, H of the head] each."""
        length = num_blocks * self.block
        if future is None or not self.known:
            needed = "fcm_block" in self.head or num_blocks > 1
            if self.known and needed:
                raise InputError(
                    f"ttm: channels {self.known} are exogenous: give their values as future"
                )
            known = past.new_zeros(len(past), len(self.known), length)
        else:
            known = future[:, self.known, :length]
            known = F.pad(known, (0, length - known.shape[-1]))
        return list(known.split(self.block, dim=-1))

    def _seen(self, block: Tensor, known: Tensor) -> Tensor:
        """What follows the past in the next roll, [B * C, H]: forecasts, and what is known."""
        if self.num_channels is None:
            return block
        joined = torch.cat([block.unflatten(0, (-1, len(self.targets))), known], dim=1)
        channels = self.targets + self.known
        return joined[:, [channels.index(c) for c in range(len(channels))]].flatten(0, 1)

    def loss(
        self,
        past: Tensor,
        future: Tensor,
        *,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As every model's; exogenous channels are read whatever `future_mask` says (upstream)."""
        if self.known and future_mask is not None:
            check_rank("future", future)
            check_rank("future_mask", future_mask, future)
            future_mask = future_mask.clone()
            future_mask[:, self.known] = 1
        return super().loss(
            past, future, past_mask=past_mask, future_mask=future_mask, generator=generator
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
        """Mean of (forecast - future)^2, or `loss`, in the units of the input, where observed."""
        steps = self.config["prediction_filter_length"]
        future = future[..., :steps]
        forecast = self._forecast(past, future.shape[-1], past_mask, future=future)
        if self.num_channels is not None:
            future = future[:, self.targets]
        if future_mask is not None:
            observed = future_mask[..., :steps].bool()
            if self.num_channels is not None:
                observed = observed[:, self.targets]
            forecast, future = forecast[observed], future[observed]
        return self._score(forecast, future)

    def _score(self, forecast: Tensor, future: Tensor) -> Tensor:
        match self.config["loss"]:
            case "mae":
                return F.l1_loss(forecast, future)
            case "huber":
                return F.huber_loss(forecast, future, delta=self.config["huber_delta"])
            case "pinball":
                level, error = self.config["quantile"], future - forecast
                return torch.maximum(level * error, (level - 1) * error).mean()
        return F.mse_loss(forecast, future)

    def initial(self, init: InitName = "usable") -> dict[str, Start]:
        """PyTorch's defaults, of embeddings N(0, 1); nothing is degenerate.

        A config with `post_init` (the published ones have none) draws linear maps and embeddings by
        `init_linear` and `init_embed`.
        """
        return default_init(self, given_init(self, self.config))
