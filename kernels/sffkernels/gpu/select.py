"""Scores of all mask units of a model to masks and live lists, without the host.

Three small launches, whatever the number of layers: one program a mask vector for the moving
average and the units that its floor protects, one program for the threshold over all units, one
program a mask vector for the lists. A score is ranked by the bits of |score| (of two non-negative
floats, the larger one has the larger bits), eight bits a pass: an exact order statistic in four
passes and no sort.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
NUM_WARPS = 8
BILLION = tl.constexpr(1_000_000_000)  # shares arrive as integers: exact products on every device
# Keys below 0 are no candidates: they stay as they are, or go outside the budget.
KEPT = tl.constexpr(-1)
FREE = tl.constexpr(-2)


@triton.jit
def share_of(billionths, num):
    """ceil(billionths / 1e9 * num), exactly."""
    return ((billionths.to(tl.int64) * num + BILLION - 1) // BILLION).to(tl.int32)


@triton.jit
def kth_key(key_ptr, begin, end, k, BLOCK: tl.constexpr):
    """(the k-th smallest key >= 0, how many keys equal to it are among the k smallest)."""
    prefix = begin * 0
    left = k
    bins = tl.arange(0, 256)
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        counts = tl.zeros([256], tl.int32)
        for start in range(begin, end, BLOCK):
            places = start + tl.arange(0, BLOCK)
            key = tl.load(key_ptr + places, mask=places < end, other=-1)
            mine = key >= 0
            if step > 0:
                mine &= (key >> (shift + 8)) == (prefix >> (shift + 8))
            counts += tl.histogram((key >> shift) & 255, 256, mask=mine)
        digit = tl.sum((tl.cumsum(counts, 0) < left).to(tl.int32), 0)
        left -= tl.sum(tl.where(bins < digit, counts, 0), 0)
        prefix |= digit << shift
    return prefix, left


@triton.jit
def write_list(live_ptr, list_ptr, num, BLOCK: tl.constexpr):
    """(count, live ascending, dead ascending) of `num` flags."""
    count = num * 0
    for start in range(0, num, BLOCK):
        places = start + tl.arange(0, BLOCK)
        count += tl.sum(tl.load(live_ptr + places, mask=places < num, other=0).to(tl.int32), 0)
    tl.store(list_ptr, count)
    num_live = num * 0
    for start in range(0, num, BLOCK):
        places = start + tl.arange(0, BLOCK)
        live = tl.load(live_ptr + places, mask=places < num, other=0).to(tl.int32)
        before = num_live + tl.cumsum(live, 0) - live
        rank = tl.where(live != 0, before, count + places - before)
        tl.store(list_ptr + 1 + rank, places, mask=places < num)
        num_live += tl.sum(live, 0)


# Triton would compile a size or a share of 1 as a constant, which the loops below cannot carry.
@triton.jit(do_not_specialize=["num"])
def live_list_kernel(live_ptr, list_ptr, num, BLOCK: tl.constexpr):
    """The live list of one mask."""
    write_list(live_ptr, list_ptr, num, BLOCK)


@triton.jit(do_not_specialize=["num_units", "floor"])
def score_kernel(
    moments_ptr,
    score_ptr,
    live_ptr,
    key_ptr,
    steps_ptr,
    offsets_ptr,
    num_units,
    weight,
    square_weight,
    ema,
    floor,
    SECOND_ORDER: tl.constexpr,
    FREE_ZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Scores of one mask vector, and who may go: key = bits of |score|, KEPT or FREE."""
    vector = tl.program_id(0)
    begin, end = tl.load(offsets_ptr + vector), tl.load(offsets_ptr + vector + 1)
    is_first = tl.load(steps_ptr) == 0
    num_live = begin * 0
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        exists = places < end
        score = weight * -tl.load(moments_ptr + places, mask=exists, other=0.0)
        if SECOND_ORDER:
            square = tl.load(moments_ptr + num_units + places, mask=exists, other=0.0)
            score = tl.abs(score + square_weight * square)
        before = tl.load(score_ptr + places, mask=exists, other=0.0)
        score = tl.where(is_first, score, ema * score + (1 - ema) * before)
        lives = tl.load(live_ptr + places, mask=exists, other=0) != 0
        tl.store(score_ptr + places, score, mask=exists & lives)
        zeros = tl.zeros([BLOCK], tl.float32)
        tl.store(moments_ptr + places, zeros, mask=exists)
        tl.store(moments_ptr + num_units + places, zeros, mask=exists)
        key = tl.abs(score).to(tl.int32, bitcast=True)
        tl.store(key_ptr + places, tl.where(lives, key, KEPT), mask=exists)
        num_live += tl.sum(lives.to(tl.int32), 0)

    num_candidates = tl.maximum(num_live - share_of(floor, end - begin), 0)
    tl.debug_barrier()  # the keys are read by other threads than wrote them
    threshold, ties = kth_key(key_ptr, begin, end, num_candidates, BLOCK)
    tl.debug_barrier()
    num_ties = begin * 0
    for start in range(begin, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        key = tl.load(key_ptr + places, mask=places < end, other=KEPT)
        tied = (key == threshold).to(tl.int32)
        rank = num_ties + tl.cumsum(tied, 0) - tied
        candidate = (key >= 0) & ((key < threshold) | ((tied != 0) & (rank < ties)))
        if FREE_ZEROS:
            key = tl.where(key == 0, FREE, key)
        tl.store(key_ptr + places, tl.where(candidate, key, KEPT), mask=places < end)
        num_ties += tl.sum(tied, 0)


@triton.jit(do_not_specialize=["num_units", "ratio"])
def threshold_kernel(
    score_ptr,
    live_ptr,
    key_ptr,
    steps_ptr,
    num_units,
    ratio,
    FREE_ZEROS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The ceil(ratio * live) smallest candidates of the whole model go; equal ones in order."""
    num_live = num_units * 0
    num_candidates = num_units * 0
    for start in range(0, num_units, BLOCK):
        places = start + tl.arange(0, BLOCK)
        exists = places < num_units
        counts = tl.load(live_ptr + places, mask=exists, other=0) != 0
        if FREE_ZEROS:
            counts &= tl.load(score_ptr + places, mask=exists, other=0.0) != 0
        key = tl.load(key_ptr + places, mask=exists, other=KEPT)
        num_live += tl.sum(counts.to(tl.int32), 0)
        num_candidates += tl.sum((key >= 0).to(tl.int32), 0)
    k = tl.minimum(share_of(ratio, num_live), num_candidates)
    threshold, ties = kth_key(key_ptr, num_units * 0, num_units, k, BLOCK)
    num_ties = num_units * 0
    for start in range(0, num_units, BLOCK):
        places = start + tl.arange(0, BLOCK)
        exists = places < num_units
        key = tl.load(key_ptr + places, mask=exists, other=KEPT)
        tied = (key == threshold).to(tl.int32)
        rank = num_ties + tl.cumsum(tied, 0) - tied
        goes = (key >= 0) & ((key < threshold) | ((tied != 0) & (rank < ties)))
        goes |= key == FREE
        tl.store(live_ptr + places, tl.zeros([BLOCK], tl.int8), mask=exists & goes)
        num_ties += tl.sum(tied, 0)
    tl.store(steps_ptr, tl.load(steps_ptr) + 1)


@triton.jit
def lists_kernel(live_ptr, list_ptr, offsets_ptr, BLOCK: tl.constexpr):
    """The live list of one mask vector; vector i begins at its offset + i."""
    vector = tl.program_id(0)
    begin, end = tl.load(offsets_ptr + vector), tl.load(offsets_ptr + vector + 1)
    write_list(live_ptr + begin, list_ptr + begin + vector, end - begin, BLOCK)


def live_list(mask: Tensor) -> Tensor:
    """int32 [1 + G] of a bool mask [G]."""
    mask = mask.contiguous()
    groups = mask.new_empty(1 + mask.numel(), dtype=torch.int32)
    with torch.cuda.device_of(mask):
        live_list_kernel[(1,)](
            mask.view(torch.int8), groups, mask.numel(), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return groups


def update_scores(
    moments: Tensor,
    scores: Tensor,
    live: Tensor,
    lists: Tensor,
    steps: Tensor,
    keys: Tensor,
    offsets: Tensor,
    weight: float,
    square_weight: float,
    ema: float,
    ratio: int,
    floor: int,
    second_order: bool,
    free_zeros: bool,
) -> None:
    """See `sffkernels.units`; everything but `offsets` is written."""
    num_vectors, num_units = offsets.numel() - 1, scores.numel()
    if num_vectors == 0:
        steps += 1
        return
    flags, options = live.view(torch.int8), {"BLOCK": BLOCK, "num_warps": NUM_WARPS}
    rule = {"FREE_ZEROS": free_zeros, **options}
    with torch.cuda.device_of(scores):
        score_kernel[(num_vectors,)](
            moments,
            scores,
            flags,
            keys,
            steps,
            offsets,
            num_units,
            weight,
            square_weight,
            ema,
            floor,
            SECOND_ORDER=second_order,
            **rule,
        )
        threshold_kernel[(1,)](scores, flags, keys, steps, num_units, ratio, **rule)
        lists_kernel[(num_vectors,)](flags, lists, offsets, **options)
    written = (moments, scores, live, lists, steps, keys)
    torch.autograd.graph.increment_version([one for one in written if not one.is_inference()])
