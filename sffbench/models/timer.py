"""Timer (the Hugging Face release `timer-base-84m`): a decoder over patches of one variable.

Tokens of P values, causal attention with rotary positions, SwiGLU, LayerNorm after each residual
sum; token i predicts token i + 1. State-dict names are those of the authors' model code, whose
outputs `golden/timer` records. Timer 1.0, another network of the same family, is in
`_timer_legacy.py`. Call: `sffbench.models.load("timer", folder).forecast(past, 192)`; read top to
bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models.base import LTSM, InitName, Preset
from sffbench.models.blocks import call, causal_attention, masked_mean, next_tokens

if TYPE_CHECKING:
    from sffbench.models.twin import Start

ROPE_BASE = 10_000.0  # the config's `rope_theta` is ignored by the authors' code, and so it is here
# By `hidden_act`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
}
REQUIRED = (
    "input_token_len",
    "hidden_size",
    "intermediate_size",
    "output_token_lens",
    "num_hidden_layers",
    "num_attention_heads",
)


def _shape(token: int, width: int, inner: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "input_token_len": token,
        "hidden_size": width,
        "intermediate_size": inner,
        "output_token_lens": [token],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


ORIGIN_LEGACY = "the cloud folders that github.com/thuml/Large-Time-Series-Model links to"


def _shape_legacy(patch: int, width: int, inner: int, layers: int) -> dict[str, Any]:
    return {
        "patch_len": patch,
        "d_model": width,
        "d_ff": inner,
        "e_layers": layers,
        "n_heads": 8,
    }


PRESETS = {
    "tiny": Preset(
        config=_shape(token=96, width=64, inner=128, heads=4, layers=4),
        lookback=672,
        horizon=96,
        num_parameters=178_048,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain timer:tiny` on synthetic series",
    ),
    "base-84m": Preset(
        config=_shape(token=96, width=1024, inner=2048, heads=8, layers=8),
        lookback=2880,
        horizon=96,
        num_parameters=84_142_080,
        lr=1e-4,
        licence="Apache-2.0",
        hub="thuml/timer-base-84m",
        note="sizes confirmed by the parameter count; 260 billion points, up to 30 tokens",
    ),
    "1.0": Preset(
        config=_shape_legacy(patch=96, width=1024, inner=2048, layers=8),
        lookback=672,
        horizon=96,
        num_parameters=67_397_728,
        lr=1e-4,
        licence="MIT (code); none stated for the weights",
        files=("Timer_forecast_1.0.ckpt",),
        origin=ORIGIN_LEGACY,
        any_size=True,
        note="the one that SFF fine-tuned",
    ),
    "1.0-imputation": Preset(
        config=_shape_legacy(patch=24, width=256, inner=512, layers=4),
        lookback=192,
        horizon=24,
        num_parameters=2_121_240,
        lr=1e-4,
        licence="MIT (code); none stated for the weights",
        files=("Timer_imputation_1.0.ckpt",),
        origin=ORIGIN_LEGACY,
        any_size=True,
    ),
    "1.0-anomaly": Preset(
        config=_shape_legacy(patch=96, width=256, inner=512, layers=4),
        lookback=768,
        horizon=96,
        num_parameters=2_158_176,
        lr=1e-4,
        licence="MIT (code); none stated for the weights",
        files=("Timer_anomaly_detection_1.0.ckpt",),
        origin=ORIGIN_LEGACY,
        any_size=True,
    ),
}

Cache = list[tuple[Tensor, Tensor]]


def rotary(start: int, num_tokens: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2j/d), [N, 1, d]: dimension j turns with j + d/2."""
    half = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
    position = torch.arange(start, start + num_tokens, device=like.device, dtype=torch.float32)
    angle = torch.outer(position, ROPE_BASE ** (-half / width)).repeat(1, 2)[:, None]
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys [M, N, heads, d] by their positions."""
    first, second = values.chunk(2, dim=-1)
    return values * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention; q, k and v have biases, the output has none."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width = config["hidden_size"]
        self.head_width = width // config["num_attention_heads"]
        self.dropout = config.get("attention_dropout", 0.0)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[M, N, D] -> [M, N, D], and the keys and values so far; `seen` are earlier ones."""
        heads = (-1, self.head_width)
        query = rotate(self.q_proj(hidden).unflatten(-1, heads), *angles)
        key = rotate(self.k_proj(hidden).unflatten(-1, heads), *angles)
        value = self.v_proj(hidden).unflatten(-1, heads)
        if seen is not None:
            key, value = torch.cat([seen[0], key], 1), torch.cat([seen[1], value], 1)
        # Upstream passes its dropout to the kernel in eval mode too; here it acts in training only.
        mixed = causal_attention(query, key, value, self.dropout if self.training else 0.0)
        return call(self.o_proj, mixed.flatten(-2)), (key, value)


