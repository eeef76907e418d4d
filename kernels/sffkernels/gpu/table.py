"""Tables that tell one launch of `interpolate_kernel` about all tensors of a call.

A row of `chunks` is (tensor, chunk within it), a program each; rows of `tensors` and `numbers` hold
addresses, sizes, names and distributions. Tables are made once for a set of tensors and kept, so
that a later call copies nothing, allocates nothing, and may be captured in a CUDA graph.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sffkernels.gpu.layout import CONSTANT, NORMAL, NUMBER_COLUMNS, TRUNCATED, UNIFORM
from sffkernels.init import MAX_NUMBER, Cuts, Init
from sffkernels.philox import name_words

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK, LARGE_CHUNK = 8192, 65536
LARGE_CALL = 1 << 29  # elements from which chunks are large: their table stays below 1 MB
ALIGNMENT_BYTES = 16
MAX_KEPT = 16  # tables: 8 bytes for every 8192 elements, each


@dataclass(frozen=True)
class Launch:
    """One launch: tensors whose dtypes, and those of their `other`, agree."""

    theta: torch.dtype
    other: torch.dtype | None
    noise: bool
    aligned: bool
    chunk: int
    chunks: Tensor  # int32 [number of programs, 2]
    tensors: Tensor  # int64 [T, 5]: address, address of other, elements, hash of the name, kind
    numbers: Tensor  # float32 [T, NUMBER_COLUMNS]


@dataclass
class Plan:
    """What one call does: launches, and the tensors left to plain torch."""

    launches: list[Launch]
    loose: list[int]
    captured: bool = False  # a graph holds addresses of the tables: never let them go


class Plans:
    """Plans by what they depend on, the least recently used one forgotten first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Plan] = OrderedDict()

    def get(self, key: Hashable) -> Plan | None:
        plan = self._kept.get(key)
        if plan is not None:
            self._kept.move_to_end(key)
        return plan

    def put(self, key: Hashable, plan: Plan) -> None:
        self._kept[key] = plan
        free = [old for old, one in self._kept.items() if not one.captured]
        if len(free) > MAX_KEPT:
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a launch on another stream may still read the tables
            del self._kept[free[0]]


def layout(tensor: Tensor) -> Hashable:
    """All that a table depends on in a tensor."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def plan(
    tensors: Sequence[Tensor], other: Sequence[Tensor], inits: Sequence[Init], names: Sequence[str]
) -> Plan:
    """Sort tensors into launches by dtype and alignment; what no kernel takes stays loose."""
    groups: dict[tuple[torch.dtype, torch.dtype | None, bool], list[int]] = {}
    loose: list[int] = []
    for index, theta in enumerate(tensors):
        members = [theta, other[index]] if other else [theta]
        if not theta.numel():
            continue
        if not all(one.dtype in KERNEL_DTYPES and one.is_contiguous() for one in members):
            loose.append(index)
            continue
        aligned = not any(one.data_ptr() % ALIGNMENT_BYTES for one in members)
        key = (theta.dtype, members[1].dtype if other else None, aligned)
        groups.setdefault(key, []).append(index)
    return Plan(
        [_launch(*key, rows, tensors, other, inits, names) for key, rows in groups.items()], loose
    )


def _launch(
    theta: torch.dtype,
    other_dtype: torch.dtype | None,
    aligned: bool,
    indices: list[int],
    tensors: Sequence[Tensor],
    other: Sequence[Tensor],
    inits: Sequence[Init],
    names: Sequence[str],
) -> Launch:
    sizes = [tensors[index].numel() for index in indices]
    chunk = CHUNK if sum(sizes) <= LARGE_CALL else LARGE_CHUNK
    rows, numbers = [], []
    for index, size in zip(indices, sizes, strict=True):
        kind, parameters = encode(inits[index]) if inits else (CONSTANT, [])
        source = other[index].data_ptr() if other else 0
        name = name_words(names[index]).signed() if names else 0
        rows.append([tensors[index].data_ptr(), source, size, name, kind])
        numbers.append(parameters + [0.0] * (NUMBER_COLUMNS - len(parameters)))
    device = tensors[0].device
    return Launch(
        theta,
        other_dtype,
        bool(inits),
        aligned,
        chunk,
        chunk_rows(sizes, chunk).to(device),
        torch.tensor(rows, dtype=torch.int64).to(device),
        torch.tensor(numbers, dtype=torch.float64).to(torch.float32).to(device),
    )


def chunk_rows(sizes: Sequence[int], chunk: int) -> Tensor:
    """(tensor, chunk within the tensor) of every chunk, int32 [number of chunks, 2]."""
    counts = torch.tensor([-(-size // chunk) for size in sizes], dtype=torch.int64)
    tensor = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    first = counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum())) - first[tensor]
    return torch.stack([tensor, within], 1).to(torch.int32)


def encode(init: Init) -> tuple[int, list[float]]:
    """Kind and parameters of a distribution, as `distributions.sample` reads them."""
    if init.kind == "constant":
        return CONSTANT, [init.a]
    if init.kind == "uniform":
        return UNIFORM, [init.a, init.b - init.a]
    if init.is_plain_normal:
        return NORMAL, [init.a, init.b]
    cuts = Cuts.of(init)
    low, high = max(init.low, -MAX_NUMBER), min(init.high, MAX_NUMBER)
    numbers = [init.a, init.b, low, high, cuts.below, cuts.above, cuts.mass]
    assert all(map(math.isfinite, numbers))
    return TRUNCATED, numbers
