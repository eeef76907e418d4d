"""Distributions of parameters, and how the words of the Philox stream become numbers.

    weight = Init.fan_in_uniform(512)            # U(-1/sqrt(512), 1/sqrt(512))
    norm   = Init.constant(1.0)
    other  = Init.truncated_normal(0.0, 0.02, -0.04, 0.04)      # absolute cut-offs

All arithmetic is float32 on the top 24 bits of a word, k = word >> 8, written with operations that
another device can repeat: exact scaling, an exact fold of the angle, polynomials of our own fit.
"""

import difflib
import math
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Kind = Literal["constant", "uniform", "normal", "truncated_normal"]

MAX_NUMBER = 1e38  # so that nothing below overflows float32
ULP = 2.0**-24  # spacing of the 24-bit uniforms
PLAIN_CUT = 6.0  # cut-offs this many std away remove less than 2e-9: a plain normal
MIN_MASS = 2.0**-12  # the polynomials below hold down to tails of MIN_MASS * ULP / 2 = 2^-37
# z / (1 - 2t) where z is the standard normal's quantile at tail mass t and w = -ln(4 t (1 - t)):
# least squares on Chebyshev nodes, centre first, lowest power first, relative error below 1.4e-7.
CENTRAL_BELOW = 6.0
_CENTRAL_LOW = (2.29603524, 0.341717012, -0.00811560434, -0.00118257441, 0.000276459603)
_CENTRAL_HIGH = (-1.79650178e-05, -2.6688103e-06, 6.3295559e-07, -5.98903564e-09, -7.68006436e-09)
CENTRAL = (3.0, (*_CENTRAL_LOW, *_CENTRAL_HIGH))
_TAIL_LOW = (5.0734969, 1.42648656, 0.002910398, -0.00183057821, 0.000747895626)
_TAIL_HIGH = (-0.000341149939, 0.000258354691, -0.000178809428, 5.17701617e-05)
TAIL = (3.75, (*_TAIL_LOW, *_TAIL_HIGH))


@dataclass(frozen=True)
class Init:
    """Distribution of one tensor, elementwise; every constructor raises ValueError on bad numbers.

    kind              a               b
    constant          value           -
    uniform           low             high
    normal            mean            standard deviation
    truncated_normal  mean            standard deviation (before truncation); low, high are absolute
    """

    kind: Kind
    a: float = 0.0
    b: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(_unknown_kind(self.kind))
        if not (abs(self.a) <= MAX_NUMBER and abs(self.b) <= MAX_NUMBER):  # also catches NaN
            raise ValueError(f"a and b must be finite and at most {MAX_NUMBER:g}, got {self}")
        if self.kind == "uniform" and self.a > self.b:
            raise ValueError(f"uniform needs low <= high, got {self.a} > {self.b}")
        if self.kind.endswith("normal") and self.b < 0:
            raise ValueError(f"the standard deviation must not be negative, got {self.b}")
        if self.kind == "truncated_normal":
            self._check_cuts()

    def _check_cuts(self) -> None:
        if not (self.b > 0 and self.low < self.high):  # also catches NaN
            raise ValueError(f"truncated_normal needs std > 0 and low < high, got {self}")
        mass = Cuts.of(self).mass
        if mass < MIN_MASS:
            raise ValueError(
                f"truncated_normal must keep at least {MIN_MASS:.2g} of the normal's mass, "
                f"{self} keeps {mass:.2g}"
            )

    @classmethod
    def constant(cls, value: float) -> Self:
        """Every element = value."""
        return cls("constant", float(value))

    @classmethod
    def uniform(cls, low: float, high: float) -> Self:
        """U[low, high)."""
        return cls("uniform", float(low), float(high))

    @classmethod
    def normal(cls, mean: float = 0.0, std: float = 1.0) -> Self:
        """N(mean, std^2)."""
        return cls("normal", float(mean), float(std))

    @classmethod
    def truncated_normal(
        cls, mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0
    ) -> Self:
        """N(mean, std^2) given low <= value <= high; cut-offs are values, not multiples of std."""
        return cls("truncated_normal", float(mean), float(std), float(low), float(high))

    @classmethod
    def fan_in_uniform(cls, fan_in: int) -> Self:
        """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Linear gives its weight and bias."""
        if fan_in < 1:
            raise ValueError(f"fan_in must be at least 1, got {fan_in}")
        bound = 1 / math.sqrt(fan_in)
        return cls.uniform(-bound, bound)

    @property
    def is_plain_normal(self) -> bool:
        """A normal, or one whose cut-offs are too far out (6 std) to ever matter."""
        cuts = ((self.a - self.low), (self.high - self.a))
        return self.kind == "normal" or (
            self.kind == "truncated_normal" and min(cuts) >= PLAIN_CUT * self.b
        )


