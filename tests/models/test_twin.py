"""The random twin: starts that are not elementwise, and the mix of a network with its start."""

from __future__ import annotations

import math

import pytest
import torch

import sffkernels
from sffbench import models
from sffbench.models.twin import Orthogonal, Sinusoids, Slabs, mix_, start_of
from sffkernels import Init

NETWORKS = ["units:tiny", "moirai:tiny", "moment:tiny", "ttm:tiny"]


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (7, 7)])
def test_an_orthogonal_start_has_orthonormal_rows_or_columns_times_its_gain(shape):
    values = start_of(Orthogonal(1.41), shape, seed=0, name="w").double()
    narrow = values if shape[0] >= shape[1] else values.T
    eye = torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(narrow.T @ narrow, 1.41**2 * eye, rtol=0, atol=1e-6)


def test_orthogonal_starts_are_uniform_no_place_and_no_sign_is_preferred():
    drawn = torch.stack(
        [start_of(Orthogonal(1.0), (6, 3), seed=s, name="w") for s in range(2000)]
    ).double()
    assert drawn.mean(0).abs().max() < 5 * (6 * 2000) ** -0.5
    torch.testing.assert_close(
        drawn.square().mean(0), torch.full((6, 3), 1 / 6).double(), rtol=0.15, atol=0
    )


def test_sinusoids_are_their_formula_for_an_odd_width_too():
    values = start_of(Sinusoids(), (1, 1, 30, 7), seed=0, name="pe")
    for place, column in ((0, 0), (0, 1), (29, 4), (29, 5), (3, 6)):
        angle = place * 10_000.0 ** (-2 * (column // 2) / 7)
        wave = math.cos(angle) if column % 2 else math.sin(angle)
        assert values[0, 0, place, column].item() == pytest.approx(wave, abs=1e-5)


def test_slabs_are_their_laws_where_used_and_0_elsewhere():
    laws = (Init("constant", 2.0), Init.fan_in_uniform(4))
    values = start_of(Slabs(laws, ((slice(1),), (slice(3),))), (2, 5), seed=0, name="w")
    assert values[0].tolist() == [2.0, 0.0, 0.0, 0.0, 0.0]
    whole = sffkernels.draw(laws[1], (2, 5), seed=0, name="w")
    assert torch.equal(values[1, :3], whole[1, :3])
    assert not values[1, 3:].any()


@pytest.mark.parametrize("name", NETWORKS)
def test_alpha_0_is_what_create_makes_and_alpha_1_leaves_every_bit_alone(name):
    model, expected = models.create(name, seed=5), models.create(name, seed=3).state_dict()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    mix_(model, 1.0, model.initial(), seed=3)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    mix_(model, 0.0, model.initial(), seed=3)
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_the_mix_of_its_two_ends(name):
    """float64 oracle: a * theta + (1 - a) * start, whether the start is elementwise or whole."""
    model = models.create(name, seed=5)
    before = {key: value.detach().double() for key, value in model.named_parameters()}
    table = model.initial()
    mix_(model, 0.3, table, seed=7)
    for key, new in model.named_parameters():
        start = start_of(table[key], new.shape, seed=7, name=key).double()
        expected = 0.3 * before[key] + 0.7 * start
        torch.testing.assert_close(new.detach().double(), expected, rtol=1e-6, atol=1e-7)


def test_an_elementwise_network_gets_the_bits_of_one_call_of_the_kernel():
    model = models.create("ttm:tiny", seed=4)
    table, own = model.initial(), dict(model.named_parameters())
    expected = [torch.empty_like(value) for value in own.values()]
    sffkernels.interpolate_(
        expected, 0.0, init=[table[key] for key in own], c=1.0, seed=4, names=list(own)
    )
    assert all(map(torch.equal, own.values(), expected))


def test_a_whole_start_enters_a_network_of_another_precision():
    model = models.create("moment:tiny", seed=0).bfloat16()
    mix_(model, 0.0, model.initial(), seed=0)
    expected = models.create("moment:tiny", seed=0).bfloat16()
    assert all(map(torch.equal, model.parameters(), expected.parameters()))
