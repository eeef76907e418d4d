"""The T5 stacks against plain float64 definitions, and their rules for shapes and caches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sffbench.errors import InputError
from sffbench.models import _t5

CONFIG = {"d_model": 12, "d_ff": 20, "d_kv": 5, "num_heads": 3, "num_layers": 2}


@pytest.fixture
def build():
    """A stack of `CONFIG` in float64 and eval mode, drawn at random."""

    def make(stack, **changes):
        torch.manual_seed(0)
        built = stack(_t5.complete("mine", CONFIG | changes)).double().eval()
        for parameter in built.parameters():
            nn.init.normal_(parameter, std=0.5)
        return built

    return make


def bucket(distance, num_buckets, max_distance, bidirectional):
    """One bucket, straight from T5's description."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return offset + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return offset + min(exact + int(share * (num_buckets - exact) + 1e-6), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_buckets_are_exact_when_near_and_logarithmic_when_far(
    num_buckets, max_distance, bidirectional
):
    distances = torch.arange(-300, 301)
    expected = [bucket(d, num_buckets, max_distance, bidirectional) for d in distances.tolist()]
    actual = _t5.buckets(distances, num_buckets, max_distance, bidirectional)
    assert actual.tolist() == expected


def norm(values, gain):
    return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def attend(attention, queries, keys, bias):
    """Head by head, softmax(q k' + bias) v."""
    weights = {name: getattr(attention, name).weight.split(5) for name in "qkv"}
    heads = []
    for head in range(3):
        q, k, v = (
            given @ weights[name][head].T
            for name, given in (("q", queries), ("k", keys), ("v", keys))
        )
        heads.append((q @ k.transpose(1, 2) + bias[:, head]).softmax(-1) @ v)
    return torch.cat(heads, -1) @ attention.o.weight.T


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


FEED_FORWARDS = {  # feed_forward_proj -> (activation, gated)
    "relu": (lambda x: x.clamp_min(0), False),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), False),
    "gelu_new": (tanh_gelu, False),
    "silu": (lambda x: x / (1 + torch.exp(-x)), False),
    "gated-relu": (lambda x: x.clamp_min(0), True),
    "gated-gelu": (tanh_gelu, True),
    "gated-silu": (lambda x: x / (1 + torch.exp(-x)), True),
}


@pytest.mark.parametrize("kind", FEED_FORWARDS)
@torch.no_grad()
def test_the_encoder_is_its_formula_with_unseen_tokens_left_out(build, kind):
    encoder = build(_t5.Encoder, feed_forward_proj=kind)
    hidden = torch.randn(2, 7, 12, dtype=torch.float64)
    observed = torch.tensor([[1.0] * 7, [0, 0, 1, 1, 0, 1, 1]])
    actual = encoder(hidden, observed)
    table = encoder.first.SelfAttention.relative_attention_bias.weight
    place = torch.arange(7)
    bias = table[_t5.buckets(place - place[:, None], 32, 128, True)].permute(2, 0, 1)
    bias = bias[None].masked_fill(observed[:, None, None] == 0, float("-inf"))
    for block in encoder.block:
        attention, feed_forward = block.layer
        normed = norm(hidden, attention.layer_norm.weight)
        hidden = hidden + attend(attention.SelfAttention, normed, normed, bias)
        dense = feed_forward.DenseReluDense
        act, gated = FEED_FORWARDS[kind]
        normed = norm(hidden, feed_forward.layer_norm.weight)
        first, *second = (getattr(dense, n) for n in (("wi_0", "wi_1") if gated else ("wi",)))
        inner = act(normed @ first.weight.T)
        for gate in second:
            inner = inner * (normed @ gate.weight.T)
        hidden = hidden + inner @ dense.wo.weight.T
    expected = norm(hidden, encoder.final_layer_norm.weight)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_decoder_is_causal_and_reads_the_observed_tokens_alone(build):
    decoder = build(_t5.Decoder)
    tokens, context = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 6))
    observed = torch.tensor([[1.0, 1, 1, 1, 1, 0]] * 2)
    whole = decoder(tokens, context, observed)
    torch.testing.assert_close(decoder(tokens[:, :3], context, observed), whole[:, :3])
    torch.testing.assert_close(decoder(tokens, context[:, :5]), whole)


@torch.no_grad()
def test_a_cache_and_shared_keys_change_nothing(build):
    decoder = build(_t5.Decoder)
    context = torch.randn(2, 6, 12, dtype=torch.float64)
    tokens = torch.randn(2 * 3, 5, 12, dtype=torch.float64)  # three samples of each window
    expected = decoder(tokens, context.repeat_interleave(3, 0))
    cache = {}
    parts = [decoder(part, context, cache=cache) for part in tokens.split((1, 1, 3), dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected)


@torch.no_grad()
def test_a_window_with_nothing_to_see_stays_finite(build):
    hidden = torch.randn(2, 4, 12, dtype=torch.float64)
    observed = torch.tensor([[1.0] * 4, [0.0] * 4])
    encoder, decoder = build(_t5.Encoder), build(_t5.Decoder)
    assert decoder(hidden[:, :1], encoder(hidden, observed), observed).isfinite().all()
    both = encoder(hidden.float().double(), observed)
    torch.testing.assert_close(both[:1], encoder(hidden[:1]))


def test_a_hooked_linear_layer_is_called(build):
    encoder, hidden = build(_t5.Encoder), torch.randn(1, 4, 12, dtype=torch.float64)
    calls = []
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: calls.append(1))
    encoder(hidden)
    assert len(calls) == sum(isinstance(module, nn.Linear) for module in encoder.modules()) == 12


def test_a_config_that_lacks_a_size_or_asks_for_more_is_refused_by_field_name():
    with pytest.raises(InputError, match=r"mine: config\.json lacks d_ff, num_heads"):
        _t5.complete("mine", {"d_model": 8, "d_kv": 4, "num_layers": 1})
    with pytest.raises(InputError, match="feed_forward_proj='gated-mish' is not supported"):
        _t5.complete("mine", CONFIG | {"feed_forward_proj": "gated-mish"})
