"""Numbers from Philox words in a kernel, as `sffkernels.init` makes them in plain torch.

`log` and `sin` are polynomials of our own fit: libdevice's sine keeps a stack for large angles.
Kernels that use this file are compiled with enable_fp_fusion=False: a product and a sum round
separately, as on a CPU, wherever no `tl.fma` says otherwise. Uniforms then equal those of a CPU in
every bit; normals differ where the polynomials differ from a CPU's log and sin, by less than 1e-6.
"""

import triton
import triton.language as tl

from sffkernels.gpu import layout
from sffkernels.gpu.philox import philox, top_bits
from sffkernels.init import CENTRAL, CENTRAL_BELOW, TAIL
from sffkernels.init import ULP as _ULP

ULP = tl.constexpr(_ULP)
# ln(1 + f) = f - f^2 / 2 + f^3 P(f) on [1/sqrt(2) - 1, sqrt(2) - 1]: relative error 6e-9.
_LOG = (0.33333331, -0.25000823, 0.20001227, -0.16623357, 0.14201762, -0.13160194, 0.1276155)
LOG = tl.constexpr((*_LOG, -0.076344296))
# sin(2 pi p) = 2 pi p + p^3 P(p^2) and cos(2 pi p) = 1 + p^2 Q(p^2) on [-1/8, 1/8]: 4e-9, 7e-11.
SIN = tl.constexpr((-41.341671, 81.593765, -75.445602))
COS = tl.constexpr((-19.739208, 64.939323, -85.443237, 59.22924))
TURN_HIGH, TURN_LOW = tl.constexpr(6.2831855), tl.constexpr(-1.7484556e-7)  # 2 pi
LN2_HIGH, LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
CENTRAL_CENTRE, CENTRAL_POWERS = tl.constexpr(CENTRAL[0]), tl.constexpr(CENTRAL[1])
TAIL_CENTRE, TAIL_POWERS = tl.constexpr(TAIL[0]), tl.constexpr(TAIL[1])
BORDER = tl.constexpr(CENTRAL_BELOW)
# Masses above this one have -ln(4 t (1 - t)) < CENTRAL_BELOW: the second polynomial is not needed.
CENTRAL_MASS = tl.constexpr(1e-3)
UNIFORM, NORMAL = tl.constexpr(layout.UNIFORM), tl.constexpr(layout.NORMAL)


@triton.jit
def sample(kind, numbers, counter, counter_high, name0, name1, key0, key1):
    """Four numbers [...] of each counter [...]: elements 4 counter .. 4 counter + 3 of a tensor.

    numbers: pointer to the parameters of the distribution, see `table.encode`.
    """
    x0, x1, x2, x3 = philox(counter, counter_high, name0, name1, key0, key1)
    first, second = tl.load(numbers), tl.load(numbers + 1)
    if kind == UNIFORM:
        y0, y1 = uniform(x0, first, second), uniform(x1, first, second)
        y2, y3 = uniform(x2, first, second), uniform(x3, first, second)
    elif kind == NORMAL:
        y0, y1 = box_muller(x0, x1)
        y2, y3 = box_muller(x2, x3)
        y0, y1 = y0 * second + first, y1 * second + first
        y2, y3 = y2 * second + first, y3 * second + first
    else:
        low, high = tl.load(numbers + 2), tl.load(numbers + 3)
        below, above = tl.load(numbers + 4), tl.load(numbers + 5)
        mass = tl.load(numbers + 6)
        y0 = truncated(x0, first, second, low, high, below, above, mass)
        y1 = truncated(x1, first, second, low, high, below, above, mass)
        y2 = truncated(x2, first, second, low, high, below, above, mass)
        y3 = truncated(x3, first, second, low, high, below, above, mass)
    return y0, y1, y2, y3


@triton.jit
def uniform(word, low, extent):
    """low + extent * u, see `sffkernels.init.uniform`."""
    return top_bits(word) * ULP * extent + low


@triton.jit
def box_muller(word0, word1):
    """Two standard normals from two words: sqrt(-2 ln v) times cosine and sine of u turns."""
    radius = sqrt(log((top_bits(word0) + 1.0) * ULP) * -2.0)
    cosine, sine = cos_and_sin((word1 >> 8).to(tl.int32))
    return radius * cosine, radius * sine


@triton.jit
def truncated(word, mean, std, low, high, below, above, mass):
    """Normal between two cuts by inverse CDF, see `sffkernels.init.truncated`."""
    k = top_bits(word)
    p = k * ULP * mass + below
    q = (16777216.0 - k) * ULP * mass + above
    tail = tl.maximum(tl.minimum(p, q), mass * (ULP * 0.5))
    w = tl.maximum(-log((1.0 - tail) * tail * 4.0), 0.0)
    ratio = polynomial(w - CENTRAL_CENTRE, CENTRAL_POWERS, 9)
    if tl.minimum(below, above) < CENTRAL_MASS:
        far = polynomial(sqrt(w) - TAIL_CENTRE, TAIL_POWERS, 8)
        ratio = tl.where(w < BORDER, ratio, far)
    z = copysign(ratio * tl.abs(tail * -2.0 + 1.0), p - q)
    return tl.minimum(tl.maximum(z * std + mean, low), high)


@triton.jit
def log(x):
    """ln x of normal numbers x > 0, from x = 2^e (1 + f): within 1 unit in the last place."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    tail = tl.fma(f * f, tl.fma(f, polynomial(f, LOG, 7), -0.5), e * LN2_LOW)
    return tl.fma(e, LN2_HIGH, f + tail)


@triton.jit
def cos_and_sin(k):
    """cos and sin of k / 2^24 turns for integers 0 <= k < 2^24, each rounded about once.

    k = 2^22 quarter + 2^24 p leaves |p| <= 1/8 exactly; an odd quarter exchanges the two.
    """
    quarter = (k + (1 << 21)) >> 22
    p = (k - (quarter << 22)).to(tl.float32) * ULP
    square = p * p
    slope = tl.fma(square, polynomial(square, SIN, 2), tl.zeros_like(p) + TURN_LOW)
    sine = tl.fma(p, tl.zeros_like(p) + TURN_HIGH, p * slope)
    cosine = tl.fma(square, polynomial(square, COS, 3), tl.zeros_like(p) + 1.0)
    is_odd = (quarter & 1) != 0
    return (
        flip(tl.where(is_odd, sine, cosine), (quarter + 1) << 30),
        flip(tl.where(is_odd, cosine, sine), quarter << 30),
    )


@triton.jit
def flip(x, bits):
    """x, its sign turned where the top one of `bits` is set."""
    return (x.to(tl.int32, bitcast=True) ^ (bits & -0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def sqrt(x):
    """sqrt x of x >= 0: the hardware's reciprocal square root and one step that rounds it well."""
    inverse = tl.rsqrt(tl.maximum(x, 1e-30))
    root = x * inverse
    return tl.fma(tl.fma(-root, root, x), 0.5 * inverse, root)


@triton.jit
def copysign(magnitude, sign):
    """|magnitude| with the sign of `sign`."""
    bits = magnitude.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    signs = sign.to(tl.int32, bitcast=True) & -0x80000000
    return (bits | signs).to(tl.float32, bitcast=True)


@triton.jit
def polynomial(x, POWERS: tl.constexpr, DEGREE: tl.constexpr):
    """The sum of POWERS[i] x^i, by Horner's rule with one rounding a step."""
    value = tl.zeros_like(x) + POWERS[DEGREE]
    for i in tl.static_range(DEGREE):
        value = tl.fma(value, x, tl.zeros_like(x) + POWERS[DEGREE - 1 - i])
    return value
