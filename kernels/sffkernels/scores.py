"""Per-sample gradients of masks, from activations and their gradients in one pass over both.

A mask vector m multiplies the input of a linear map, x * m, or its output, y * m. Its gradient for
one sample is the sum over that sample's tokens of x * dL/dx (or y * dL/dy) per channel, which
autograd never shows: it adds up over samples. Second-order importance needs the squares, hence

    g = mask_scores(x, dx, sample_ids)           # [S, C], one row a sample
    moments = mask_moments(x, dx, sample_ids)    # [2, C]: sum of g and of g^2 over samples
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sffkernels.library import register
from sffkernels.units import GRANULARITIES

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK = 1 << 17  # elements at a time on a CPU: the products stay within a core's cache


class Samples(NamedTuple):
    """Entries of `sample_ids` sorted by sample: those of sample s are order[ends[s] : ends[s + 1]].

    Sorting costs more than the sums of a small layer: make it once a batch, for all layers.
    """

    order: Tensor  # int64 [entries]
    ends: Tensor  # int64 [S + 1]
    shape: tuple[int, ...]


def sort_samples(sample_ids: Tensor, num_samples: int | None = None) -> Samples:
    """`Samples` of integer ids; ids outside 0 .. num_samples - 1 belong to no sample.

    num_samples: the highest id + 1 if not given, for which a CUDA device has to be waited for.
    Raises ValueError if ids are no integers.
    """
    if sample_ids.dtype.is_floating_point or sample_ids.dtype in (torch.bool, torch.complex64):
        raise ValueError(f"sample_ids must be integers, got {sample_ids.dtype}")
    if num_samples is not None and num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    flat = sample_ids.detach().reshape(-1).long()
    if num_samples is None:
        num_samples = max(0, int(flat.max()) + 1) if flat.numel() else 0
    ids, order = torch.sort(flat, stable=True)
    bounds = torch.arange(num_samples + 1, device=flat.device)
    return Samples(order, torch.searchsorted(ids, bounds), tuple(sample_ids.shape))


def mask_scores(
    x: Tensor,
    dx: Tensor,
    sample_ids: Tensor | Samples | None,
    *,
    num_samples: int | None = None,
    granularity: int = 1,
) -> Tensor:
    """g[s, u] = sum over tokens of sample s and channels of unit u of x * dx, float32 [S, U].

    x, dx: activations and the loss's gradient with respect to them, [..., C], float32, bfloat16 or
    float16, not necessarily the same; sums are float32.
    sample_ids: integers of the shape of x's leading dimensions, or of the first few of them ([B]
    for x [B, tokens, C]), in any order; or what `sort_samples` made of them; or None where every
    entry of x's first dimension is a sample. Ids outside 0 .. S - 1 belong to no sample.
    num_samples: S, the highest id + 1 if not given (a CUDA device has to be waited for then).
    granularity: 1, or 8: unit u is channels 8u .. 8u + 7, pruned together.

    The same numbers give the same bits every time: no atomic additions.
    Raises ValueError, before anything is computed, naming the argument that is wrong.
    """
    order, ends, samples = _prepare(x, dx, sample_ids, num_samples, granularity)
    return MASK_SCORES(_rows(x), _rows(dx), order, ends, samples, granularity)


def mask_moments(
    x: Tensor,
    dx: Tensor,
    sample_ids: Tensor | Samples | None,
    *,
    num_samples: int | None = None,
    granularity: int = 1,
) -> Tensor:
    """(sum over s of g[s, u], sum over s of g[s, u]^2), float32 [2, U]; g as in `mask_scores`."""
    order, ends, samples = _prepare(x, dx, sample_ids, num_samples, granularity)
    return MASK_MOMENTS(_rows(x), _rows(dx), order, ends, samples, granularity)


def _prepare(
    x: Tensor,
    dx: Tensor,
    sample_ids: Tensor | Samples | None,
    num_samples: int | None,
    granularity: int,
) -> tuple[Tensor | None, Tensor | None, int]:
    """Order and ends of the samples (None: equal runs of tokens), and their number."""
    _check(x, dx, granularity)
    if sample_ids is None:
        if num_samples not in (None, len(x)):
            raise ValueError(f"num_samples is {num_samples}, x without ids has {len(x)} samples")
        return None, None, len(x)
    shape = tuple(sample_ids.shape)
    if not 1 <= len(shape) < x.dim() or shape != tuple(x.shape[: len(shape)]):
        given = f"{shape}, x {tuple(x.shape)}"
        raise ValueError(f"sample_ids must have the first dimensions of x without C, got {given}")
    if isinstance(sample_ids, Tensor):
        _same_device("sample_ids", sample_ids, x)
        sample_ids = sort_samples(sample_ids, num_samples)
    _same_device("sample_ids", sample_ids.order, x)
    made = sample_ids.ends.numel() - 1
    if num_samples not in (None, made):
        raise ValueError(f"num_samples is {num_samples}, sample_ids were sorted for {made}")
    return sample_ids.order, sample_ids.ends, made


def _check(x: Tensor, dx: Tensor, granularity: int) -> None:
    if x.dim() < 2 or x.shape != dx.shape:
        shapes = f"{tuple(x.shape)} and {tuple(dx.shape)}"
        raise ValueError(f"x and dx must have one shape [..., C], got {shapes}")
    _same_device("dx", dx, x)
    for label, tensor in (("x", x), ("dx", dx)):
        if tensor.dtype not in DTYPES:
            allowed = "float32, bfloat16, float16"
            raise ValueError(f"{label} has dtype {tensor.dtype}, allowed are {allowed}")
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be 1 or 8, got {granularity}")


def _same_device(label: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{label} is on {tensor.device}, x on {x.device}")


def _rows(x: Tensor) -> Tensor:
    """[tokens, C], outside the graph: importance is no part of what is trained."""
    return x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1])


# Operators -------------------------------------------------------------------------------------


def _scores_plain(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    sums = x.new_zeros(num, x.shape[1], dtype=torch.float32)
    if order is None or ends is None:
        _sum_runs(x, dx, sums)
    else:
        _sum_sorted(x, dx, order, ends, sums)
    return _by_unit(sums, granularity)


def _sum_runs(x: Tensor, dx: Tensor, sums: Tensor) -> None:
    """Equal runs of tokens, a few samples at a time."""
    if x.numel() == 0:
        return
    x, dx = (part.view(len(sums), -1, part.shape[1]) for part in (x, dx))
    step = max(1, CHUNK // x[0].numel())
    for start in range(0, len(sums), step):
        some = slice(start, start + step)
        torch.sum(x[some].float() * dx[some].float(), 1, out=sums[some])


def _sum_sorted(x: Tensor, dx: Tensor, order: Tensor, ends: Tensor, sums: Tensor) -> None:
    if x.numel() == 0:
        return
    entries = order[int(ends[0]) : int(ends[-1])]
    samples = torch.arange(len(sums), device=x.device).repeat_interleave(ends.diff())
    x, dx = (part.view(len(order), -1, part.shape[1]) for part in (x, dx))
    step = max(1, CHUNK // x[0].numel())
    for start in range(0, len(entries), step):
        some = entries[start : start + step]
        sums.index_add_(0, samples[start : start + step], (x[some].float() * dx[some]).sum(1))


def _by_unit(sums: Tensor, granularity: int) -> Tensor:
    if granularity == 1:
        return sums
    num_units = -(-sums.shape[1] // granularity)
    padded = torch.nn.functional.pad(sums, (0, num_units * granularity - sums.shape[1]))
    return padded.view(len(sums), num_units, granularity).sum(2)


def _moments_plain(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    g = _scores_plain(x, dx, order, ends, num, granularity)
    return torch.stack([g.sum(0), g.square().sum(0)])


def _scores_fake(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    return x.new_empty(num, -(-x.shape[1] // granularity), dtype=torch.float32)


def _moments_fake(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    return x.new_empty(2, -(-x.shape[1] // granularity), dtype=torch.float32)


_ARGUMENTS = "Tensor x, Tensor dx, Tensor? order, Tensor? ends, SymInt num_samples, int granularity"
MASK_SCORES = register(
    f"mask_scores({_ARGUMENTS}) -> Tensor",
    _scores_plain,
    cuda="sffkernels.gpu.scores:mask_scores",
    fake=_scores_fake,
)
MASK_MOMENTS = register(
    f"mask_moments({_ARGUMENTS}) -> Tensor",
    _moments_plain,
    cuda="sffkernels.gpu.scores:mask_moments",
    fake=_moments_fake,
)
