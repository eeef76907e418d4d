"""`interpolate_` against float64, its exact cases, and its independence of lists and layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sffkernels import Init, draw, interpolate_

EPS = {torch.float64: 1e-15, torch.float32: 1.2e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
INITS = [Init.normal(0, 0.5), Init.uniform(-1, 2), Init.constant(1.5), Init.truncated_normal()]


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def layouts(shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    rows, columns = shape
    return {
        "contiguous": random(shape, 1),
        "transposed": random((columns, rows), 1).t(),
        "every other column": random((rows, 2 * columns), 1)[:, ::2],
        "inner block": random((rows + 2, columns + 2), 1)[1:-1, 1:-1],
    }


@given(
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    dtype=st.sampled_from(list(EPS)),
    init=st.sampled_from(INITS),
    weights=st.tuples(*[st.sampled_from([0.0, 1.0, -1.0, 0.3, 0.7, 2.5])] * 3),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_dtype_and_coefficients_agree_with_float64(shape, dtype, init, weights):
    a, b, c = weights
    theta, other = random(shape, 1, dtype), random(shape, 2, dtype)
    noise = draw(init, shape, seed=3, name="w").double()
    terms = [a * theta.double(), b * other.double(), c * noise]
    interpolate_([theta], a, other=[other], b=b, init=[init], c=c, seed=3, names=["w"])
    scale = sum(term.abs() for term in terms)
    error = (theta.double() - sum(terms)).abs()
    assert theta.dtype == dtype
    # float32 constants and float32 arithmetic cost up to four roundings, the dtype one more
    assert (error <= (EPS[dtype] + 4 * (1.2e-7 if dtype != torch.float64 else 1e-15)) * scale).all()


def test_alpha_one_leaves_every_bit_alone():
    theta = torch.tensor([float("nan"), -0.0, float("inf"), 1e-42])
    bits, version = theta.view(torch.int32).clone(), theta._version
    interpolate_([theta], 1.0, init=[Init.normal()], c=0.0, names=["w"])
    assert torch.equal(theta.view(torch.int32), bits)
    assert theta._version == version


@pytest.mark.parametrize("init", INITS)
def test_alpha_zero_is_exactly_the_draw_even_over_nan(init):
    theta = torch.full((7, 31), float("nan"))
    interpolate_([theta], 0.0, init=[init], c=1.0, seed=8, names=["w"])
    assert torch.equal(theta, draw(init, (7, 31), seed=8, name="w"))


def test_a_zero_coefficient_never_reads_other():
    theta = random((5,), 1)
    expected = theta * 0.5
    interpolate_([theta], 0.5, other=[torch.full((5,), float("nan"))], b=0.0)
    assert torch.equal(theta, expected)


def test_all_coefficients_zero_give_zeros():
    theta = torch.full((3, 5), float("nan"))
    interpolate_([theta], 0.0)
    assert torch.equal(theta, torch.zeros(3, 5))


def test_an_average_of_two_models_needs_no_noise():
    theta, other = random((300, 501), 1), random((300, 501), 2)
    expected = (0.999 * theta.double() + 0.001 * other.double()).float()
    interpolate_([theta], 0.999, other=[other], b=0.001)
    torch.testing.assert_close(theta, expected, rtol=3e-7, atol=1e-9)


def test_other_may_have_another_dtype():
    theta, other = random((50,), 1), random((50,), 2, torch.bfloat16)
    expected = 0.5 * theta + 0.5 * other.float()
    interpolate_([theta], 0.5, other=[other], b=0.5)
    assert torch.equal(theta, expected)


@pytest.mark.parametrize("label", layouts((6, 10)))
def test_strides_do_not_matter(label):
    theta, other = layouts((6, 10))[label], layouts((6, 10))[label].clone()
    expected, strides = theta.contiguous().clone(), theta.stride()
    arguments = {"b": 0.2, "init": [Init.normal()], "c": 0.3, "seed": 4, "names": ["w"]}
    interpolate_([expected], 0.7, other=[other.contiguous()], **arguments)
    interpolate_([theta], 0.7, other=[other], **arguments)
    assert torch.equal(theta, expected)
    assert theta.stride() == strides


def test_elements_beside_a_strided_view_stay_untouched():
    base = random((6, 20), 1)
    before = base.clone()
    interpolate_([base[:, ::2]], 0.0, init=[Init.normal()], c=1.0, names=["w"])
    assert torch.equal(base[:, 1::2], before[:, 1::2])
    assert not torch.equal(base[:, ::2], before[:, ::2])


def test_the_other_tensors_in_the_list_and_their_order_do_not_matter():
    shapes = {"a": (3, 5), "b": (0,), "c": (), "d": (70_001,), "e": (4, 1, 2)}
    inits = dict(zip(shapes, [*INITS, Init.normal()], strict=True))
    alone = {name: random(shape, 1) for name, shape in shapes.items()}
    for name, theta in alone.items():
        interpolate_([theta], 0.7, init=[inits[name]], c=0.3, seed=5, names=[name])
    for order in (list(shapes), list(shapes)[::-1]):
        together = [random(shapes[name], 1) for name in order]
        interpolate_(together, 0.7, init=[inits[n] for n in order], c=0.3, seed=5, names=order)
        for name, theta in zip(order, together, strict=True):
            assert torch.equal(theta, alone[name])


def test_parameters_change_in_place_and_autograd_notices():
    layer = nn.Linear(8, 4)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    pointer, version = layer.weight.data_ptr(), layer.weight._version
    loss = layer(torch.ones(2, 8, requires_grad=True)).square().sum()
    interpolate_(parameters, 0.5, init=[Init.fan_in_uniform(8)] * 2, c=0.5, names=names)
    assert layer.weight.data_ptr() == pointer
    assert layer.weight._version > version
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    draw(Init.normal(), (100,), seed=1, name="w")
    assert torch.equal(torch.get_rng_state(), state)


def test_coefficients_may_be_zero_dimensional_tensors():
    theta, twin = random((40,), 1), random((40,), 1)
    arguments = {"init": [Init.normal()], "names": ["w"]}
    interpolate_([theta], torch.tensor(0.75), c=torch.tensor(0.25), **arguments)
    interpolate_([twin], 0.75, c=0.25, **arguments)
    assert torch.equal(theta, twin)


def test_an_empty_list_and_empty_tensors_are_fine():
    interpolate_([], 0.5)
    interpolate_([torch.empty(0, 3)], 0.5, init=[Init.normal()], c=0.5, names=["w"])
    assert draw(Init.uniform(0, 1), (2, 0), seed=0, name="w").shape == (2, 0)


def test_disjoint_views_of_one_flat_buffer_are_fine():
    flat = random((100,), 1)
    parts = [flat[:40], flat[40:].view(6, 10)]
    expected = [part.clone() for part in parts]
    arguments = {"init": [Init.normal()] * 2, "c": 0.5, "names": ["a", "b"]}
    interpolate_(parts, 0.5, **arguments)
    interpolate_(expected, 0.5, **arguments)
    assert all(torch.equal(one, two) for one, two in zip(parts, expected, strict=True))


def test_interleaved_columns_of_one_matrix_are_fine():
    matrix = random((6, 10), 1)
    before = matrix.clone()
    interpolate_([matrix[:, :5], matrix[:, 5:]], 0.5)
    assert torch.equal(matrix, before * 0.5)
