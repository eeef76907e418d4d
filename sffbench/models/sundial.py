"""Sundial: a causal decoder over patches, whose head is a flow that draws the next O values.

Tokens of P values and their mask bits, pre-norm layers with rotary positions and SwiGLU. The last
token conditions a small network (`FlowNet`) that turns noise into a sample of the next O = 720
values in K steps. State-dict names are those of the authors' model code, whose outputs
`golden/sundial` records. Call: `sffbench.models.load("sundial", folder).sample(past, 96, 20)`;
read top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.models._sundial_flow import FlowNet
from sffbench.models.base import LTSM, InitName, Preset
from sffbench.models.blocks import Dropout, call, masked_mean
from sffbench.models.timer import ACTIVATIONS, Attention, FeedForward, check, rotary

if TYPE_CHECKING:
    from sffkernels import Init

REQUIRED = (
    "input_token_len",
    "hidden_size",
    "intermediate_size",
    "output_token_lens",
    "num_hidden_layers",
    "num_attention_heads",
    "flow_loss_depth",
)
Draw = Callable[[int, int], Tensor]  # (samples, windows) -> noise that broadcasts to [S, M, O]


def _shape(
    token: int, block: int, width: int, inner: int, heads: int, layers: int, depth: int
) -> dict[str, Any]:
    return {
        "input_token_len": token,
        "hidden_size": width,
        "intermediate_size": inner,
        "output_token_lens": [block],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "flow_loss_depth": depth,
    }


PRESETS = {
    "tiny": Preset(
        # Fewer steps and draws than published (50 and 4), for the sake of one CPU core.
        config={
            **_shape(token=16, block=96, width=64, inner=128, heads=4, layers=3, depth=2),
            "num_sampling_steps": 10,
            "diffusion_batch_mul": 1,
        },
        lookback=512,
        horizon=96,
        num_parameters=226_336,
        lr=1e-3,
        licence="Apache-2.0",
        note="made here by `sffbench pretrain sundial:tiny` on synthetic series",
    ),
    "base-128m": Preset(
        config=_shape(token=16, block=720, width=768, inner=3072, heads=12, layers=12, depth=3),
        lookback=2880,
        horizon=720,
        num_parameters=128_329_680,
        lr=5e-5,
        licence="Apache-2.0",
        hub="thuml/sundial-base-128m",
        note="no training code was ever released; the loss is that of the model code",
    ),
}


class Embedding(nn.Module):
    """Tokens u = [values, mask bits] of 2 P -> dropout(W_o act(W_h u)) + W_r u, with biases."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.token = config["input_token_len"]
        self.act = ACTIVATIONS[config.get("hidden_act", "silu")]
        self.hidden_layer = nn.Linear(2 * self.token, inner)
        self.output_layer = nn.Linear(inner, width)
        self.residual_layer = nn.Linear(2 * self.token, width)
        self.dropout = Dropout(config.get("dropout_rate", 0.1))

    def forward(self, series: Tensor, seen: Tensor | None = None) -> Tensor:
        """[M, L] -> [M, N, D]; padded on the left to whole tokens, `seen` is 1 where observed."""
        seen = torch.ones_like(series) if seen is None else seen.to(series)
        missing = -series.shape[1] % self.token
        parts = [F.pad(values, (missing, 0)) for values in (series, seen)]
        tokens = torch.cat([part.reshape(len(part), -1, self.token) for part in parts], dim=-1)
        inner = self.act(self.hidden_layer(tokens))
        return call(self.dropout, self.output_layer(inner)) + call(self.residual_layer, tokens)


