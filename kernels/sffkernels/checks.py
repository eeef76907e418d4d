"""What `interpolate_` refuses, found before a single element is written.

Every function raises ValueError with one line that names the argument and the tensor. They read
shapes, dtypes and addresses, never the values of a tensor (but for the three coefficients).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from sffkernels.init import Init

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MAX_SCALAR = torch.finfo(torch.float32).max


def check_scalar(name: str, value: object) -> float | Tensor:
    """`value`, a number or a 0-dim tensor, as a finite float within the range of float32.

    A tensor on another device than the CPU is returned as it is: reading it would wait for the
    device. So is any tensor in torch.compile, where there is nothing to read yet.
    """
    if isinstance(value, Tensor) and value.dim() == 0 and value.dtype != torch.bool:
        if value.device.type != "cpu" or torch.compiler.is_compiling():
            return value.detach()
        value = value.detach().item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} must be a number or a 0-dim tensor, got {_brief(value)}")
    number = float(value)
    if not math.isfinite(number) or abs(number) > MAX_SCALAR:
        raise ValueError(f"{name} must be finite and within the range of float32, got {number}")
    return number


def check_lists(
    tensors: Sequence[Tensor],
    other: Sequence[Tensor] | None,
    b: float | Tensor,
    init: Sequence[Init] | None,
    c: float | Tensor,
    names: Sequence[str] | None,
) -> None:
    """The lists belong together: types, lengths, shapes, devices, names."""
    for label, given in (("tensors", tensors), ("other", other), ("init", init), ("names", names)):
        _check_list(label, given, tensors)
    b_used, c_used = (isinstance(one, Tensor) or one != 0 for one in (b, c))
    if b_used and other is None:
        raise ValueError(f"b = {b} needs other, one per tensor")
    for label, values in (("init", init), ("names", names)):
        if c_used and values is None:
            raise ValueError(f"c = {c} asks for noise, which needs {label}, one per tensor")
    _check_names(names or ())
    for index, one in enumerate(init or ()):
        if not isinstance(one, Init):
            raise ValueError(f"init[{index}] must be an Init, got {_brief(one)}")
    for index, tensor in enumerate(tensors):
        _check_tensor(f"tensors[{index}]", tensor)
        if _read_only(tensor):
            raise ValueError(f"tensors[{index}] was made in inference mode: update it there")
    for index, (tensor, source) in enumerate(zip(tensors, other or (), strict=False)):
        _check_source(f"other[{index}]", source, f"tensors[{index}]", tensor)


def check_device(tensors: Sequence[Tensor], scalars: Sequence[float | Tensor]) -> None:
    """One call serves one device, which coefficients on a device have to share."""
    if not tensors:
        return
    device = tensors[0].device
    for index, tensor in enumerate(tensors):
        if tensor.device != device:
            raise ValueError(
                f"tensors[{index}] is on {tensor.device}, tensors[0] on {device}: "
                "one call serves one device"
            )
    for name, scalar in zip("abc", scalars, strict=True):
        if isinstance(scalar, Tensor) and scalar.device != device:
            raise ValueError(f"{name} is on {scalar.device}, the tensors on {device}")


def check_memory(tensors: Sequence[Tensor], other: Sequence[Tensor] | None) -> None:
    """No element of `tensors` is reachable twice, neither from `tensors` nor from `other`."""
    storages: dict[tuple[torch.device, int], list[_View]] = defaultdict(list)
    for label, given in (("tensors", tensors), ("other", other or ())):
        for index, tensor in enumerate(given):
            if tensor.numel():
                view = _View(f"{label}[{index}]", tensor, label == "tensors")
                storages[tensor.device, tensor.untyped_storage().data_ptr()].append(view)
    for views in storages.values():
        if not _plainly_apart(views):
            _check_cells(views)


class _View(NamedTuple):
    label: str
    tensor: Tensor
    is_target: bool

    def byte_range(self) -> tuple[int, int]:
        """First byte within the storage, and the one after the last."""
        tensor = self.tensor
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = sum((size - 1) * step for size, step in steps)
        start = int(tensor.storage_offset())
        return start * tensor.itemsize, (start + last + 1) * tensor.itemsize


def _plainly_apart(views: list[_View]) -> bool:
    """The cheap test that nearly always settles it: contiguous targets, disjoint byte ranges."""
    if not any(view.is_target for view in views):
        return True
    if not all(view.tensor.is_contiguous() for view in views if view.is_target):
        return False
    ranges = sorted(view.byte_range() for view in views)
    return all(left[1] <= right[0] for left, right in pairwise(ranges))


def _check_cells(views: list[_View]) -> None:
    """The exact test: tick every byte of the storage that a target writes."""
    ticks = torch.zeros(views[0].tensor.untyped_storage().nbytes(), dtype=torch.bool)
    owners: list[str] = []
    for label, tensor, is_target in sorted(views, key=lambda view: not view.is_target):
        size = tensor.itemsize
        steps = (*(step * size for step in tensor.stride()), 1)
        cells = ticks.as_strided((*tensor.shape, size), steps, tensor.storage_offset() * size)
        if cells.any():
            raise ValueError(f"{label} shares memory with {' or '.join(owners)}: pass each once")
        if is_target:
            before = int(ticks.sum())
            cells.fill_(True)
            if int(ticks.sum()) - before != cells.numel():
                raise ValueError(f"{label} has elements that share memory (an expanded tensor?)")
            owners.append(label)


def _check_list(label: str, given: object, tensors: Sequence[Tensor]) -> None:
    if given is None and label != "tensors":
        return
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise ValueError(f"{label} must be a list or a tuple, got {_brief(given)}")
    if len(given) != len(tensors):
        raise ValueError(f"{label} has {len(given)} entries for {len(tensors)} tensors")


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"names[{index}] must be a string, got {_brief(name)}")
        if name in seen:
            raise ValueError(f"names must be unique, {name!r} occurs twice")
        seen.add(name)


def _check_tensor(label: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{label} must be a tensor, got {_brief(tensor)}")
    if tensor.dtype not in FLOAT_DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise ValueError(f"{label} has dtype {tensor.dtype}, allowed are {allowed}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise ValueError(f"{label} must be dense and hold data, got {_brief(tensor)}")


def _read_only(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _check_source(label: str, source: Tensor, target_label: str, target: Tensor) -> None:
    _check_tensor(label, source)
    if source.shape != target.shape:
        shapes = f"{tuple(source.shape)}, {target_label} {tuple(target.shape)}"
        raise ValueError(f"{label} has shape {shapes}: they must be equal")
    if source.device != target.device:
        raise ValueError(f"{label} is on {source.device}, {target_label} on {target.device}")


def _brief(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of shape {tuple(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
