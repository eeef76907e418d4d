"""The T5 stacks that Chronos and MOMENT share: an encoder, and a decoder that looks at it.

Pre-norm residual sub-layers, RMS norms without bias, unscaled attention with a learned bias per
relative distance (one table, held by the first block of a stack), feed-forward plain or gated.
State-dict names are those of `transformers`. A part of `chronos.py` and `moment.py`, which embed
their own tokens: `Encoder(config)(embedded, observed)`, with `config` from `complete`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sffbench.errors import InputError
from sffbench.models import fields
from sffbench.models.blocks import Dropout, call

if TYPE_CHECKING:
    from sffkernels import Init

DEFAULTS: dict[str, Any] = {
    "dropout_rate": 0.1,
    "feed_forward_proj": "relu",
    "initializer_factor": 1.0,
    "layer_norm_epsilon": 1e-6,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
}
REQUIRED = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda values: F.gelu(values, approximate="tanh"),
    "silu": F.silu,
}
KeysValues = tuple[Tensor, Tensor]
Cache = dict[nn.Module, KeysValues]  # what each attention of a decoder has seen so far


def complete(model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A T5 config with defaults; `InputError` names what it lacks, or asks for beyond this file."""
    if absent := [key for key in REQUIRED if key not in config]:
        raise InputError(f"{model}: config.json lacks {', '.join(absent)}")
    full = DEFAULTS | {"num_decoder_layers": config["num_layers"]} | dict(config)
    fields.check(model, full, [DEFAULTS, dict.fromkeys(REQUIRED, 1)])
    kind = str(full["feed_forward_proj"])
    if kind.removeprefix("gated-") not in ACTIVATIONS:
        raise InputError(
            f"{model}: feed_forward_proj={kind!r} is not supported, "
            f"allowed: {', '.join(ACTIVATIONS)}, and each with gated- before it"
        )
    return full


def activation(config: Mapping[str, Any]) -> tuple[Callable[[Tensor], Tensor], bool]:
    """What `feed_forward_proj` names, and whether it is gated; "gated-gelu" is the tanh formula."""
    kind = config["feed_forward_proj"]
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    return ACTIVATIONS[name], kind.startswith("gated-")


class Attention(nn.Module):
    """softmax(q k' + bias) v, not scaled; heads * d_kv may differ from the model's width."""

    def __init__(self, config: Mapping[str, Any], biased: bool = False):
        super().__init__()
        width, self.head_width = config["d_model"], config["d_kv"]
        inner = config["num_heads"] * self.head_width
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(config["dropout_rate"])
        if biased:
            num_buckets = config["relative_attention_num_buckets"]
            self.relative_attention_bias = nn.Embedding(num_buckets, config["num_heads"])

    def keys_values(self, context: Tensor) -> KeysValues:
        """[M, K, D] -> two [M, heads, K, d]."""
        return self._heads(self.k(context)), self._heads(self.v(context))

    def forward(self, hidden: Tensor, keys_values: KeysValues, bias: Tensor) -> Tensor:
        """[M * S, N, D] -> [M * S, N, D], keys [M, heads, K, d]: S rows in turn share a window's.

        `bias` broadcasts to [M, heads, S * N, K].
        """
        key, value = keys_values
        query = self._heads(self.q(hidden.reshape(len(key), -1, hidden.shape[-1])))
        scores = query @ key.transpose(-1, -2) + bias
        exact = torch.promote_types(scores.dtype, torch.float32)
        weights = self.dropout(scores.softmax(-1, dtype=exact).to(value.dtype))
        mixed = call(self.o, (weights @ value).transpose(1, 2).flatten(2))
        return mixed.view(*hidden.shape[:2], -1)

    def _heads(self, values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], -1, self.head_width).transpose(1, 2)