class Layer(nn.Module):
    """u = h + attention(LN1(h)); u + feed_forward(LN2(u))."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width = config["hidden_size"]
        dropout = config.get("dropout_rate", 0.1)
        self.self_attn = Attention({**config, "attention_dropout": dropout})
        self.ffn_layer = FeedForward(
            width, config["intermediate_size"], config.get("hidden_act", "silu")
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        mixed, _ = self.self_attn(self.norm1(hidden), angles, None)
        hidden = hidden + mixed
        return hidden + call(self.ffn_layer, self.norm2(hidden))


class Backbone(nn.Module):
    """Normalised series [M, L] -> what each token knows, [M, N, D]."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.head_width = config["hidden_size"] // config["num_attention_heads"]
        self.embed_layer = Embedding(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.LayerNorm(config["hidden_size"])

    def forward(self, series: Tensor, seen: Tensor | None = None) -> Tensor:
        hidden = self.embed_layer(series, seen)
        angles = rotary(0, hidden.shape[1], self.head_width, hidden)
        for layer in self.layers:
            hidden = layer(hidden, angles)
        return call(self.norm, hidden)


class Sundial(LTSM):
    """Sundial: scale, encode, draw the next O values by a flow; the forecast is the samples' mean.

    z = (x - mean) / (population std + 1e-5) of the whole context, which is padded on the left to
    whole tokens. A sample starts at noise e and takes K Euler steps x += (net(x, i / K) - e) / K:
    each step leads from the first noise, as the net predicts the end. Beyond O values, the lower
    median of the samples is appended to the context, for all samples alike, in the units of the
    first scaling. Upstream's `use_cache=False` returned the last block alone; here it is all of
    them. Missing values are left out of mean and std, enter as 0 and clear their mask bit (our
    rule: upstream has none).

    Without a generator a forecast draws 20 samples from a stream of its own, the same noise for
    each window, so that it depends neither on earlier calls nor on how windows are batched.
    """

    name = "sundial"
    presets = PRESETS
    capabilities = frozenset({"forecast", "zero-shot", "probabilistic"})
    head_prefixes = ("flow_loss.",)
    options = frozenset({"diffusion_batch_mul", "dropout_rate", "num_sampling_steps"})
    random_loss = True

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        lookback: int | None = None,
        horizon: int | None = None,
    ) -> None:
        super().__init__(config)
        check(self.name, config, REQUIRED)
        self.token, self.block = config["input_token_len"], config["output_token_lens"][-1]
        self.lookback = lookback or 180 * self.token  # the authors' longest context
        self.horizon = horizon or self.block
        self.num_steps = config.get("num_sampling_steps", 50)
        self.num_repeats = config.get("diffusion_batch_mul", 4)
        self.model = Backbone(config)
        net = FlowNet(self.block, config["hidden_size"], config["flow_loss_depth"])
        self.flow_loss = nn.ModuleDict({"net": net})

    def flow(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Normalised samples of the next O values: [M, D] and noise [S, M, O] -> [S, M, O]."""
        state = noise
        for step in range(self.num_steps):
            time = condition.new_full((1,), step / self.num_steps, dtype=torch.float32)
            end = call(self.flow_loss["net"], state, time, condition)
            state = state + (end - noise) / self.num_steps
        return state

    def paths(
        self, series: Tensor, horizon: int, num_samples: int, draw: Draw, seen: Tensor | None = None
    ) -> Tensor:
        """Samples after normalised series [M, L], [S, M, H]; `draw` gives each block its noise."""
        blocks: list[Tensor] = []
        while len(blocks) * self.block < horizon:
            noise = draw(num_samples, len(series)).expand(num_samples, len(series), self.block)
            blocks.append(self.flow(self.model(series, seen)[:, -1], noise))
            series = torch.cat([series, blocks[-1].median(dim=0).values], dim=1)
            seen = None if seen is None else F.pad(seen, (0, self.block), value=1.0)
        return torch.cat(blocks, dim=-1)[..., :horizon]

    def _sample(
        self,
        past: Tensor,
        horizon: int,
        num_samples: int,
        past_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """[B, C, L] -> [B, C, S, H]; without a generator all windows share their noise."""
        series, seen = past.flatten(0, 1), None if past_mask is None else past_mask.flatten(0, 1)
        mean, std = statistics(series, seen)
        std = std + 1e-5
        shared = torch.Generator().manual_seed(0)

        def draw(num_samples: int, num_windows: int) -> Tensor:
            if generator is None:
                return random(torch.randn, (num_samples, 1, self.block), series, shared)
            shape = (num_samples, num_windows, self.block)
            return random(torch.randn, shape, series, generator)

        normed = normalise(series, mean, std, seen)
        drawn = self.paths(normed, horizon, num_samples, draw, seen)
        drawn = torch.addcmul(mean, drawn, std).transpose(0, 1)
        return drawn.reshape(*past.shape[:2], num_samples, horizon)

    def _forecast(
        self,
        past: Tensor,
        horizon: int,
        past_mask: Tensor | None = None,
        *,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        number = num_samples or self.num_samples
        return self._sample(past, horizon, number, past_mask, generator=generator).mean(2)

    def _loss(
        self,
        past: Tensor,
        future: Tensor,
        past_mask: Tensor | None = None,
        future_mask: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Mean over tokens and draws of sum_k (net(t y + (1 - t) e, t) - y)_k^2 / k, normalised.

        y is what follows a token, O values, of which the first H count; beyond the window it is 0.
        t is uniform and e normal, 4 pairs for each token of each window, from `generator` or
        torch's own. A std of 0.01 or less counts as 1 and there is no epsilon: upstream's rule in
        training, other than in forecasting. Where H > O, the future but its last O values is input
        as well. Upstream tiles its horizon masks in another order than its targets; here each
        target has its own.
        """
        past, future = past.flatten(0, 1), future.flatten(0, 1)
        seen = torch.ones_like(past) if past_mask is None else past_mask.flatten(0, 1).to(past)
        wanted = (
            torch.ones_like(future) if future_mask is None else future_mask.flatten(0, 1).to(past)
        )
        mean, std = statistics(past, seen)
        std = std.masked_fill(std <= 1e-2, 1.0)
        past, future = normalise(past, mean, std, seen), normalise(future, mean, std, wanted)
        inputs, target = self._targets(past, future)
        known, weight = self._targets(seen, wanted)
        weight = weight[..., : future.shape[1]].flatten(0, 1)
        condition = self.model(inputs, known).flatten(0, 1)
        rows = (self.num_repeats, len(condition))
        noise = random(torch.randn, (*rows, self.block), past, generator)
        time = random(torch.rand, rows, past, generator)
        errors = self.errors(condition, target.flatten(0, 1), noise, time, weight)
        return masked_mean(errors, weight.amax(-1).expand(rows))

    def _targets(self, past: Tensor, future: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [M, L'] and the O values after each of their tokens, [M, N, O]."""
        extra = -(-max(future.shape[1] - self.block, 0) // self.token) * self.token
        series = F.pad(torch.cat([past, future], dim=1), (0, self.token + self.block))
        end = past.shape[1] + extra
        first = (end - 1) % self.token + 1  # this token is padded on the left
        return series[:, :end], series[:, first : end + self.block].unfold(
            1, self.block, self.token
        )

    def errors(
        self, condition: Tensor, target: Tensor, noise: Tensor, time: Tensor, weight: Tensor
    ) -> Tensor:
        """Loss of each draw: condition [R, D], target [R, O], weight [..., H] -> [repeats, R].

        noise [repeats, R, O], time [repeats, R].
        """
        noised = time[..., None] * target + (1 - time[..., None]) * noise
        error = call(self.flow_loss["net"], noised, time, condition) - target
        error = error[..., : weight.shape[-1]]
        harmonic = torch.arange(1, error.shape[-1] + 1, device=error.device).reciprocal()
        return (harmonic * weight * error.square()).sum(-1)

    def initial(self, init: InitName = "usable") -> dict[str, Init]:
        """Linear weights N(0, 0.02), biases 0, LayerNorm 1 and 0; nothing degenerate to replace.

        The zero start of the flow's modulation, which its code asks for, is overwritten upstream by
        the same rule as everything else: it never happens, and it does not happen here.
        """
        from sffkernels import Init

        std = float(self.config.get("initializer_range", 0.02))
        return {
            name: Init("normal", 0.0, std)
            if parameter.ndim == 2
            else Init("constant", 1.0 if name.endswith("weight") else 0.0)
            for name, parameter in self.named_parameters()
        }


def statistics(series: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and population std of the observed values of [M, L], each [M, 1]."""
    if seen is None:
        mean = series.mean(1, keepdim=True)
        return mean, (series - mean).square().mean(1, keepdim=True).sqrt()
    count = seen.sum(1, keepdim=True).clamp_min(1.0)
    mean = (series * seen).sum(1, keepdim=True) / count
    return mean, (((series - mean) * seen).square().sum(1, keepdim=True) / count).sqrt()


def normalise(values: Tensor, mean: Tensor, std: Tensor, seen: Tensor | None) -> Tensor:
    """(x - mean) / std, 0 where not observed."""
    normed = (values - mean) / std
    return normed if seen is None else normed * seen


def random(
    law: Callable[..., Tensor],
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """`torch.randn` or `torch.rand`, drawn where the generator lives, then moved to `like`."""
    device = like.device if generator is None else generator.device
    return law(shape, generator=generator, device=device).to(like)
