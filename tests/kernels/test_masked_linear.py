"""`masked_linear` in plain torch: against the dense masked product; what it refuses."""

import masked_oracles as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sffkernels import live_list, masked_linear
from sffkernels.groups import channel_mask, group_mask, live_channels
from sffkernels.linear import INPUT_GRADIENT, MASKED_LINEAR, WEIGHT_GRADIENT

ACTIVATIONS = [None, "relu", "gelu", "silu"]


def inputs(shape, num_out, dtype=torch.float64, bias=True):
    weight = oracle.random((num_out, shape[-1]), 2, dtype)
    return oracle.random(shape, 1, dtype), weight, oracle.random((num_out,), 3, dtype)


def masks(num_in, num_out, density=0.5):
    groups = -(-num_in // 8), -(-num_out // 8)
    return [oracle.random_mask(g, density, seed) for seed, g in enumerate(groups)]


@given(
    lead=st.lists(st.integers(0, 4), max_size=2).map(tuple),
    num_in=st.integers(0, 35),
    num_out=st.integers(0, 35),
    density=st.sampled_from([0.0, 0.5, 1.0]),
    activation=st.sampled_from(ACTIVATIONS),
    with_bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_mask_and_activation_equals_the_dense_masked_product_and_its_gradients(
    lead, num_in, num_out, density, activation, with_bias
):
    x, weight, bias = inputs((*lead, num_in), num_out)
    bias = bias if with_bias else None
    mask_in, mask_out = masks(num_in, num_out, density)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = masked_linear(*leaves, *([None] * (3 - len(leaves))), mask_in, mask_out, activation)
    expected = oracle.linear(x, weight, bias, mask_in, mask_out, activation)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = oracle.random(tuple(y.shape), 4, torch.float64)
    wanted = oracle.gradients(x, weight, bias, mask_in, mask_out, activation, dy)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, dy), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_short_floats_stay_within_a_few_roundings_of_float64(dtype, activation):
    x, weight, bias = inputs((6, 40), 24, dtype)
    mask_in, mask_out = masks(40, 24)
    y = masked_linear(x, weight, bias, mask_in, mask_out, activation)
    assert y.dtype == dtype
    expected = oracle.linear(x, weight, bias, mask_in, mask_out, activation)
    oracle.close(y, expected, dtype, scale=torch.tensor(float(expected.abs().max())), roundings=4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_pass_gradcheck(activation):
    x, weight, bias = (t.requires_grad_() for t in inputs((3, 12), 20))
    mask_in, mask_out = torch.tensor([True, False]), torch.tensor([True, False, True])

    def function(*leaves):
        return masked_linear(*leaves, mask_in, mask_out, activation)

    assert torch.autograd.gradcheck(function, (x, weight, bias))


def test_no_masks_are_the_ordinary_linear_map():
    x, weight, bias = inputs((5, 12), 20, torch.float32)
    assert torch.equal(
        masked_linear(x, weight, bias, None, None), torch.nn.functional.linear(x, weight, bias)
    )


def test_dead_channels_are_never_read_not_even_where_they_hold_nan():
    x, weight, bias = inputs((5, 24), 24)
    mask = torch.tensor([True, False, True])
    expected = masked_linear(x, weight, bias, mask, mask, "gelu")
    for tensor, index in ((x, (slice(None), 9)), (weight, (9, slice(None))), (bias, 9)):
        tensor[index] = float("nan")
    weight[:, 12] = float("inf")
    y = masked_linear(x, weight, bias, mask, mask, "gelu")
    assert torch.equal(y, expected)
    assert torch.equal(y[:, 8:16], torch.zeros(5, 8, dtype=y.dtype))


def test_all_dead_inputs_leave_the_bias_and_all_dead_outputs_leave_zero():
    x, weight, bias = inputs((5, 16), 24)
    none, some = torch.zeros(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert torch.equal(masked_linear(x, weight, bias, none, some), bias.expand(5, 24))
    assert not masked_linear(x, weight, bias, None, torch.zeros(3, dtype=torch.bool)).any()


def test_a_live_list_does_what_its_mask_does_and_follows_a_change_in_place():
    x, weight, bias = inputs((5, 32), 16)
    first, second = torch.tensor([1, 0, 1, 1]).bool(), torch.tensor([0, 1, 0, 0]).bool()
    groups = live_list(first)
    before = masked_linear(x, weight, bias, groups, None)
    groups.copy_(live_list(second))
    after = masked_linear(x, weight, bias, groups, None)
    assert torch.equal(before, masked_linear(x, weight, bias, first, None))
    assert torch.equal(after, masked_linear(x, weight, bias, second, None))
    assert not torch.equal(before, after)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_live_list_holds_count_live_dead_and_gives_the_mask_back(flags, cut):
    mask = torch.tensor(flags, dtype=torch.bool)
    groups = live_list(mask).tolist()
    live = [i for i, flag in enumerate(flags) if flag]
    assert groups == [len(live), *live, *(i for i, flag in enumerate(flags) if not flag)]
    width = max(8 * len(flags) - cut, 0)
    assert torch.equal(group_mask(live_list(mask)), mask)
    wanted = oracle.channels(mask, width).bool()
    assert torch.equal(channel_mask(live_list(mask), width), wanted)
    assert live_channels(live_list(mask), width).tolist() == wanted.nonzero().flatten().tolist()


def test_transposed_weights_and_strided_rows_change_nothing():
    x, weight, bias = inputs((6, 16), 24)
    mask_in, mask_out = masks(16, 24)
    expected = masked_linear(x, weight, bias, mask_in, mask_out, "relu")
    strided = torch.stack([x, x], dim=1).flatten(0, 1)[::2]
    y = masked_linear(strided, weight.t().contiguous().t(), bias, mask_in, mask_out, "relu")
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_autocast_casts_as_it_does_for_linear():
    x, weight, bias = inputs((6, 16), 24, torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_linear(x, weight, bias, None, None)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_the_operators_pass_opcheck(activation):
    x, weight, bias = (t.requires_grad_() for t in inputs((6, 12), 20, torch.float32))
    lists = live_list(torch.tensor([True, False])), live_list(torch.tensor([True, False, True]))
    torch.library.opcheck(MASKED_LINEAR, (x, weight, bias, *lists, activation, True))
    if activation == "none":
        dz, x, weight = torch.ones(6, 20), x.detach(), weight.detach()
        torch.library.opcheck(INPUT_GRADIENT, (dz, weight, lists[1], lists[0]))
        torch.library.opcheck(WEIGHT_GRADIENT, (dz, x, lists[1], None))


def test_it_compiles_whole_with_masks_that_move():
    x, weight, bias = (t.requires_grad_() for t in inputs((6, 16), 24, torch.float32))
    compiled = torch.compile(masked_linear, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        mask_in, mask_out = (oracle.random_mask(g, 0.5, seed) for g in (2, 3))
        arguments = (x, weight, bias, mask_in, mask_out, "gelu")
        y, eager = compiled(*arguments), masked_linear(*arguments)
        assert torch.equal(y, eager)
        ours, theirs = (torch.autograd.grad(one.sum(), (x, weight, bias)) for one in (y, eager))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_second_derivative_is_refused_not_wrong():
    x, weight, bias = (t.requires_grad_() for t in inputs((3, 8), 8))
    (dx,) = torch.autograd.grad(
        masked_linear(x, weight, bias, None, None).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="twice"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"live_in": torch.ones(3, dtype=torch.bool)}, r"live_in must be a bool mask of \[2\]"),
        ({"live_out": torch.ones(24, dtype=torch.bool)}, r"live_out must be a bool mask of \[3\]"),
        ({"live_in": torch.ones(2)}, "got torch.float32"),
        ({"live_out": torch.ones(3, dtype=torch.int32)}, r"int32 \[4\]"),
        ({"live_in": torch.ones(2, dtype=torch.bool, device="meta")}, "live_in is on meta"),
        ({"weight": torch.ones(24, 16, dtype=torch.bfloat16)}, "weight is torch.bfloat16"),
        ({"weight": torch.ones(24, 15)}, r"weight \(24, 15\)"),
        ({"bias": torch.ones(23)}, r"bias must be \[24\]"),
        ({"bias": torch.ones(24, device="meta")}, "bias is torch.float32 on meta"),
        ({"activation": "tanh"}, "got 'tanh'"),
        (
            {"x": torch.ones(5, 16).int(), "weight": torch.ones(24, 16).int(), "bias": None},
            "dtype torch.int32",
        ),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(change, message):
    given = {"x": torch.ones(5, 16), "weight": torch.ones(24, 16), "bias": torch.ones(24)}
    given |= {"live_in": None, "live_out": None} | change
    with pytest.raises(ValueError, match=message) as caught:
        masked_linear(**given)
    assert "\n" not in str(caught.value)


def test_a_mask_that_is_no_mask_is_refused():
    with pytest.raises(ValueError, match=r"bool tensor \[groups\], got torch.int64"):
        live_list(torch.ones(3, dtype=torch.int64))
