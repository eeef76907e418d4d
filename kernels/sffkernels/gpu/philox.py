"""Philox4x32-10 for Triton kernels: the integers of `sffkernels.philox`, block by block.

    x0, x1, x2, x3 = philox(low, high, name_low, name_high, key_low, key_high)    # all uint32

A product of two words is taken as one 64-bit product, which is one IMAD.WIDE: `tl.umulhi` and `*`
are two multiplications, and the high one runs at a quarter of the rate.
"""

import triton
import triton.language as tl


@triton.jit
def philox(c0, c1, c2, c3, key0, key1):
    """Four words [...] from counters [...] (uint32, c0 a block, the rest blocks or scalars)."""
    c1, c2, c3 = like(c0, c1), like(c0, c2), like(c0, c3)
    for _ in tl.static_range(10):
        product0 = c0.to(tl.uint64) * 0xD2511F53
        product1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1
        c1, c3 = product1.to(tl.uint32), product0.to(tl.uint32)
        key0 = (key0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        key1 = (key1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def like(block, value):
    """`value` at every element of `block`."""
    return tl.zeros_like(block) + value


@triton.jit
def words_of(number):
    """(low 32 bits, high 32 bits) of a 64-bit integer, as uint32."""
    return number.to(tl.uint32), (number >> 32).to(tl.uint32)


@triton.jit
def unsigned(word):
    """An argument of type int32 as uint32; the interpreter passes arguments as Python integers."""
    return (tl.zeros((), tl.int32) + word).to(tl.uint32)


@triton.jit
def top_bits(word):
    """k = word >> 8 as float32, exact."""
    return (word >> 8).to(tl.int32).to(tl.float32)
