"""Per-sample mask gradients: against loops, against autograd on real masks, and what is refused."""

import masked_oracles as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sffkernels import mask_moments, mask_scores, sort_samples
from sffkernels.scores import MASK_MOMENTS, MASK_SCORES

HALVES = [torch.float32, torch.bfloat16, torch.float16]


@given(
    num_samples=st.integers(0, 5),
    num_tokens=st.integers(0, 4),
    num_channels=st.integers(0, 19),
    granularity=st.sampled_from([1, 8]),
    dtypes=st.tuples(st.sampled_from(HALVES), st.sampled_from(HALVES)),
)
@settings(max_examples=60, deadline=None)
def test_sums_and_moments_equal_a_loop_over_tokens_in_float64(
    num_samples, num_tokens, num_channels, granularity, dtypes
):
    shape = (num_samples, num_tokens, num_channels)
    x, dx = (oracle.random(shape, seed, dtype) for seed, dtype in enumerate(dtypes))
    ids = torch.arange(num_samples).repeat_interleave(num_tokens)
    wanted = oracle.mask_gradients(x, dx, ids, num_samples, granularity)
    bound = oracle.mask_gradients(x.abs(), dx.abs(), ids, num_samples, granularity)
    g = mask_scores(x, dx, None, granularity=granularity)
    oracle.close(g, wanted, torch.float32, scale=bound, roundings=40)
    moments = mask_moments(x, dx, None, granularity=granularity)
    oracle.close(moments[0], wanted.sum(0), torch.float32, scale=bound.sum(0), roundings=60)
    squares = bound.square().sum(0)
    oracle.close(moments[1], wanted.square().sum(0), torch.float32, scale=squares, roundings=120)


@given(
    ids=st.lists(st.integers(-1, 6), min_size=1, max_size=12),
    per_token=st.booleans(),
    num_samples=st.sampled_from([None, 4]),
)
@settings(max_examples=60, deadline=None)
def test_ids_come_in_any_order_and_those_outside_belong_to_nobody(ids, per_token, num_samples):
    ids = torch.tensor(ids)
    x, dx = (oracle.random((len(ids), 3, 5), seed) for seed in (1, 2))
    tokens = ids.repeat_interleave(3)
    given = tokens.view(-1, 3) if per_token else ids
    num = max(0, int(ids.max()) + 1) if num_samples is None else num_samples
    wanted = oracle.mask_gradients(x, dx, tokens, num)
    g = mask_scores(x, dx, given, num_samples=num_samples)
    assert g.shape == wanted.shape
    torch.testing.assert_close(g.double(), wanted, rtol=1e-4, atol=1e-5)
    prepared = sort_samples(given, num_samples)
    assert torch.equal(mask_scores(x, dx, prepared), g)
    moments = mask_moments(x, dx, prepared)
    assert torch.equal(moments, torch.stack([g.sum(0), g.square().sum(0)]))


def test_they_are_the_gradients_that_autograd_gives_masks_of_one_copy_a_sample():
    """h = (W (x * m_in)) * m_out with a mask per sample: the definition, by autograd in float64."""
    x = oracle.random((4, 6, 5), 1, torch.float64)
    inner, outer = nn.Linear(5, 3).double(), nn.Linear(3, 1).double()
    masks = [torch.ones(4, 1, width, dtype=torch.float64, requires_grad=True) for width in (5, 3)]
    masked_x = x * masks[0]
    masked_y = inner(masked_x) * masks[1]
    loss = outer(torch.tanh(masked_y)).square().sum()
    dx, dy, *wanted = torch.autograd.grad(loss, [masked_x, masked_y, *masks])
    for pair, g in zip(((masked_x, dx), (masked_y, dy)), wanted, strict=True):
        ours = mask_scores(*(t.float() for t in pair), None)
        torch.testing.assert_close(ours.double(), g[:, 0], rtol=1e-4, atol=1e-5)


def test_a_group_is_squared_as_one_unit():
    x, dx = torch.ones(2, 1, 8), torch.ones(2, 1, 8)
    assert mask_moments(x, dx, None, granularity=8).tolist() == [[16.0], [128.0]]
    assert mask_moments(x, dx, None)[1].tolist() == [2.0] * 8


def test_many_samples_pass_the_cpu_chunk_and_layouts_do_not_matter():
    x, dx = (oracle.random((64, 700, 8), seed) for seed in (1, 2))
    g = mask_scores(x, dx, None)
    wanted = (x.double() * dx.double()).sum(1)
    torch.testing.assert_close(g.double(), wanted, rtol=1e-4, atol=1e-3)
    turned = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, dx)]
    assert torch.equal(mask_scores(*turned, None), g)
    ids = torch.arange(64).flip(0)
    torch.testing.assert_close(mask_scores(x, dx, ids), g.flip(0), rtol=1e-5, atol=1e-4)


def test_what_comes_out_has_no_part_in_the_graph():
    x = torch.ones(2, 3, 4, requires_grad=True)
    assert not mask_scores(x, x, None).requires_grad


@pytest.mark.parametrize("operator", [MASK_SCORES, MASK_MOMENTS])
@pytest.mark.parametrize("with_ids", [False, True])
def test_the_operators_pass_opcheck(operator, with_ids):
    x, dx = oracle.random((6, 12), 1), oracle.random((6, 12), 2)
    order, ends = (torch.arange(3), torch.arange(4)) if with_ids else (None, None)
    torch.library.opcheck(operator, (x, dx, order, ends, 3, 8))


def test_it_compiles_whole():
    x, dx = oracle.random((4, 3, 16), 1), oracle.random((4, 3, 16), 2)
    compiled = torch.compile(mask_moments, fullgraph=True, backend="aot_eager")
    for ids in (None, torch.tensor([1, 0, 1, 2])):
        ours = compiled(x, dx, ids, num_samples=3 if ids is not None else None, granularity=8)
        assert torch.equal(ours, mask_moments(x, dx, ids, granularity=8))


X = torch.ones(4, 3, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, torch.ones(4, 3, 7), None), {}, r"one shape \[..., C\], got \(4, 3, 8\)"),
        ((torch.ones(8), torch.ones(8), None), {}, "one shape"),
        ((X, X.double(), None), {}, "dx has dtype torch.float64"),
        ((X.int(), X, None), {}, "x has dtype torch.int32"),
        ((X, X.to("meta"), None), {}, "dx is on meta, x on cpu"),
        ((X, X, torch.zeros(3)), {}, r"got \(3,\), x \(4, 3, 8\)"),
        ((X, X, torch.zeros(4, 3, 8, dtype=torch.int64)), {}, "first dimensions"),
        ((X, X, torch.zeros(4)), {}, "integers, got torch.float32"),
        ((X, X, torch.zeros(4, dtype=torch.bool)), {}, "integers, got torch.bool"),
        ((X, X, torch.zeros(4, dtype=torch.int64, device="meta")), {}, "sample_ids is on meta"),
        ((X, X, None), {"num_samples": 3}, "num_samples is 3, x without ids has 4"),
        ((X, X, sort_samples(torch.arange(4))), {"num_samples": 3}, "were sorted for 4"),
        ((X, X, torch.arange(4)), {"num_samples": -1}, "num_samples must not be negative"),
        ((X, X, None), {"granularity": 4}, "granularity must be 1 or 8, got 4"),
    ],
)
def test_bad_input_is_one_line_that_names_the_argument(arguments, options, message):
    for function in (mask_scores, mask_moments):
        with pytest.raises(ValueError, match=message) as caught:
            function(*arguments, **options)
        assert "\n" not in str(caught.value)
