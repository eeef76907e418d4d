"""The fast blocks against their plain definitions in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sffbench.models.blocks import (
    Dropout,
    causal_attention,
    dropout_mask,
    linear_over_rows,
    location_scale,
    next_tokens,
    pointwise,
)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_a_dropout_mask_keeps_the_asked_share_and_the_mean(p):
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(1001, 1000), p)
    kept = mask[mask > 0]
    assert kept.unique().numel() == 1
    assert kept.numel() / mask.numel() == pytest.approx(1 - p, abs=4e-3 * (p * (1 - p)) ** 0.5)
    assert mask.mean().item() == pytest.approx(1.0, abs=5e-3 * (p / (1 - p)) ** 0.5)


def test_dropout_masks_of_neighbours_and_of_calls_are_uncorrelated():
    torch.manual_seed(0)
    first, second = (dropout_mask(torch.empty(400_000), 0.2) - 1 for _ in range(2))
    variance = first.square().mean()
    for other in (second, first.roll(1), first.roll(2), first.roll(4)):
        assert abs((first * other).mean() / variance) < 5 / 400_000**0.5


def test_dropout_is_the_same_for_the_same_seed_and_off_in_eval_mode():
    layer, values = Dropout(0.3), torch.randn(3, 5, 7)
    torch.manual_seed(3)
    first = layer(values)
    torch.manual_seed(3)
    assert torch.equal(layer(values), first)
    assert layer.eval()(values) is values


def test_the_gradient_of_dropout_is_its_mask():
    values = torch.ones(1000, requires_grad=True)
    dropped = Dropout(0.4)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


@pytest.mark.parametrize("bias", [True, False])
def test_linear_over_rows_is_the_layer_between_two_transpositions(bias):
    layer, values = nn.Linear(6, 9, bias=bias), torch.randn(4, 6, 5)
    expected = torch.einsum("ij,mjd->mid", layer.weight.double(), values.double())
    expected = expected + layer.bias.double()[:, None] if bias else expected
    torch.testing.assert_close(
        linear_over_rows(layer, values).double(), expected, rtol=0, atol=1e-5
    )


def test_a_hooked_layer_is_called_and_may_change_its_output():
    layer, values = nn.Linear(6, 6), torch.randn(4, 6, 5)
    plain = linear_over_rows(layer, values)
    handle = layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    torch.testing.assert_close(linear_over_rows(layer, values), 2 * plain)
    handle.remove()
    torch.testing.assert_close(linear_over_rows(layer, values), plain)


def test_a_layer_put_in_the_place_of_a_linear_one_is_called():
    class Adapter(nn.Linear):
        def forward(self, values):
            return super().forward(values) + 1.0

    layer, values = Adapter(6, 6), torch.randn(4, 6, 5)
    expected = F.linear(values.transpose(1, 2), layer.weight, layer.bias).transpose(1, 2) + 1
    torch.testing.assert_close(linear_over_rows(layer, values), expected)


def test_pointwise_is_the_convolution_over_tokens():
    layer, values = nn.Conv1d(6, 9, 1), torch.randn(4, 5, 6)
    torch.testing.assert_close(pointwise(layer, values), layer(values.mT).mT)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(7, 7), (1, 7), (3, 7), (40, 40), (3, 40)])
def test_causal_attention_is_masked_softmax_attention(num_queries, num_keys):
    query = torch.randn(2, num_queries, 3, 4)
    key, value = torch.randn(2, num_keys, 3, 4), torch.randn(2, num_keys, 3, 4)
    scores = torch.einsum("mihd,mjhd->mhij", query.double(), key.double()) / 2
    seen = torch.arange(num_keys) <= torch.arange(num_queries)[:, None] + num_keys - num_queries
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    expected = torch.einsum("mhij,mjhd->mihd", weights, value.double())
    actual = causal_attention(query, key, value)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


def test_location_and_scale_are_mean_and_population_deviation():
    series = 100 + torch.randn(5, 64)
    loc, scale = location_scale(series)
    wide = series.double()
    torch.testing.assert_close(loc.double(), wide.mean(1, keepdim=True), rtol=1e-6, atol=0)
    expected = (wide.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(scale.double(), expected, rtol=1e-5, atol=0)


def test_next_tokens_never_shows_a_value_to_its_own_prediction():
    past, future = torch.arange(8.0)[None], torch.arange(8.0, 13.0)[None]
    inputs, target = next_tokens(past, future, token=4)
    assert inputs.tolist() == [list(range(12))]  # the third token predicts the 13th value alone
    assert target.tolist() == [list(range(4, 13))]
