"""The random twin of a network: what it starts from, mixed into it or put in its place.

    theta <- a * theta + (1 - a) * start        # a = 0 is `create` and `from-scratch`, a = 0.7 SFF

A start is elementwise (`sffkernels.Init`), and then never stored, or it is a `Whole`: a tensor that
has to be made in one piece, such as an orthogonal matrix. Both depend on (seed, parameter name)
alone. `mix_(model, 0.7, model.initial(), seed=0)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sffkernels
from sffbench.models.blocks import sinusoids
from sffkernels import Init


class Whole(ABC):
    """A start that is not elementwise."""

    @abstractmethod
    def make(self, shape: Sequence[int], seed: int, name: str) -> Tensor:
        """The float32 tensor of the parameter `name`."""


@dataclass(frozen=True)
class Sinusoids(Whole):
    """Positions of the last two axes, places and features: the same for every seed."""

    def make(self, shape: Sequence[int], seed: int, name: str) -> Tensor:
        return sinusoids(*shape[-2:]).reshape(tuple(shape))


@dataclass(frozen=True)
class Orthogonal(Whole):
    """gain * Q, Q uniform among matrices with orthonormal rows or columns, whichever are fewer.

    Q R = Z (or its transpose) with Z standard normal, the signs of R's diagonal moved into Q, in
    float64. Source: `torch.nn.init.orthogonal_`; Saxe et al. (2014).
    """

    gain: float

    def make(self, shape: Sequence[int], seed: int, name: str) -> Tensor:
        normal = sffkernels.draw(Init("normal", 0.0, 1.0), shape, seed=seed, name=name).double()
        tall = normal.shape[0] >= normal.shape[1]
        found, upper = torch.linalg.qr(normal if tall else normal.T)
        found = found * upper.diagonal().sign()
        return (self.gain * (found if tall else found.T)).float()


@dataclass(frozen=True)
class Slabs(Whole):
    """Slab i of the first axis follows `laws[i]` in its part `used[i]`, and is 0 elsewhere."""

    laws: tuple[Init, ...]
    used: tuple[tuple[slice, ...], ...]

    def make(self, shape: Sequence[int], seed: int, name: str) -> Tensor:
        made = torch.zeros(tuple(shape))
        for index, (law, part) in enumerate(zip(self.laws, self.used, strict=True)):
            drawn = sffkernels.draw(law, shape, seed=seed, name=name)
            made[index][part] = drawn[index][part]
        return made


Start = Init | Whole


def mix_(
    model: nn.Module,
    a: float,
    table: Mapping[str, Start],
    *,
    seed: int,
    only: Collection[str] | None = None,
) -> None:
    """theta <- a * theta + (1 - a) * start, in place, every parameter once (aliases once).

    `table` is the model's `initial()`. Norm gains and biases included, buffers untouched; a = 1
    leaves every bit alone. Of the starts that have to be whole, one at a time is held. `only` names
    the parameters to mix, by default all.
    """
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if only is None or name in only
    }
    elementwise = {name: start for name, start in table.items() if isinstance(start, Init)}
    drawn = [name for name in parameters if name in elementwise]
    sffkernels.interpolate_(
        [parameters[name] for name in drawn],
        a,
        init=[elementwise[name] for name in drawn],
        c=1.0 - a,
        seed=seed,
        names=drawn,
    )
    for name, parameter in parameters.items():
        if name not in elementwise and a != 1.0:
            made = start_of(table[name], parameter.shape, seed=seed, name=name).to(parameter)
            sffkernels.interpolate_([parameter], a, other=[made], b=1.0 - a)


def start_of(start: Start, shape: Sequence[int], *, seed: int, name: str) -> Tensor:
    """The start of the parameter `name` as a tensor of this shape, float32 on the CPU."""
    if isinstance(start, Init):
        return sffkernels.draw(start, shape, seed=seed, name=name)
    made = start.make(shape, seed, name)
    assert made.shape == torch.Size(shape), (name, made.shape, tuple(shape))
    return made
