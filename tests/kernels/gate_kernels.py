"""Two small kernels for the tests of the compile gate; triton finds them by their source file."""

import triton
import triton.language as tl


@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.load(x + offsets))


@triton.jit
def sine(x, y, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offsets, tl.sin(tl.load(x + offsets)))
