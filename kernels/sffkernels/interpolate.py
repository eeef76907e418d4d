"""theta <- a * theta + b * other + c * noise, in place, over all parameters of a model.

The plain-torch implementation: what runs on a CPU, and the oracle of any faster one. The noise is
drawn chunk by chunk, so no second model is ever held; it depends on (seed, name, element) alone.

    interpolate_(list(model.parameters()), 0.7, init=inits, c=0.3, seed=0, names=names)   # SFF
    interpolate_(ema, 0.999, other=list(model.parameters()), b=0.001)                    # EMA
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sffkernels.checks import check_lists, check_memory, check_scalar
from sffkernels.init import Init, sample
from sffkernels.philox import NUM_LANES, Philox, Words, name_words, seed_words

CHUNK_COUNTERS = 1 << 15  # 131,072 elements at a time: the buffers stay within a CPU core's cache


def interpolate_(
    tensors: Sequence[Tensor],
    a: float | Tensor,
    *,
    other: Sequence[Tensor] | None = None,
    b: float | Tensor = 0.0,
    init: Sequence[Init] | None = None,
    c: float | Tensor = 0.0,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> None:
    """theta <- a * theta + b * other + c * noise, for every theta of `tensors`, in place.

    tensors: floating-point, of any shape, dtype and device, no two sharing an element.
    other: one tensor per theta, same shape and device, sharing no element with any theta.
    init, names: one distribution and one unique name per theta, needed when c is not 0.
    a, b, c: finite numbers or 0-dim tensors.

    A term whose coefficient is 0 is never read (a = 0 ignores even NaN), a coefficient of 1 does
    not multiply, and a = 1 with b = c = 0 writes nothing. Noise is drawn in float32; terms are
    summed left to right in float32 (float64 for float64 tensors), each product and sum rounded, and
    the result is rounded once to the tensor's dtype. Element indices are row-major, so strides do
    not matter; a non-contiguous tensor is copied while it is updated.

    Raises ValueError, before anything is written, naming the argument that is wrong.
    """
    a, b, c = check_scalar("a", a), check_scalar("b", b), check_scalar("c", c)
    check_lists(tensors, other, b, init, c, names)
    check_memory(tensors, other)
    key = seed_words(seed)
    if (a, b, c) == (1.0, 0.0, 0.0):
        return
    noise = _Noise(key)
    for index, theta in enumerate(tensors):
        source = other[index] if other is not None and b != 0 else None
        drawn = (init[index], names[index]) if init and names and c != 0 else None
        _update(theta, a, source, b, drawn, c, noise)


def draw(
    init: Init,
    shape: Sequence[int],
    *,
    seed: int,
    name: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The noise that `interpolate_` adds to a tensor of this shape and name, as a new tensor."""
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    interpolate_([out], 0.0, init=[init], c=1.0, seed=seed, names=[name])
    return out


class _Noise:
    """Chunks of the noise of one seed, with one set of Philox buffers a device."""

    def __init__(self, key: Words) -> None:
        self._key = key
        self._generators: dict[torch.device, Philox] = {}

    def chunk(self, init: Init, name: Words, start: int, num: int, like: Tensor) -> Tensor:
        """Elements start .. start + num - 1, `start` a multiple of 4, in the dtype of `like`."""
        if init.kind == "constant":
            return like.new_full((num,), init.a)
        if like.device not in self._generators:
            self._generators[like.device] = Philox(CHUNK_COUNTERS, like.device)
        words = self._generators[like.device].words(
            self._key, name, start // NUM_LANES, -(-num // NUM_LANES)
        )
        return sample(init, words).t().reshape(-1)[:num].to(like.dtype)


@torch.no_grad()
def _update(
    theta: Tensor,
    a: float,
    other: Tensor | None,
    b: float,
    drawn: tuple[Init, str] | None,
    c: float,
    noise: _Noise,
) -> None:
    flat = theta.detach().reshape(-1)  # a copy where theta is not contiguous
    source = None if other is None else other.detach().reshape(-1)
    dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
    empty = flat.new_empty(0, dtype=dtype)
    init, name = (drawn[0], name_words(drawn[1])) if drawn else (None, None)
    for start, stop in _chunks(flat.numel()):
        terms: list[tuple[float, Tensor]] = []
        if a != 0:
            terms.append((a, flat[start:stop].to(dtype)))
        if source is not None:
            terms.append((b, source[start:stop].to(dtype)))
        if init is not None and name is not None:
            terms.append((c, noise.chunk(init, name, start, stop - start, empty)))
        flat[start:stop] = _weighted_sum(terms) if terms else 0.0
    if not theta.is_contiguous():
        theta.copy_(flat.view(theta.shape))


def _chunks(numel: int) -> Iterator[tuple[int, int]]:
    size = CHUNK_COUNTERS * NUM_LANES
    return ((start, min(start + size, numel)) for start in range(0, numel, size))


def _weighted_sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    """Left to right; never add(alpha=...), whose fused multiply-add depends on the vector width."""
    total, *rest = (value if weight == 1 else value * weight for weight, value in terms)
    for product in rest:
        total = total + product
    return total
