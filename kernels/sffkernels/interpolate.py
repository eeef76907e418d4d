"""theta <- a * theta + b * other + c * noise, in place, over all parameters of a model.

One operator, `torch.ops.sffkernels.interpolate_`: plain torch on a CPU, one Triton launch on CUDA.
No second model is ever held; the noise depends on (seed, name, element) alone.

    interpolate_(list(model.parameters()), 0.7, init=inits, c=0.3, seed=0, names=names)   # SFF
    interpolate_(ema, 0.999, other=list(model.parameters()), b=0.001)                    # EMA
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sffkernels import plain
from sffkernels.checks import check_device, check_lists, check_memory, check_scalar
from sffkernels.init import Init
from sffkernels.library import register
from sffkernels.philox import seed_words


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

    tensors: floating-point, of any shape and dtype, on one device, no two sharing an element.
    other: one tensor per theta, same shape and device, sharing no element with any theta.
    init, names: one distribution and one unique name per theta, needed when c is not 0.
    a, b, c: finite numbers or 0-dim tensors; one on the tensors' CUDA device is read there only,
        by the kernel, without waiting for it, and is not checked.

    A term whose coefficient is 0 is never read (a = 0 ignores even NaN), a coefficient of 1 does
    not multiply, and a = 1 with b = c = 0 writes nothing. Noise is drawn in float32; terms are
    summed left to right in float32 (float64 for float64 tensors), each product and sum rounded, and
    the result is rounded once to the tensor's dtype. Element indices are row-major, so strides do
    not matter; a non-contiguous tensor is copied while it is updated.

    Raises ValueError, before anything is written, naming the argument that is wrong.
    """
    a, b, c = (check_scalar(name, value) for name, value in (("a", a), ("b", b), ("c", c)))
    check_lists(tensors, other, b, init, c, names)
    check_device(tensors, (a, b, c))
    key = seed_words(seed)
    if _is(a, 1.0) and _is(b, 0.0) and _is(c, 0.0):
        return
    weights = [0.0 if isinstance(one, Tensor) else one for one in (a, b, c)]
    on_device = [one if isinstance(one, Tensor) else None for one in (a, b, c)]
    drawn = [] if init is None or names is None or _is(c, 0.0) else list(init)
    with torch.no_grad():
        OPERATOR(
            list(tensors),
            [] if other is None or _is(b, 0.0) else list(other),
            weights,
            on_device,
            [one.kind for one in drawn],
            [number for one in drawn for number in (one.a, one.b, one.low, one.high)],
            list(names or ()) if drawn else [],
            key.signed(),
        )


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


def _is(weight: float | Tensor, number: float) -> bool:
    return not isinstance(weight, Tensor) and weight == number


def _plain(
    tensors: list[Tensor],
    other: list[Tensor],
    weights: list[float],
    on_device: list[Tensor | None],
    kinds: list[str],
    parameters: list[float],
    names: list[str],
    seed: int,
) -> None:
    check_memory(tensors, other)
    one = plain.Interpolation(plain.weights_of(weights, on_device), seed)
    inits = plain.inits_of(kinds, parameters)
    for index, theta in enumerate(tensors):
        one.update(theta, *plain.entry(index, other, inits, names))


def _fake(*_: object) -> None:
    """Nothing is returned; which arguments are written, the schema says."""


OPERATOR = register(
    "interpolate_(Tensor(a!)[] tensors, Tensor[] other, float[] weights, Tensor?[] on_device, "
    "str[] kinds, float[] parameters, str[] names, int seed) -> ()",
    _plain,
    cuda="sffkernels.gpu.interpolate:launch",
    fake=_fake,
)
