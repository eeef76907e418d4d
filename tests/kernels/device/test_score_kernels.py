"""Triton's mask gradients and pruning step against plain torch, on a GPU or in the interpreter."""

import masked_oracles as oracle
import pytest
import torch
from on_device import DEVICE, needs_gpu, needs_kernels

from sffkernels import Units, mask_moments, mask_scores, sort_samples, update_scores
from sffkernels.units import BILLION, UPDATE_SCORES

pytestmark = needs_kernels

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# samples, tokens, channels: odd widths, a cut-off group, more tokens than a tile, one of each.
SHAPES = [(5, 7, 44), (3, 70, 136), (1, 1, 1), (4, 2, 300)]


@pytest.fixture(scope="module")
def kernels():
    from sffkernels.gpu import scores

    return scores


def on_device(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def rows(x):
    return x.flatten(0, -2).to(DEVICE)


def agree(actual, expected):
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("dtypes", [(d, d) for d in DTYPES] + [(DTYPES[1], DTYPES[0])], ids=str)
def test_sums_and_moments_equal_plain_torch(kernels, shape, granularity, dtypes):
    x, dx = (oracle.random(shape, seed, dtype) for seed, dtype in enumerate(dtypes))
    g = kernels.mask_scores(rows(x), rows(dx), None, None, shape[0], granularity)
    agree(g, mask_scores(x, dx, None, granularity=granularity))
    moments = kernels.mask_moments(rows(x), rows(dx), None, None, shape[0], granularity)
    agree(moments, torch.stack([g.sum(0), g.square().sum(0)]).cpu())


@pytest.mark.parametrize("granularity", [1, 8])
@pytest.mark.parametrize("per_token", [False, True])
def test_ids_in_any_order_equal_plain_torch(kernels, granularity, per_token):
    x, dx = (oracle.random((6, 5, 44), seed) for seed in (1, 2))
    ids = torch.tensor([4, 0, -1, 9, 4, 2])
    ids = ids[:, None].expand(6, 5).roll(1, 1) if per_token else ids
    samples = sort_samples(ids, 5)
    order, ends = on_device(samples.order, samples.ends)
    g = kernels.mask_scores(rows(x), rows(dx), order, ends, 5, granularity)
    agree(g, mask_scores(x, dx, ids, num_samples=5, granularity=granularity))
    moments = kernels.mask_moments(rows(x), rows(dx), order, ends, 5, granularity)
    agree(moments, mask_moments(x, dx, ids, num_samples=5, granularity=granularity))


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 0, 8), (3, 2, 0)], ids=str)
def test_empty_tensors_give_empty_or_zero_sums(kernels, shape):
    x = torch.ones(shape)
    g = kernels.mask_scores(rows(x), rows(x), None, None, shape[0], 1)
    assert torch.equal(g.cpu(), torch.zeros(shape[0], shape[2]))
    moments = kernels.mask_moments(rows(x), rows(x), None, None, shape[0], 1)
    assert torch.equal(moments.cpu(), torch.zeros(2, shape[2]))


def test_strided_activations_change_nothing(kernels):
    x, dx = (rows(oracle.random((4, 6, 16), seed)) for seed in (1, 2))
    wide, turned = torch.stack([x, x], 1)[:, 1], dx.t().contiguous().t()
    g = kernels.mask_scores(x, dx, None, None, 4, 1)
    assert torch.equal(kernels.mask_scores(wide, turned, None, None, 4, 1), g)


def stepped(units, update, first, ratio, floor, free_zeros, second_order=False):
    units.moments.copy_(first)
    tensors = (units.moments, units.scores, units.live, units.lists, units.steps, units.keys)
    shares = round(ratio * BILLION), round(floor * BILLION)
    update(*tensors, units.offsets, 0.5, 0.125, 0.4, *shares, second_order, free_zeros)


@pytest.mark.parametrize("free_zeros", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [[3, 17, 1], [1100, 40], []], ids=str)
def test_three_pruning_steps_leave_what_plain_torch_leaves(sizes, floor, free_zeros):
    from sffkernels.gpu.select import update_scores as launch

    ours, theirs = Units(sizes, device=DEVICE), Units(sizes)
    for step in range(3):
        first = oracle.random((2, sum(sizes)), step)
        first[0, ::5] = 0.0
        first[0, 1::4] = 0.75  # ties
        arguments = (0.2, floor, free_zeros)
        stepped(ours, launch, first, *arguments)
        stepped(theirs, UPDATE_SCORES, first, *arguments)
        assert torch.equal(ours.live.cpu(), theirs.live)
        assert torch.equal(ours.lists.cpu(), theirs.lists)
        torch.testing.assert_close(ours.scores.cpu(), theirs.scores, rtol=1e-6, atol=1e-7)
        assert int(ours.steps) == step + 1
        assert not ours.moments.any()
    assert not sizes or 0 < int(ours.live.sum()) < sum(sizes)


def test_the_published_score_and_nan_equal_plain_torch():
    from sffkernels.gpu.select import update_scores as launch

    ours, theirs = Units([40], device=DEVICE), Units([40])
    first = torch.stack([oracle.random((40,), 1), oracle.random((40,), 2).square()])
    first[0, 3], first[0, 4] = float("nan"), float("inf")
    for units, update in ((ours, launch), (theirs, UPDATE_SCORES)):
        stepped(units, update, first, 0.9, 0.0, True, second_order=True)
    torch.testing.assert_close(ours.scores.cpu(), theirs.scores, equal_nan=True)
    assert torch.equal(ours.live.cpu(), theirs.live)
    assert ours.live.cpu()[3:5].all()


def test_a_launch_raises_the_version_of_what_it_writes():
    from sffkernels.gpu.select import update_scores as launch

    units = Units([4], device=DEVICE)
    before = units.live._version
    stepped(units, launch, torch.zeros(2, 4), 0.5, 0.0, False)
    assert units.live._version > before


@needs_gpu
def test_a_captured_graph_scores_and_prunes_on_and_on():
    units, eager = (Units([64, 96], device=DEVICE) for _ in range(2))
    x, dx = (oracle.random((8, 5, 160), seed).to(DEVICE) for seed in (1, 2))

    def step(units):
        units.moments.add_(mask_moments(x, dx, None))
        update_scores(units, num_samples=8, ratio=0.1, ema=0.5)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(Units([64, 96], device=DEVICE))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(units)
    for _ in range(3):
        graph.replay()
        step(eager)
        x.mul_(-1.5)
        assert torch.equal(units.live, eager.live)
        assert torch.equal(units.lists, eager.lists)


@needs_gpu
def test_the_same_numbers_give_the_same_bits():
    x, dx = (oracle.random((64, 33, 200), seed).to(DEVICE) for seed in (1, 2))
    ids = torch.randint(0, 9, (64, 33), device=DEVICE)
    for function in (mask_scores, mask_moments):
        runs = [function(x, dx, ids, num_samples=9) for _ in range(5)]
        assert all(torch.equal(runs[0], run) for run in runs[1:])