def sample(init: Init, words: Tensor) -> Tensor:
    """Numbers of a non-constant `init` from Philox words: int32 [4, N] -> float32 [4, N].

    Overwrites `words`. Row = lane; normals come in pairs from lanes (0, 1) and (2, 3).
    """
    words >>= 8
    words &= 0xFFFFFF  # the shift is arithmetic: clear the copies of the sign
    k = words.to(torch.float32)
    if init.kind == "uniform":
        return uniform(k, init.a, init.b)
    if init.is_plain_normal:
        return box_muller(k).mul_(init.b).add_(init.a)
    z = truncated(k, Cuts.of(init))
    low, high = max(init.low, -MAX_NUMBER), min(init.high, MAX_NUMBER)
    return z.mul_(init.b).add_(init.a).clamp_(low, high)


def uniform(k: Tensor, low: float, high: float) -> Tensor:
    """low + (high - low) * u with u = k / 2^24 in [0, 1); product and sum rounded separately."""
    return k.mul_(ULP).mul_(high - low).add_(low)


def box_muller(k: Tensor) -> Tensor:
    """z0 = r cos(2 pi u), z1 = r sin(2 pi u) with r = sqrt(-2 ln v): float32 [4, N] -> [4, N].

    v = (k + 1) / 2^24 in (0, 1] from lanes 0 and 2, u = k / 2^24 from lanes 1 and 3; z0 lands in
    the even lanes. Within 1e-6 of float64, because the angle is folded to [-pi/2, pi/2] exactly,
    before anything rounds: with q = |u - 1/2| - 1/4, cos(2 pi u) = sin(2 pi q) and
    |sin(2 pi u)| = sin(2 pi (1/4 - |q|)). Source: Box and Muller (1958).
    """
    radius = k[0::2].add(1.0).mul_(ULP).log_().mul_(-2.0).sqrt_()
    half = k[1::2].mul(-ULP).add_(0.5)  # 1/2 - u, whose sign is that of sin(2 pi u)
    quarter = half.abs().sub_(0.25)
    torch.mul(quarter.mul(2 * math.pi).sin_(), radius, out=k[0::2])
    sine = quarter.abs_().neg_().add_(0.25).mul_(2 * math.pi).sin_()
    torch.mul(sine.copysign_(half), radius, out=k[1::2])
    return k


@dataclass(frozen=True)
class Cuts:
    """Standard normal masses below the lower cut, above the upper one, and between them."""

    below: float
    above: float
    mass: float

    @classmethod
    def of(cls, init: Init) -> Self:
        low, high = (init.low - init.a) / init.b, (init.high - init.a) / init.b
        below, above = _mass_above(-low), _mass_above(high)
        return cls(below, above, 1.0 - below - above)  # float64: 1e-12 of the least mass allowed


def truncated(k: Tensor, cuts: Cuts) -> Tensor:
    """Standard normal between two cuts by inverse CDF: z with Phi(z) = below + mass * k / 2^24.

    Both tails' masses are formed, p = below + mass * u and q = above + mass * (1 - u), and the
    smaller one is inverted: neither suffers the cancellation that 2 p - 1 has far out. Within 1e-6
    of float64 relative to max(1, |z|); the resolution far out is that of the 24-bit u.
    """
    p = k.mul(ULP).mul_(cuts.mass).add_(cuts.below)
    q = k.neg().add_(2.0**24).mul_(ULP).mul_(cuts.mass).add_(cuts.above)
    tail = torch.minimum(p, q).clamp_(min=cuts.mass * ULP / 2)  # u = 0 without a lower cut: no -inf
    return quantile_magnitude(tail).copysign_(p.sub_(q))


def quantile_magnitude(tail: Tensor) -> Tensor:
    """z >= 0 with tail mass `tail` above it, for 2^-37 <= tail <= 1/2, by two polynomials."""
    w = (1.0 - tail).mul_(tail).mul_(4.0).log_().neg_().clamp_(min=0.0)
    ratio = torch.where(w < CENTRAL_BELOW, _polynomial(w, CENTRAL), _polynomial(w.sqrt(), TAIL))
    return ratio.mul_(tail.mul_(-2.0).add_(1.0).abs_())


def _polynomial(x: Tensor, centred: tuple[float, tuple[float, ...]]) -> Tensor:
    centre, coefficients = centred
    x = x - centre
    value = x * coefficients[-1]
    for coefficient in coefficients[-2:0:-1]:
        value.add_(coefficient).mul_(x)
    return value.add_(coefficients[0])


def _mass_above(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def _unknown_kind(given: object) -> str:
    near = difflib.get_close_matches(str(given), get_args(Kind), 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    return f"unknown init kind {given!r}, allowed are {', '.join(get_args(Kind))}{hint}"
