"""Triton's masked products and live lists against float64, on a GPU or in the interpreter."""

import masked_oracles as oracle
import pytest
import torch
from on_device import DEVICE, needs_gpu, needs_kernels

from sffkernels import live_list, masked_linear

pytestmark = needs_kernels

# rows, in, out, density: odd widths, a cut-off group, one row, empty and full masks, several tiles.
SHAPES = [
    (70, 72, 136, 0.5),
    (33, 45, 27, 0.5),
    (1, 8, 8, 1.0),
    (65, 64, 72, 0.0),
    (9, 200, 16, 0.25),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def kernels():
    from sffkernels.gpu import linear

    return linear


def tile(kernels):
    """Small enough that the shapes above need several, and a tail in each direction."""
    return kernels.Tile(32, 32, 16, 4, 2)


def case(num_rows, num_in, num_out, density, dtype):
    x, weight, bias = (
        oracle.random(shape, seed, dtype).to(DEVICE)
        for seed, shape in enumerate([(num_rows, num_in), (num_out, num_in), (num_out,)])
    )
    masks = [oracle.random_mask(-(-n // 8), density, n) for n in (num_in, num_out)]
    return x, weight, bias, masks, [live_list(mask).to(DEVICE) for mask in masks]


def close(actual, expected, dtype):
    scale = torch.tensor(max([1e-6, *expected.abs().flatten().tolist()]))
    assert actual.shape == expected.shape
    oracle.close(actual, expected, dtype, scale, roundings=4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_and_both_gradients_are_those_of_the_dense_masked_product(kernels, shape, dtype):
    x, weight, bias, masks, lists = case(*shape, dtype)
    y, z = kernels.forward(x, weight, bias, *lists, "gelu", True, tile=tile(kernels))
    cpu = [t.cpu() for t in (x, weight, bias)]
    close(y, oracle.linear(*cpu, *masks, "gelu"), dtype)
    close(z, oracle.linear(*cpu, *masks, None), dtype)
    dz = oracle.random(tuple(y.shape), 4, dtype)
    wanted = oracle.gradients(*cpu, *masks, None, dz)
    dz = dz.to(DEVICE)
    dx = kernels.input_gradient(dz, weight, lists[1], lists[0], tile=tile(kernels))
    close(dx, wanted[0], dtype)
    for parts in (1, 2):
        arguments = (dz, x, lists[1], lists[0])
        dw = kernels.weight_gradient(*arguments, tile=tile(kernels), parts=parts)
        close(dw, wanted[1], dtype)
        assert not dw.cpu()[oracle.channels(masks[1], len(dw)) == 0].any()


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("listed", [(True, False), (False, True), (False, False)], ids=str)
def test_any_activation_and_masks_that_are_left_out(kernels, activation, listed):
    x, weight, _, masks, lists = case(20, 24, 40, 0.5, torch.float32)
    masks = [mask if use else None for mask, use in zip(masks, listed, strict=True)]
    lists = [groups if use else None for groups, use in zip(lists, listed, strict=True)]
    y, z = kernels.forward(x, weight, None, *lists, activation, False, tile=tile(kernels))
    assert z.numel() == 0
    cpu = [t.cpu() for t in (x, weight)]
    close(y, oracle.linear(*cpu, None, *masks, activation), torch.float32)
    dz = oracle.random(tuple(y.shape), 4).to(DEVICE)
    wanted = oracle.gradients(*cpu, None, *masks, None, dz.cpu())
    close(
        kernels.input_gradient(dz, weight, lists[1], lists[0], tile=tile(kernels)),
        wanted[0],
        torch.float32,
    )
    close(
        kernels.weight_gradient(dz, x, lists[1], lists[0], tile=tile(kernels)),
        wanted[1],
        torch.float32,
    )


def test_dead_channels_are_never_read_and_dead_outputs_always_written(kernels):
    x, weight, bias, _, _ = case(40, 48, 48, 1.0, torch.float32)
    mask = torch.tensor([True, False, True, True, False, False])
    dead = ~oracle.channels(mask, 48).bool().to(DEVICE)
    groups = live_list(mask).to(DEVICE)
    dz = oracle.random((40, 48), 5).to(DEVICE)
    x[:, dead], dz[:, dead], bias[dead] = (float("nan"),) * 3
    weight[dead], weight[:, dead] = float("nan"), float("nan")
    outputs = [
        *kernels.forward(x, weight, bias, groups, groups, "gelu", True),
        kernels.input_gradient(dz, weight, groups, groups),
        kernels.weight_gradient(dz, x, groups, groups),
    ]
    for out in outputs:
        assert out.isfinite().all()
        assert not out[:, dead].any()
        assert out[:, ~dead].any()


@pytest.mark.parametrize("shape", [(0, 16, 16), (4, 0, 16), (4, 16, 0)], ids=str)
def test_empty_tensors_give_empty_or_zero_results(kernels, shape):
    x, weight, bias, masks, lists = case(*shape, 1.0, torch.float32)
    y, _ = kernels.forward(x, weight, bias, *lists, "none", False)
    close(y, oracle.linear(x.cpu(), weight.cpu(), bias.cpu(), *masks, None), torch.float32)
    dz = torch.ones_like(y)
    assert kernels.input_gradient(dz, weight, lists[1], lists[0]).shape == x.shape
    dw = kernels.weight_gradient(dz, x, lists[1], lists[0])
    assert dw.shape == weight.shape
    assert shape[0] or not dw.any()


def test_strided_arguments_and_lists_within_longer_ones_change_nothing(kernels):
    x, weight, bias, _, lists = case(20, 24, 40, 0.5, torch.float32)
    y, _ = kernels.forward(x, weight, bias, *lists, "relu", False, tile=tile(kernels))
    shifted = [torch.cat([groups.new_full((3,), 99), groups])[3:] for groups in lists]
    wide = torch.stack([x, x], 2)[:, :, 1]
    turned = weight.t().contiguous().t()
    again, _ = kernels.forward(wide, turned, bias, *shifted, "relu", False, tile=tile(kernels))
    assert torch.equal(y, again)
    expanded = torch.ones(1, 1, device=DEVICE).expand(20, 40)  # the gradient of a plain sum
    dx = kernels.input_gradient(expanded, weight, lists[1], lists[0], tile=tile(kernels))
    whole = expanded.contiguous()
    assert torch.equal(
        dx, kernels.input_gradient(whole, weight, lists[1], lists[0], tile=tile(kernels))
    )


def test_the_table_gives_no_128_by_128_tile_to_four_warps_and_cuts_long_reductions(kernels):
    for dtype in DTYPES:
        for rows in (64, 100_000):
            picked = kernels.pick_tile(dtype, rows, 3072, "tf32")
            assert picked.num_warps == (8 if picked.rows == 128 else 4)
            assert (picked.rows == 128) == (rows == 100_000)
    assert kernels.num_parts(100, 4, 64) == 1
    assert kernels.num_parts(32768, 300, 64) == 1
    assert kernels.num_parts(32768, 36, 64) == 8


@pytest.mark.parametrize("num", [0, 1, 5, 1023, 2100])
def test_live_lists_equal_those_of_plain_torch(num):
    from sffkernels.gpu.select import live_list as launch

    for density in (0.0, 0.3, 1.0):
        mask = oracle.random_mask(num, density, 1)
        assert torch.equal(launch(mask.to(DEVICE)).cpu(), live_list(mask))


@needs_gpu
def test_one_captured_graph_follows_masks_that_move():
    x, weight, bias, _, lists = case(256, 128, 256, 0.5, torch.bfloat16)
    weight.requires_grad_()

    def step():
        y = masked_linear(x, weight, bias, lists[0], lists[1], "gelu")
        return y, *torch.autograd.grad(y.sum(), [weight])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(3):
        for groups in lists:
            groups.copy_(live_list(oracle.random_mask(groups.numel() - 1, 0.5, seed).to(DEVICE)))
        graph.replay()
        for ours, theirs in zip(captured, step(), strict=True):
            assert torch.equal(ours, theirs)


@needs_gpu
def test_masks_on_another_device_are_refused():
    x, weight, bias, masks, _ = case(8, 16, 16, 0.5, torch.float32)
    with pytest.raises(ValueError, match="live_in is on cpu, x on cuda"):
        masked_linear(x, weight, bias, masks[0], None)


@needs_gpu
def test_tf32_is_used_only_where_torch_allows_it(kernels):
    x, weight, _, _, _ = case(64, 256, 64, 1.0, torch.float32)
    wanted = x.double() @ weight.double().t()
    errors = {}
    before = torch.get_float32_matmul_precision()
    for policy in ("highest", "high"):
        torch.set_float32_matmul_precision(policy)
        y, _ = kernels.forward(x, weight, None, None, None, "none", False)
        errors[policy] = float((y - wanted).abs().max())
    torch.set_float32_matmul_precision(before)
    assert errors["highest"] < 1e-4 < errors["high"] < 1e-1
