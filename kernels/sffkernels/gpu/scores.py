"""Per-sample sums of x * dx: one pass over both tensors, sums in registers, no atomic additions.

A program owns a block of channels of a few whole samples, one after another. So every sum has one
order, and the squares over samples are taken on the way: what leaves the program is either a row
per sample, or two rows per program that are added up afterwards.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_ELEMENTS = 4096  # of a tile: at 4 warps 32 elements a thread
MAX_TOKENS = 32
NUM_WARPS = 4
WANTED_PROGRAMS = 1056  # eight for each of the 132 processors of an H100 or H200
GROUP = tl.constexpr(8)


@triton.jit
def sample_kernel(
    x_ptr,
    dx_ptr,
    order_ptr,
    ends_ptr,
    out_ptr,
    num_samples,
    num_channels,
    num_tokens,
    samples_per_program,
    SORTED: tl.constexpr,
    MOMENTS: tl.constexpr,
    GRANULARITY: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """out[s, u], or out[program, (sum, sum of squares), u].

    num_tokens: rows of x per entry of `order` if SORTED, else per sample.
    """
    program = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    width = num_channels
    if EVEN:  # a multiple of 8 that the compiler can see: it decides the width of every access
        width = num_channels // GROUP * GROUP
    units = tl.program_id(1) * (BLOCK_CHANNELS // GRANULARITY)
    units += tl.arange(0, BLOCK_CHANNELS // GRANULARITY)
    num_units = tl.cdiv(num_channels, GRANULARITY)
    total = tl.zeros([BLOCK_CHANNELS // GRANULARITY], tl.float32)
    squares = tl.zeros([BLOCK_CHANNELS // GRANULARITY], tl.float32)
    first = program.to(tl.int64) * samples_per_program  # 64 bits: rows * width may pass 2^31
    for sample in range(first, min(first + samples_per_program, num_samples)):
        begin, end = sample * num_tokens, (sample + 1) * num_tokens
        if SORTED:
            begin = tl.load(ends_ptr + sample) * num_tokens
            end = tl.load(ends_ptr + sample + 1) * num_tokens
        sums = tl.zeros([BLOCK_TOKENS, BLOCK_CHANNELS], tl.float32)
        for start in range(begin, end, BLOCK_TOKENS):
            rows = start + tl.arange(0, BLOCK_TOKENS)
            exists = (rows < end)[:, None] & (channels < width)[None, :]
            if SORTED:
                entry = tl.load(order_ptr + rows // num_tokens, mask=rows < end, other=0)
                rows = entry * num_tokens + rows % num_tokens
            places = rows[:, None] * width + channels[None, :]
            x = tl.load(x_ptr + places, mask=exists, other=0.0)
            dx = tl.load(dx_ptr + places, mask=exists, other=0.0)
            sums += x.to(tl.float32) * dx.to(tl.float32)
        g = tl.sum(sums, 0)
        if GRANULARITY > 1:
            g = tl.sum(tl.reshape(g, [BLOCK_CHANNELS // GRANULARITY, GRANULARITY]), 1)
        if MOMENTS:
            total += g
            squares += g * g
        else:
            places = sample * num_units + units
            tl.store(out_ptr + places, g, mask=units < num_units)
    if MOMENTS:
        out_ptr += program.to(tl.int64) * 2 * num_units
        tl.store(out_ptr + units, total, mask=units < num_units)
        tl.store(out_ptr + num_units + units, squares, mask=units < num_units)


def mask_scores(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    """float32 [S, U]."""
    out = x.new_empty(num, triton.cdiv(x.shape[1], granularity), dtype=torch.float32)
    if out.numel() > 0:
        _launch(x, dx, order, ends, out, num, 1, granularity)
    return out


def mask_moments(
    x: Tensor, dx: Tensor, order: Tensor | None, ends: Tensor | None, num: int, granularity: int
) -> Tensor:
    """float32 [2, U]."""
    num_units = triton.cdiv(x.shape[1], granularity)
    if num == 0 or num_units == 0:
        return x.new_zeros(2, num_units, dtype=torch.float32)
    per_program = max(1, num * num_channel_blocks(x, order, num) // WANTED_PROGRAMS)
    num_programs = triton.cdiv(num, per_program)
    parts = x.new_empty(num_programs, 2, num_units, dtype=torch.float32)
    _launch(x, dx, order, ends, parts, num, per_program, granularity)
    return parts[0] if num_programs == 1 else parts.sum(0)


def block_shape(x: Tensor, order: Tensor | None, num: int) -> tuple[int, int]:
    """(tokens, channels) of a tile: as many tokens as an average sample has, at most 32."""
    num_tokens = max(1, x.shape[0] // num)
    tokens = min(triton.next_power_of_2(num_tokens), MAX_TOKENS)
    channels = min(triton.next_power_of_2(x.shape[1]), BLOCK_ELEMENTS // tokens)
    return tokens, max(channels, 16)


def num_channel_blocks(x: Tensor, order: Tensor | None, num: int) -> int:
    """Programs side by side over the channels."""
    return triton.cdiv(x.shape[1], block_shape(x, order, num)[1])


def _launch(
    x: Tensor,
    dx: Tensor,
    order: Tensor | None,
    ends: Tensor | None,
    out: Tensor,
    num: int,
    per_program: int,
    granularity: int,
) -> None:
    num_entries = num if order is None else max(order.numel(), 1)
    tokens, channels = block_shape(x, order, num)
    with torch.cuda.device_of(x):
        sample_kernel[(triton.cdiv(num, per_program), triton.cdiv(x.shape[1], channels))](
            x.contiguous(),
            dx.contiguous(),
            order,
            ends,
            out,
            num,
            x.shape[1],
            x.shape[0] // num_entries,
            per_program,
            SORTED=order is not None,
            MOMENTS=out.dim() == 3,
            GRANULARITY=granularity,
            EVEN=x.shape[1] % 8 == 0,
            BLOCK_TOKENS=tokens,
            BLOCK_CHANNELS=channels,
            num_warps=NUM_WARPS,
        )
