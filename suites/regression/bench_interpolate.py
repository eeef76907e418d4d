"""`interpolate_` against what one would write without it, in turns within one process.

Noise drawn in the kernel against a loop that makes a twin of each parameter, against one flat draw
and a multi-tensor `lerp`, against a `lerp` with a twin that is held anyway, and, on a GPU, against
torch.compile; tensors against the `_foreach` functions. Parameters are matrices and vectors as a
transformer has them. Call: `make bench` or `make bench-gpu`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from device import Side, extra_bytes, in_turns, wall_seconds
from torch import Tensor, nn

from sffkernels import Init, interpolate_

ALPHA, STD = 0.7, 0.02
Fill = Callable[[Tensor], object]


@dataclass(frozen=True)
class Size:
    """Elements, tensors (half of them vectors), and the length of a vector."""

    num_elements: int
    num_tensors: int
    width: int

    def shapes(self) -> list[tuple[int, ...]]:
        """As many matrices as vectors."""
        pairs = self.num_tensors // 2
        rows = round(self.num_elements / pairs / self.width) - 1
        return [shape for _ in range(pairs) for shape in ((rows, self.width), (self.width,))]


@dataclass(frozen=True)
class Noise:
    """One distribution, and how torch fills a tensor with it."""

    init: Init
    fill: Fill


SIZES = {
    "cuda": [Size(14_000_000, 150, 384), Size(91_000_000, 220, 768), Size(500_000_000, 480, 1280)],
    "cpu": [Size(1_000_000, 40, 192)],
}
NOISES = {
    "uniform": Noise(Init.uniform(-STD, STD), lambda x: x.uniform_(-STD, STD)),
    "normal": Noise(Init.normal(0.0, STD), lambda x: x.normal_(0.0, STD)),
    "truncated normal": Noise(
        Init.truncated_normal(0.0, STD, -2 * STD, 2 * STD),
        lambda x: nn.init.trunc_normal_(x, 0.0, STD, -2 * STD, 2 * STD),
    ),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_COMPILED = 220  # tensors: torch.compile takes minutes for more


@pytest.fixture(params=range(len(SIZES["cuda"])))
def size(request: pytest.FixtureRequest, device: torch.device) -> Size:
    """One of the sizes of this device."""
    sizes = SIZES[device.type]
    if request.param >= len(sizes):
        pytest.skip("this size is for a GPU")
    return sizes[request.param]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noise", NOISES)
def bench_noise(benchmark: Any, device: torch.device, size: Size, noise: str, dtype: str) -> None:
    """theta <- alpha * theta + (1 - alpha) * noise: smoothed fine-tuning."""
    parameters = _tensors(size, device, DTYPES[dtype])
    sides = _noise_sides(parameters, NOISES[noise])
    if device.type == "cuda" and noise == "normal" and size.num_tensors <= MAX_COMPILED:
        sides["torch.compile"] = _compiled(parameters)
    _report(benchmark, device, f"{noise} noise, {dtype}", parameters, sides, num_passes=2)


@pytest.mark.parametrize("dtype", DTYPES)
def bench_other(benchmark: Any, device: torch.device, size: Size, dtype: str) -> None:
    """theta <- 0.999 * theta + 0.001 * other: a moving average."""
    parameters, other = (_tensors(size, device, DTYPES[dtype]) for _ in range(2))

    def loop() -> None:
        for theta, source in zip(parameters, other, strict=True):
            theta.mul_(0.999).add_(source, alpha=0.001)

    sides: dict[str, Side] = {
        "ours": lambda: interpolate_(parameters, 0.999, other=other, b=0.001),
        "loop": loop,
        "foreach lerp": lambda: torch._foreach_lerp_(parameters, other, 0.001),
    }
    _report(benchmark, device, f"other tensors, {dtype}", parameters, sides, num_passes=3)


def _noise_sides(parameters: list[Tensor], noise: Noise) -> dict[str, Side]:
    beta = 1 - ALPHA
    names = [str(index) for index in range(len(parameters))]
    inits = [noise.init] * len(parameters)
    flat = torch.empty_like(_flat(parameters))
    views = _views(flat, parameters)
    held = [torch.randn_like(theta) for theta in parameters]

    def loop() -> None:
        """As SFF's released code does it: a random twin of each parameter, then a weighted sum."""
        for theta in parameters:
            twin = torch.empty_like(theta)
            noise.fill(twin)
            theta.copy_(ALPHA * theta + beta * twin)

    def flat_draw() -> None:
        noise.fill(flat)
        torch._foreach_lerp_(parameters, views, beta)

    return {
        "ours": lambda: interpolate_(parameters, ALPHA, init=inits, c=beta, seed=0, names=names),
        "loop with a twin": loop,
        "flat draw + foreach lerp": flat_draw,
        "foreach lerp, twin held": lambda: torch._foreach_lerp_(parameters, held, beta),
    }


def _compiled(parameters: list[Tensor]) -> Side:
    def step(tensors: list[Tensor]) -> None:
        for theta in tensors:
            theta.mul_(ALPHA).add_(torch.randn_like(theta) * STD, alpha=1 - ALPHA)

    compiled = torch.compile(step, fullgraph=True)
    return lambda: compiled(parameters)


def _report(
    benchmark: Any,
    device: torch.device,
    what: str,
    parameters: list[Tensor],
    sides: dict[str, Side],
    num_passes: int,
) -> None:
    """Time all sides and a copy of as many elements; `num_passes` reads and writes of each."""
    source = _flat(parameters)
    target = torch.empty_like(source)
    grown = extra_bytes(sides["ours"], device)
    times = in_turns(benchmark, device, sides | {"copy": lambda: target.copy_(source)})
    copy_s = times.pop("copy")
    benchmark.extra_info.update(
        title=f"interpolate_ {what}: {source.numel():,} elements in {len(parameters)} tensors",
        ratios={f"{name} / ours": times[name] / times["ours"] for name in list(times)[1:]},
        share_of_copy_bandwidth=num_passes / 2 * copy_s / times["ours"],
        seconds=times | {"copy": copy_s},
        wall_s=wall_seconds(sides["ours"], device),
        extra_bytes=grown,
    )


def _tensors(size: Size, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [STD * torch.randn(shape, device=device, dtype=dtype) for shape in size.shapes()]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
