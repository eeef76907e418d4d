"""`interpolate_` in plain torch: what runs on a CPU, and the oracle of the kernel.

Noise is drawn chunk by chunk, so no second model is ever held. On CUDA it serves the tensors that
the kernel does not take (float64, non-contiguous), without waiting for the device.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from sffkernels.init import Init, Kind, sample
from sffkernels.philox import NUM_LANES, Philox, Words, name_words, split_words

CHUNK_COUNTERS = 1 << 15  # 131,072 elements at a time: the buffers stay within a CPU core's cache
Weight = float | Tensor


class Interpolation:
    """theta <- a * theta + b * other + c * noise, tensor by tensor, for one seed.

    Keeps one set of Philox buffers a device. Weights are floats, or 0-dim tensors that are never
    read on the host.
    """

    def __init__(self, weights: Sequence[Weight], seed: int) -> None:
        """weights: a, b, c. seed: 64 bits, of either sign."""
        self._weights = tuple(weights)
        self._key = split_words(seed)
        self._generators: dict[torch.device, Philox] = {}

    @torch.no_grad()
    def update(
        self, theta: Tensor, other: Tensor | None, init: Init | None, name: str | None
    ) -> None:
        """Update one tensor in place; `other`, or `init` and `name`, are None where unused."""
        a, b, c = self._weights
        flat = theta.detach().reshape(-1)  # a copy where theta is not contiguous
        source = None if other is None else other.detach().reshape(-1)
        dtype = torch.float64 if theta.dtype == torch.float64 else torch.float32
        empty = flat.new_empty(0, dtype=dtype)
        words = None if name is None else name_words(name)
        for start, stop in _chunks(flat.numel()):
            terms: list[tuple[Weight, Tensor]] = []
            if _used(a):
                terms.append((a, flat[start:stop].to(dtype)))
            if source is not None and _used(b):
                terms.append((b, source[start:stop].to(dtype)))
            if init is not None and words is not None and _used(c):
                terms.append((c, self._noise(init, words, start, stop - start, empty)))
            flat[start:stop] = self._sum(terms, flat[start:stop])
        if not theta.is_contiguous():
            theta.copy_(flat.view(theta.shape))

    def _noise(self, init: Init, name: Words, start: int, num: int, like: Tensor) -> Tensor:
        """Elements start .. start + num - 1, `start` a multiple of 4, in the dtype of `like`."""
        if init.kind == "constant":
            return like.new_full((num,), init.a)
        if like.device not in self._generators:
            self._generators[like.device] = Philox(CHUNK_COUNTERS, like.device)
        words = self._generators[like.device].words(
            self._key, name, start // NUM_LANES, -(-num // NUM_LANES)
        )
        return sample(init, words).t().reshape(-1)[:num].to(like.dtype)

    def _sum(self, terms: list[tuple[Weight, Tensor]], before: Tensor) -> Tensor | float:
        if any(isinstance(weight, Tensor) for weight in self._weights):
            return _sum_on_device(terms, self._weights, before)
        return _weighted_sum(terms) if terms else 0.0


def _used(weight: Weight) -> bool:
    return isinstance(weight, Tensor) or weight != 0


def _chunks(numel: int) -> Iterator[tuple[int, int]]:
    size = CHUNK_COUNTERS * NUM_LANES
    return ((start, min(start + size, numel)) for start in range(0, numel, size))


def _weighted_sum(terms: list[tuple[Weight, Tensor]]) -> Tensor:
    """Left to right; never add(alpha=...), whose fused multiply-add depends on the vector width."""
    total, *rest = (value if weight == 1 else value * weight for weight, value in terms)
    for product in rest:
        total = total + product
    return total


def _sum_on_device(
    terms: list[tuple[Weight, Tensor]], weights: Sequence[Weight], before: Tensor
) -> Tensor:
    """The same numbers where the host does not know which weights are 0 or 1.

    -0 takes the place of a missing term: -0 + x is x for every x, zeros included.
    """
    total = before.new_full((), -0.0, dtype=torch.float64)
    for weight, value in terms:
        factor = _on(weight, value)
        total = total.to(value.dtype) + torch.where(factor != 0, value * factor, -0.0)
    a, b, c = (_on(weight, before) for weight in weights)
    total = torch.where((a == 0) & (b == 0) & (c == 0), 0.0, total)
    return torch.where((a == 1) & (b == 0) & (c == 0), before, total.to(before.dtype))


def _on(weight: Weight, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    return like.new_full((), weight, dtype=torch.float64)


def weights_of(weights: Sequence[float], on_device: Sequence[Tensor | None]) -> list[Weight]:
    """a, b, c as the operator passes them: the tensor where there is one, else the number."""
    pairs = zip(weights, on_device, strict=True)
    return [number if tensor is None else tensor for number, tensor in pairs]


def inits_of(kinds: Sequence[str], parameters: Sequence[float]) -> list[Init]:
    """Distributions as the operator passes them: a kind and four numbers each."""
    fours = zip(*[iter(parameters)] * 4, strict=True)
    return [Init(cast(Kind, kind), *four) for kind, four in zip(kinds, fours, strict=True)]


def entry(
    index: int, other: Sequence[Tensor], inits: Sequence[Init], names: Sequence[str]
) -> tuple[Tensor | None, Init | None, str | None]:
    """(other, init, name) of one tensor; None for what the call does not use."""
    drawn = (inits[index], names[index]) if inits else (None, None)
    return (other[index] if other else None, *drawn)