class FeedForward(nn.Module):
    """SwiGLU: W_down(act(W_gate h) * W_up h), act the silu of published configs; no biases."""

    def __init__(self, width: int, inner: int, act: str = "silu"):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return call(self.down_proj, self.act(self.gate_proj(hidden)) * self.up_proj(hidden))


class Layer(nn.Module):
    """u = LN1(h + attention(h)); LN2(u + feed_forward(u))."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width = config["hidden_size"]
        self.self_attn = Attention(config)
        self.ffn_layer = FeedForward(
            width, config["intermediate_size"], config.get("hidden_act", "silu")
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self, hidden: Tensor, angles: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mixed, seen = self.self_attn(hidden, angles, seen)
        hidden = self.norm1(hidden + mixed)
        return self.norm2(hidden + self.ffn_layer(hidden)), seen


class Backbone(nn.Module):
    """Tokens [M, N, P] -> hidden [M, N, D]; a norm of its own follows the last layer's."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width = config["hidden_size"]
        self.head_width = width // config["num_attention_heads"]
        embed = nn.Linear(config["input_token_len"], width, bias=False)
        self.embed_layer = nn.ModuleDict({"emb": embed})
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """`cache` holds keys and values of earlier tokens per layer, and is brought up to date."""
        start = cache[0][0].shape[1] if cache else 0
        hidden = self.embed_layer["emb"](tokens)
        angles = rotary(start, tokens.shape[1], self.head_width, hidden)
        for index, layer in enumerate(self.layers):
            hidden, seen = layer(hidden, angles, cache[index] if start and cache else None)
            if cache is not None:
                cache[index : index + 1] = [seen]
        return call(self.norm, hidden)