class FeedForward(nn.Module):
    """wo(dropout(act(wi h))), or gated, wo(dropout(act(wi_0 h) * wi_1 h)); no biases."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        width, inner = config["d_model"], config["d_ff"]
        self.act, self.gated = activation(config)
        if self.gated:
            self.wi_0 = nn.Linear(width, inner, bias=False)
            self.wi_1 = nn.Linear(width, inner, bias=False)
        else:
            self.wi = nn.Linear(width, inner, bias=False)
        self.wo = nn.Linear(inner, width, bias=False)
        self.dropout = Dropout(config["dropout_rate"])

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gated:
            inner = self.act(self.wi_0(hidden)) * self.wi_1(hidden)
        else:
            inner = self.act(self.wi(hidden))
        return call(self.wo, self.dropout(inner))


class SubLayer(nn.Module):
    """The norm and the dropout of h + dropout(f(norm(h))); a subclass brings f."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.layer_norm = nn.RMSNorm(config["d_model"], eps=config["layer_norm_epsilon"])
        self.dropout = Dropout(config["dropout_rate"])


class SelfLayer(SubLayer):
    """Attention to the stack's own tokens; `cache` holds keys and values of earlier ones."""

    def __init__(self, config: Mapping[str, Any], first: bool):
        super().__init__(config)
        self.SelfAttention = Attention(config, biased=first)

    def forward(self, hidden: Tensor, bias: Tensor, cache: Cache | None = None) -> Tensor:
        normed = self.layer_norm(hidden)
        key, value = self.SelfAttention.keys_values(normed)
        if cache is not None:
            if self in cache:
                earlier = cache[self]
                key, value = torch.cat([earlier[0], key], 2), torch.cat([earlier[1], value], 2)
            cache[self] = key, value
        return hidden + call(self.dropout, self.SelfAttention(normed, (key, value), bias))


class CrossLayer(SubLayer):
    """Attention to the encoder's tokens, whose keys and values a `cache` keeps."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.EncDecAttention = Attention(config)

    def forward(
        self, hidden: Tensor, context: Tensor, bias: Tensor, cache: Cache | None = None
    ) -> Tensor:
        cache = {} if cache is None else cache
        if self not in cache:
            cache[self] = self.EncDecAttention.keys_values(context)
        mixed = self.EncDecAttention(self.layer_norm(hidden), cache[self], bias)
        return hidden + call(self.dropout, mixed)


class FeedForwardLayer(SubLayer):
    """The position-wise map."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config)
        self.DenseReluDense = FeedForward(config)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + call(self.dropout, self.DenseReluDense(self.layer_norm(hidden)))


