"""`interpolate_` on CUDA: look the plan of the tensors up, launch, leave the rest to plain torch.

A call with tensors seen before neither waits for the device nor allocates on it; the first one
copies the tables. One launch serves all tensors of one dtype (and one dtype of `other`).
"""

from collections.abc import Hashable, Sequence

import torch
import triton.language as tl
from torch import Tensor

from sffkernels import plain
from sffkernels.checks import check_memory
from sffkernels.gpu.interpolate_kernel import interpolate_kernel
from sffkernels.gpu.table import Launch, Plan, Plans, layout, plan
from sffkernels.philox import split_words

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
BLOCK, NUM_WARPS = 1024, 4  # 8 elements a thread: 40 to 48 registers with every kind of noise
PLANS = Plans()


def launch(
    tensors: list[Tensor],
    other: list[Tensor],
    weights: list[float],
    on_device: list[Tensor | None],
    kinds: list[str],
    parameters: list[float],
    names: list[str],
    seed: int,
) -> None:
    """The operator's implementation for CUDA; arguments as its schema says."""
    if not tensors:
        return
    mixed = plain.weights_of(weights, on_device)
    inits = (tuple(kinds), tuple(parameters))
    with torch.cuda.device_of(tensors[0]):
        todo = _plan(tensors, other, inits, tuple(names))
        for one in todo.launches:
            _run(one, mixed, seed)
    torch.autograd.graph.increment_version([one for one in tensors if not one.is_inference()])
    if todo.loose:
        _update_loose(todo.loose, tensors, other, mixed, inits, names, seed)


def _plan(
    tensors: list[Tensor],
    other: list[Tensor],
    inits: tuple[tuple[str, ...], tuple[float, ...]],
    names: tuple[str, ...],
) -> Plan:
    """The plan of these tensors. Where it is known, so is that no two of them share memory."""
    layouts: list[Hashable] = [tuple(map(layout, one)) for one in (tensors, other)]
    key = (tensors[0].device, *layouts, inits, names)
    known = PLANS.get(key)
    capturing = tensors[0].is_cuda and torch.cuda.is_current_stream_capturing()
    if known is None:
        if capturing:
            raise RuntimeError("call interpolate_ once with these tensors before capturing it")
        check_memory(tensors, other)
        known = plan(tensors, other, plain.inits_of(*inits), names)
        if tensors[0].is_cuda:
            torch.cuda.current_stream().synchronize()  # the tables are there for every stream
        PLANS.put(key, known)
    known.captured |= capturing
    return known


def _run(one: Launch, weights: Sequence[plain.Weight], seed: int) -> None:
    interpolate_kernel[(len(one.chunks),)](
        one.chunks,
        one.tensors,
        one.numbers,
        *weights,
        *split_words(seed).signed_words(),
        THETA=DTYPES[one.theta],
        OTHER=None if one.other is None else DTYPES[one.other],
        NOISE=one.noise,
        ON_DEVICE=tuple(isinstance(weight, Tensor) for weight in weights),
        ALIGNED=one.aligned,
        CHUNK=one.chunk,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )


def _update_loose(
    indices: list[int],
    tensors: list[Tensor],
    other: list[Tensor],
    weights: Sequence[plain.Weight],
    inits: tuple[tuple[str, ...], tuple[float, ...]],
    names: Sequence[str],
    seed: int,
) -> None:
    one, distributions = plain.Interpolation(weights, seed), plain.inits_of(*inits)
    for index in indices:
        one.update(tensors[index], *plain.entry(index, other, distributions, names))