class Timer(LTSM):
    """Timer: normalise the context once, predict the next token, feed it back up to the horizon.

    z = (x - mean) / std, std unbiased, no epsilon. The context is cut on the left to whole tokens;
    fewer values than one token are refused. A context that is constant to float precision (std at
    most 1e-6 of its largest magnitude) has no scale: it is divided by 1 and forecast as its mean,
    where upstream gives NaN. Masked values are left out of mean and std and set to 0 after (our
    rule).

    Upstream's `generate` re-normalises each chunk that it feeds back with the chunk's own
    statistics while cached keys used others; that quirk is fixed here by normalising once, as its
    users do.
    """

    name = "timer"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot"})
    head_prefixes = ("lm_heads.",)
    options = frozenset({"attention_dropout"})

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> type[LTSM]:
        """Timer 1.0's configs hold its command-line names, such as `e_layers`."""
        if "e_layers" in config:
            from sffbench.models._timer_legacy import TimerLegacy

            return TimerLegacy
        return cls

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(config)
        check("timer", config, REQUIRED)
        if list(config["output_token_lens"]) != [config["input_token_len"]]:
            raise InputError(
                f"timer: output_token_lens={config['output_token_lens']!r} is not supported, "
                f"allowed: one head of the input's length, [{config['input_token_len']}]"
            )
        self.token = config["input_token_len"]
        self.lookback = lookback or 30 * self.token  # the authors' longest context
        self.horizon = horizon or self.token
        self.model = Backbone(config)
        head = nn.Linear(config["hidden_size"], self.token, bias=False)
        self.lm_heads = nn.ModuleList([head])

    def network(self, series: Tensor, cache: Cache | None = None) -> Tensor:
        """Normalised tokens [M, N * P] -> the token after each, [M, N * P]."""
        hidden = self.model(series.reshape(len(series), -1, self.token), cache)
        return call(self.lm_heads[0], hidden).flatten(1)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        series, mask = self._tokens(past), None if past_mask is None else self._tokens(past_mask)
        mean, std, constant = statistics(series, mask)
        normed = _normalise(series, mean, std, mask)
        cache: Cache = []
        blocks = [self.network(normed, cache)[:, -self.token :]]
        while len(blocks) * self.token < horizon:
            blocks.append(self.network(blocks[-1], cache))
        forecast = torch.cat(blocks, dim=1)[:, :horizon]
        forecast = torch.addcmul(mean, forecast, std.masked_fill(constant, 0.0))
        return forecast.reshape(*past.shape[:2], horizon)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over all predicted values of (network - z)^2, z by the context's mean and std.

        Every token of the context is supervised by the next, the last ones by the future.
        Normalised units, as the authors train it: windows weigh alike whatever their scale.
        """
        past, future = self._tokens(past), future.flatten(0, 1)
        masks = None
        if past_mask is not None or future_mask is not None:
            seen = torch.ones_like(past) if past_mask is None else self._tokens(past_mask)
            wanted = torch.ones_like(future) if future_mask is None else future_mask.flatten(0, 1)
            masks = seen.to(past), wanted.to(past)
        mean, std, _ = statistics(past, masks[0] if masks else None)
        past = _normalise(past, mean, std, masks[0] if masks else None)
        future = _normalise(future, mean, std, masks[1] if masks else None)
        inputs, target = next_tokens(past, future, self.token)
        predicted = self.network(inputs)[:, : target.shape[1]]
        if masks is None:
            return F.mse_loss(predicted, target)
        return masked_mean((predicted - target).square(), next_tokens(*masks, self.token)[1])

    def _tokens(self, values: Tensor) -> Tensor:
        """[B, C, L] -> [M, N * P]: the last whole tokens of each variable."""
        num_tokens = values.shape[-1] // self.token
        if num_tokens < 1:
            raise InputError(
                f"timer needs a lookback of at least one token, {self.token} values, "
                f"given {values.shape[-1]}"
            )
        return values[..., values.shape[-1] - num_tokens * self.token :].flatten(0, 1)

    def initial(self, init: InitName = "usable") -> Mapping[str, Start]:
        """Linear weights N(0, 0.02), biases 0, LayerNorm 1 and 0; nothing degenerate to replace."""
        from sffkernels import Init

        std = float(self.config.get("initializer_range", 0.02))
        return {
            name: Init("normal", 0.0, std)
            if parameter.ndim == 2
            else Init("constant", 1.0 if name.endswith("weight") else 0.0)
            for name, parameter in self.named_parameters()
        }


def statistics(series: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased std (1 where constant) and whether constant, each [M, 1], of [M, L]."""
    if mask is None:
        std, mean = torch.std_mean(series, dim=1, keepdim=True)
    else:
        observed = mask.sum(1, keepdim=True)
        mean = (series * mask).sum(1, keepdim=True) / observed.clamp_min(1.0)
        squares = ((series - mean) * mask).square().sum(1, keepdim=True)
        std = (squares / (observed - 1.0).clamp_min(1.0)).sqrt()
    constant = std <= 1e-6 * series.abs().amax(1, keepdim=True)
    return mean, std.masked_fill(constant, 1.0), constant


def _normalise(values: Tensor, mean: Tensor, std: Tensor, mask: Tensor | None) -> Tensor:
    normed = (values - mean) / std
    return normed if mask is None else normed * mask


def check(model: str, config: Mapping[str, Any], required: Sequence[str]) -> None:
    """`InputError` naming what the config lacks, or asks for beyond this file."""
    if absent := [key for key in required if key not in config]:
        raise InputError(f"{model}: config.json lacks {', '.join(absent)}")
    if (act := config.get("hidden_act", "silu")) not in ACTIVATIONS:
        raise InputError(
            f"{model}: hidden_act={act!r} is not supported, allowed: {', '.join(ACTIVATIONS)}"
        )
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % (2 * heads):
        raise InputError(
            f"{model}: hidden_size={width} must be an even multiple of num_attention_heads={heads}"
        )