class Block(nn.Module):
    """Sub-layers under the key `layer`: to itself, to the encoder where it decodes, the map."""

    def __init__(self, config: Mapping[str, Any], first: bool, decodes: bool):
        super().__init__()
        cross = [CrossLayer(config)] if decodes else []
        self.layer = nn.ModuleList([SelfLayer(config, first), *cross, FeedForwardLayer(config)])

    def forward(
        self,
        hidden: Tensor,
        bias: Tensor,
        context: Tensor | None = None,
        cross: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        hidden = self.layer[0](hidden, bias, cache)
        if context is not None:
            hidden = self.layer[1](hidden, context, cross, cache)
        return call(self.layer[-1], hidden)


class Stack(nn.Module):
    """What encoder and decoder have in common: blocks, a last norm, the bias of distances."""

    bidirectional = True

    def __init__(self, config: Mapping[str, Any], num_layers: int):
        super().__init__()
        decodes = not self.bidirectional
        self.block = nn.ModuleList(
            Block(config, index == 0, decodes) for index in range(num_layers)
        )
        self.final_layer_norm = nn.RMSNorm(config["d_model"], eps=config["layer_norm_epsilon"])
        self.dropout = Dropout(config["dropout_rate"])
        self.num_buckets = config["relative_attention_num_buckets"]
        self.max_distance = config["relative_attention_max_distance"]

    @property
    def first(self) -> SelfLayer:
        """The sub-layer that holds the table of distances."""
        first = self.block[0].get_submodule("layer.0")
        assert isinstance(first, SelfLayer)
        return first

    def positions(self, num_tokens: int, num_queries: int) -> Tensor:
        """Bias [1, heads, N, K] of the last N = `num_queries` tokens for all K = `num_tokens`."""
        place = torch.arange(num_tokens, device=self.final_layer_norm.weight.device)
        distance = place - place[num_tokens - num_queries :, None]
        bucket = buckets(distance, self.num_buckets, self.max_distance, self.bidirectional)
        table = self.first.SelfAttention.relative_attention_bias
        bias = call(table, bucket).permute(2, 0, 1)[None]
        return bias if self.bidirectional else bias.masked_fill(distance > 0, lowest(bias))


class Encoder(Stack):
    """Embedded tokens [M, N, D] -> hidden [M, N, D]; `observed` [M, N] is 0 for unseen tokens."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config, config["num_layers"])

    def forward(self, embedded: Tensor, observed: Tensor | None = None) -> Tensor:
        num_tokens = embedded.shape[1]
        bias = self.positions(num_tokens, num_tokens)
        if observed is not None:
            bias = bias + unseen(observed, bias)
        hidden = self.dropout(embedded)
        for block in self.block:
            hidden = block(hidden, bias)
        return call(self.dropout, self.final_layer_norm(hidden))


class Decoder(Stack):
    """Embedded tokens [S * M, N, D] and the encoder's [M, K, D] -> hidden [S * M, N, D].

    Causal. With a `cache`, `embedded` holds the tokens after those it has seen.
    """

    bidirectional = False

    def __init__(self, config: Mapping[str, Any]):
        super().__init__(config, config["num_decoder_layers"])

    def forward(
        self,
        embedded: Tensor,
        context: Tensor,
        observed: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        num_seen = cache[self.first][0].shape[2] if cache else 0
        bias = self.positions(num_seen + embedded.shape[1], embedded.shape[1])
        cross = bias.new_zeros(1) if observed is None else unseen(observed, bias)
        hidden = self.dropout(embedded)
        for block in self.block:
            hidden = block(hidden, bias, context, cross, cache)
        return call(self.dropout, self.final_layer_norm(hidden))


def buckets(distance: Tensor, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Bucket of each key's distance from its query: one each when near, log-spaced when far.

    A bidirectional stack gives half of the buckets to later keys; a causal one counts those as
    distance 0. The last bucket of a side holds all from `max_distance` on.
    """
    if bidirectional:
        num_buckets //= 2
        offset, distance = num_buckets * (distance > 0), distance.abs()
    else:
        offset, distance = torch.zeros_like(distance), (-distance).clamp_min(0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp_max(num_buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def lowest(like: Tensor) -> float:
    """What a score gets instead of -inf, so that a window with nothing to see stays finite."""
    return torch.finfo(like.dtype).min / 2


def unseen(observed: Tensor, like: Tensor) -> Tensor:
    """Bias that hides tokens with `observed` 0: [M, K] -> [M, 1, 1, K]."""
    return (observed == 0)[:, None, None].to(like.dtype) * lowest(like)


def initial(
    stack: nn.Module, prefix: str, config: Mapping[str, Any], factor: float
) -> dict[str, Init]:
    """T5's rules for the parameters of a stack, f = `factor`, all normal with mean 0.

    q: f / sqrt(D d_kv); k, v, wi and relative bias: f / sqrt(D); o: f / sqrt(heads d_kv);
    wo: f / sqrt(d_ff); embeddings of words: f; the gains of norms are the constant f.
    """
    from sffkernels import Init

    width, head_width = config["d_model"], config["d_kv"]
    spread = {
        "q": (width * head_width) ** -0.5,
        "o": (config["num_heads"] * head_width) ** -0.5,
        "wo": config["d_ff"] ** -0.5,
        "embed_tokens": 1.0,
    }
    table: dict[str, Init] = {}
    for name, _ in stack.named_parameters():
        kind = name.split(".")[-2]
        gain = Init("constant", factor)
        drawn = Init("normal", 0.0, factor * spread.get(kind, width**-0.5))
        table[prefix + name] = gain if kind.endswith("layer_norm") else drawn
    return table
