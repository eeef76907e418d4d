"""Two small kernels for the tests of the compile gate; triton finds them by their source file."""

import triton
import triton.language as tl

from sffkernels.gpu.interpolate_kernel import draw, mix


@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets))


@triton.jit
def sine(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.sin(tl.load(x + offsets)))


@triton.jit
def one_kind(
    theta,
    numbers,
    c,
    name,
    start,
    i,
    key,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The unmasked block of `interpolate_kernel` for one distribution, to count instructions."""
    noise = draw(KIND, numbers, name, start, i, key, key, DTYPE, BLOCK)
    mix(theta, theta, noise, 0.7, 0.0, c, 0, BLOCK, None, True, False, BLOCK)
