"""The pruning kernels against what one would write without them, in turns within one process.

`mask_moments` against the eager product, sums and squares; `masked_linear`, forward and backward,
against the dense map, the dense map with a masked weight, and a map sliced to its live channels,
once with its slices ready and once made anew in each step, as masks that move would need.
Numbers are medians of rounds in which every side has its turn; on a GPU device time, bf16 and sizes
that fill it, on a CPU one thread, float32 and small sizes. Call: `make bench` or `make bench-gpu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from device import Side, in_turns
from torch import Tensor
from torch.nn import functional

from sffkernels import live_list, mask_moments, masked_linear


@dataclass(frozen=True)
class Size:
    """Rows, inputs, outputs of a linear map; samples and tokens of each for the scores."""

    num_rows: int
    num_in: int
    num_out: int
    num_samples: int


SIZES = {
    "cuda": [Size(8192, 768, 3072, 64), Size(32768, 768, 3072, 256), Size(32768, 1280, 5120, 256)],
    "cpu": [Size(512, 128, 512, 16), Size(8192, 128, 512, 256)],
}


@pytest.fixture(params=range(len(SIZES["cuda"])))
def size(request: pytest.FixtureRequest, device: torch.device) -> Size:
    """One of the sizes of this device."""
    sizes = SIZES[device.type]
    if request.param >= len(sizes):
        pytest.skip("this size is for a GPU")
    return sizes[request.param]


def bench_mask_scores(benchmark: Any, device: torch.device, size: Size) -> None:
    """One pass over activations and their gradients; also as a share of the copy bandwidth."""
    shape = (size.num_samples, size.num_rows // size.num_samples, size.num_out)
    x, dx = (_random(shape, device) for _ in range(2))
    target = torch.empty_like(x)

    def eager() -> Tensor:
        g = (x * dx).sum(1, dtype=torch.float32)
        return torch.stack([g.sum(0), g.square().sum(0)])

    def accurate() -> Tensor:
        g = (x.float() * dx.float()).sum(1)
        return torch.stack([g.sum(0), g.square().sum(0)])

    sides: dict[str, Side] = {
        "ours": lambda: mask_moments(x, dx, None),
        "eager": eager,  # rounds every product to bf16
        "eager, float32 products": accurate,  # what ours computes
        "copy": lambda: target.copy_(x),  # reads one tensor, writes another: as many bytes as ours
    }
    seconds = in_turns(benchmark, device, sides)
    benchmark.extra_info.update(
        title=f"mask_scores {shape}",
        ratios={f"{name} / ours": seconds[name] / seconds["ours"] for name in list(sides)[1:]},
        share_of_copy_bandwidth=seconds["copy"] / seconds["ours"],
        bytes_per_s=2 * x.numel() * x.itemsize / seconds["ours"],
        seconds=seconds,
    )


@pytest.mark.parametrize("density", [0.5, 0.25])
@pytest.mark.parametrize("pruned", ["outputs", "inputs"])
def bench_masked_linear(
    benchmark: Any, device: torch.device, size: Size, pruned: str, density: float
) -> None:
    """Forward and backward of one map with a GELU, its outputs or its inputs pruned."""
    sides = _linear_sides(size, device, pruned == "inputs", density)
    seconds = in_turns(benchmark, device, sides)
    benchmark.extra_info.update(
        title=f"masked_linear {size.num_rows} x {size.num_in} x {size.num_out}, "
        f"{density:g} of the {pruned} live",
        ratios={f"{name} / ours": seconds[name] / seconds["ours"] for name in list(sides)[1:]},
        seconds=seconds,
    )


def _linear_sides(
    size: Size, device: torch.device, prunes_inputs: bool, density: float
) -> dict[str, Side]:
    num_pruned = size.num_in if prunes_inputs else size.num_out
    mask = _mask(num_pruned // 8, density).to(device)
    kept = mask.repeat_interleave(8).nonzero().flatten()
    groups = live_list(mask)
    live_in, live_out = (groups, None) if prunes_inputs else (None, groups)
    wide = mask.repeat_interleave(8).to(_dtype(device))
    factor = wide[None, :] if prunes_inputs else wide[:, None]

    x = _random((size.num_rows, size.num_in), device).requires_grad_()
    weight = _random((size.num_out, size.num_in), device).requires_grad_()
    bias = _random((size.num_out,), device).requires_grad_()
    dy = _random((size.num_rows, size.num_out), device)

    def sliced(*parts: Tensor) -> list[Tensor]:
        """x, weight, bias and dy of the live channels, in this order."""
        axes = (1, 1, None, None) if prunes_inputs else (None, 0, 0, 1)
        return [
            part if axis is None else part.index_select(axis, kept)
            for part, axis in zip(parts, axes, strict=True)
        ]

    ready = [part.detach() for part in sliced(x, weight, bias, dy)]
    *leaves, small_dy = ready
    for leaf in leaves:
        leaf.requires_grad_()

    def dense(w: Tensor, b: Tensor) -> Tensor:
        return functional.gelu(functional.linear(x, w, b))

    def step(y: Tensor, inputs: list[Tensor], gradient: Tensor) -> object:
        return torch.autograd.grad(y, inputs, gradient)

    full = [x, weight, bias]
    bias_factor = 1.0 if prunes_inputs else wide

    def with_slices_ready() -> object:
        small_x, small_weight, small_bias = leaves
        y = functional.gelu(functional.linear(small_x, small_weight, small_bias))
        return step(y, leaves, small_dy)

    def sliced_anew() -> object:
        small_x, small_weight, small_bias, gradient = sliced(x, weight, bias, dy)
        y = functional.gelu(functional.linear(small_x, small_weight, small_bias))
        return step(y, full, gradient)

    def masked() -> object:
        return step(masked_linear(x, weight, bias, live_in, live_out, "gelu"), full, dy)

    return {
        "ours": masked,
        "w * mask + dense": lambda: step(dense(weight * factor, bias * bias_factor), full, dy),
        "dense": lambda: step(dense(weight, bias), full, dy),
        "slice": with_slices_ready,
        "slice anew": sliced_anew,
    }


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, dtype=_dtype(device))


def _mask(num_groups: int, density: float) -> Tensor:
    """Exactly the wanted share of groups, scattered by a fixed seed."""
    order = torch.randperm(num_groups, generator=torch.Generator().manual_seed(0))
    return order < round(density * num_groups)
