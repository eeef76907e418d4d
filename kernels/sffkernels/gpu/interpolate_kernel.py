"""The kernel of `interpolate_`: one program a chunk of one tensor, all tensors in one launch.

    theta <- a * theta + b * other + c * noise

A row of the chunk table says which tensor and which part of it; a row of the tensor table where
the tensor lies and how its noise is distributed. Addresses are 64-bit, so tensors may be of any
size; a chunk starts at a multiple of its size, so the counter's low word never overflows in it.
"""

import triton
import triton.language as tl

from sffkernels.gpu import layout
from sffkernels.gpu.distributions import sample
from sffkernels.gpu.philox import unsigned, words_of

TENSOR_COLUMNS = tl.constexpr(layout.TENSOR_COLUMNS)
NUMBER_COLUMNS = tl.constexpr(layout.NUMBER_COLUMNS)
CONSTANT = tl.constexpr(layout.CONSTANT)


@triton.jit(do_not_specialize=["key_low", "key_high"])
def interpolate_kernel(
    chunks,
    tensors,
    numbers,
    a,
    b,
    c,
    key_low,
    key_high,
    THETA: tl.constexpr,
    OTHER: tl.constexpr,
    NOISE: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """a, b, c: float32, or pointers to 0-dim tensors, as ON_DEVICE says. OTHER may be None."""
    index, start, num, row = locate(chunks, tensors, CHUNK)
    theta = pointer(tl.load(row), THETA, ALIGNED) + start
    other = theta
    if OTHER is not None:
        other = pointer(tl.load(row + 1), OTHER, ALIGNED) + start
    name = tl.load(row + 3)
    kind = tl.load(row + 4)
    numbers += index * NUMBER_COLUMNS
    a, b, c = weight(a, ON_DEVICE[0]), weight(b, ON_DEVICE[1]), weight(c, ON_DEVICE[2])
    if (a != 1.0) | (b != 0.0) | (c != 0.0):
        num_whole = num // BLOCK
        for i in range(num_whole):
            noise = _noise(c, kind, numbers, name, start, i, key_low, key_high, THETA, NOISE, BLOCK)
            mix(theta, other, noise, a, b, c, i * BLOCK, num, OTHER, NOISE, False, BLOCK)
        if num_whole * BLOCK < num:
            i = num_whole
            noise = _noise(c, kind, numbers, name, start, i, key_low, key_high, THETA, NOISE, BLOCK)
            mix(theta, other, noise, a, b, c, i * BLOCK, num, OTHER, NOISE, True, BLOCK)


@triton.jit
def locate(chunks, tensors, CHUNK: tl.constexpr):
    """(tensor index, first element, number of elements, row of the tensor table) of a program."""
    program = tl.program_id(0).to(tl.int64)
    index = tl.load(chunks + 2 * program).to(tl.int64)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    row = tensors + index * TENSOR_COLUMNS
    return index, start, tl.minimum(tl.load(row + 2) - start, CHUNK).to(tl.int32), row


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A 64-bit address as a pointer; the hint that makes accesses 128 bits wide must follow it."""
    result = address.to(tl.pointer_type(DTYPE))
    return tl.multiple_of(result, 16) if ALIGNED else result


@triton.jit
def weight(value, ON_DEVICE: tl.constexpr):
    """A coefficient in float32, read from memory if it lives on the device."""
    return tl.load(value).to(tl.float32) if ON_DEVICE else tl.zeros((), tl.float32) + value


@triton.jit
def mix(
    theta,
    other,
    noise,
    a,
    b,
    c,
    first,
    num,
    OTHER: tl.constexpr,
    NOISE: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Elements first .. first + BLOCK - 1; a term whose coefficient is 0 is not read."""
    offsets = first + tl.arange(0, BLOCK)
    mask = offsets < num if MASKED else None
    # -0 + x is x for every x, zeros included; all terms missing give +0.
    nothing = (a == 0.0) & (b == 0.0) & (c == 0.0)
    total = tl.zeros((BLOCK,), tl.float32) + tl.where(nothing, 0.0, -0.0)
    if a != 0.0:
        total = tl.load(theta + offsets, mask).to(tl.float32) * a
    if OTHER is not None and b != 0.0:
        total += tl.load(other + offsets, mask).to(tl.float32) * b
    if NOISE and c != 0.0:
        total += noise * c
    tl.store(theta + offsets, total.to(theta.dtype.element_ty), mask)


@triton.jit
def _noise(
    c,
    kind,
    numbers,
    name,
    start,
    i,
    key_low,
    key_high,
    THETA: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Noise of block `i` of the chunk [BLOCK], each thread holding what it will load and store."""
    noise = tl.zeros((BLOCK,), tl.float32)
    if NOISE and c != 0.0:
        if kind == CONSTANT:
            noise += tl.load(numbers)
        else:
            noise = draw(kind, numbers, name, start, i, key_low, key_high, THETA, BLOCK)
    return noise


@triton.jit
def draw(
    kind, numbers, name, start, i, key_low, key_high, THETA: tl.constexpr, BLOCK: tl.constexpr
):
    """Elements start + i BLOCK ... of a distribution that is not constant [BLOCK].

    A thread's 128 bits are 4 elements of float32, one counter, or 8 of a 16-bit type, two counters:
    were they made in any other order, they would cross shared memory to get there.
    """
    base, high = words_of(start // 4)
    name0, name1 = words_of(name)
    base = (base + i * (BLOCK // 4)).to(tl.uint32)
    key0, key1 = unsigned(key_low), unsigned(key_high)
    if THETA.primitive_bitwidth == 16:
        even = tl.arange(0, BLOCK // 8).to(tl.uint32) * 2 + base
        x0, x1, x2, x3 = sample(kind, numbers, even, high, name0, name1, key0, key1)
        y0, y1, y2, y3 = sample(kind, numbers, even + 1, high, name0, name1, key0, key1)
        x0, x1, x2, x3 = tl.join(x0, y0), tl.join(x1, y1), tl.join(x2, y2), tl.join(x3, y3)
    else:
        counter = tl.arange(0, BLOCK // 4).to(tl.uint32) + base
        x0, x1, x2, x3 = sample(kind, numbers, counter, high, name0, name1, key0, key1)
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (BLOCK,))
