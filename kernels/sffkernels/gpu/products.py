"""The masked products: tiles of live groups, gathered eight channels at a time.

A live list is int32 [1 + G]: how many groups of eight channels live, then all groups, the live ones
first. A reduction runs over the live slots alone; an output runs over all of them, and its tiles
beyond the count store zeros without a product. Eight channels are 16 bytes of bf16, so every access
is as wide as in a dense kernel. Lists and counts are read on the device: nothing here depends on
how many groups live, neither the grid nor what is allocated.
"""

import triton
import triton.language as tl

GROUP = tl.constexpr(8)


@triton.jit
def channels_of(list_ptr, slots, num_channels, HAS_LIST: tl.constexpr, EVEN: tl.constexpr):
    """Channel of each slot, whether it exists, and whether it lives."""
    groups = slots // GROUP
    exists = groups < tl.cdiv(num_channels, GROUP)
    lives = exists
    if HAS_LIST:
        lives = groups < tl.load(list_ptr)
        groups = tl.load(list_ptr + 1 + groups, mask=exists, other=0)
    channels = groups * GROUP + slots % GROUP
    channels = tl.max_contiguous(tl.multiple_of(channels, GROUP), GROUP)
    if not EVEN:  # the last group is cut off
        exists &= channels < num_channels
        lives &= channels < num_channels
    return channels, exists, lives


@triton.jit
def live_slots(list_ptr, num_channels, HAS_LIST: tl.constexpr):
    """How many slots to reduce over."""
    num_groups = tl.cdiv(num_channels, GROUP)
    if HAS_LIST:
        num_groups = tl.load(list_ptr)
    return num_groups * GROUP


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """None, relu, exact gelu or silu of float32."""
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)  # lets NaN through
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))
    return z


@triton.jit
def tile_of(num_row_tiles, num_column_tiles, STRIPE: tl.constexpr):
    """Row and column of this program's tile; `STRIPE` rows of tiles at a time share the cache."""
    program = tl.program_id(0)
    per_stripe = STRIPE * num_column_tiles
    first = program // per_stripe * STRIPE
    height = min(num_row_tiles - first, STRIPE)
    inside = program % per_stripe
    return first + inside % height, inside // height


# A list may be a slice of a longer one, at any address.
@triton.jit(do_not_specialize_on_alignment=["reduce_list", "column_list"])
def product_kernel(
    a_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    saved_ptr,
    reduce_list,
    column_list,
    num_rows,
    num_reduced,
    num_columns,
    HAS_BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_REDUCE_LIST: tl.constexpr,
    HAS_COLUMN_LIST: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_REDUCED: tl.constexpr,
    STRIPE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out[m, c] = act(sum over live r of a[m, r] * W(r, c) + bias[c]), 0 where c is dead.

    W(r, c) = weight[c, r] if TRANSPOSED (forward), else weight[r, c] (the gradient of the input).
    """
    row_tile, column_tile = tile_of(
        tl.cdiv(num_rows, BLOCK_ROWS), tl.cdiv(num_columns, BLOCK_COLUMNS), STRIPE
    )
    rows = row_tile * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_exists = rows < num_rows
    slots = column_tile * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    columns, column_exists, column_lives = channels_of(
        column_list, slots, num_columns, HAS_COLUMN_LIST, EVEN
    )
    num_slots = live_slots(reduce_list, num_reduced, HAS_REDUCE_LIST)
    if HAS_COLUMN_LIST and column_tile * BLOCK_COLUMNS >= live_slots(
        column_list, num_columns, HAS_COLUMN_LIST
    ):
        num_slots = 0  # a tile of dead columns

    # The width as a multiple of 8 that the compiler can see: it decides the width of every access.
    a_width, out_width = num_reduced, num_columns
    if EVEN:
        a_width, out_width = num_reduced // GROUP * GROUP, num_columns // GROUP * GROUP
    a_rows = a_ptr + rows.to(tl.int64)[:, None] * a_width
    accumulator = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, num_slots, BLOCK_REDUCED):
        reduced, _, reduced_lives = channels_of(
            reduce_list,
            start + tl.arange(0, BLOCK_REDUCED),
            num_reduced,
            HAS_REDUCE_LIST,
            EVEN,
        )
        if TRANSPOSED:
            places = columns.to(tl.int64)[None, :] * a_width + reduced[:, None]
        else:
            places = reduced.to(tl.int64)[:, None] * out_width + columns[None, :]
        a = tl.load(
            a_rows + reduced[None, :], mask=row_exists[:, None] & reduced_lives[None, :], other=0.0
        )
        weight = tl.load(
            weight_ptr + places, mask=reduced_lives[:, None] & column_lives[None, :], other=0.0
        )
        if INTERPRETED:  # the interpreter multiplies the bits of bf16
            a, weight = a.to(tl.float32), weight.to(tl.float32)
        accumulator = tl.dot(a, weight, accumulator, input_precision=PRECISION)

    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=column_lives, other=0.0)
        accumulator += bias.to(tl.float32)[None, :]
    places = rows.to(tl.int64)[:, None] * out_width + columns[None, :]
    exists = row_exists[:, None] & column_exists[None, :]
    if SAVE:
        tl.store(saved_ptr + places, accumulator.to(saved_ptr.dtype.element_ty), mask=exists)
    out = activate(accumulator, ACTIVATION)
    out = tl.where(column_lives[None, :], out, 0.0)
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize_on_alignment=["out_list", "in_list"])
def weight_gradient_kernel(
    dz_ptr,
    x_ptr,
    out_ptr,
    out_list,
    in_list,
    num_rows,
    num_out,
    num_in,
    HAS_OUT_LIST: tl.constexpr,
    HAS_IN_LIST: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    STRIPE: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """out[p, n, k] = sum over the rows m of part p of dz[m, n] * x[m, k], 0 where n or k is dead.

    Part p of P = the second size of the grid: every P-th block of rows. Parts are added afterwards,
    in one order, so the same numbers always give the same bits.
    """
    out_tile, in_tile = tile_of(tl.cdiv(num_out, BLOCK_OUT), tl.cdiv(num_in, BLOCK_IN), STRIPE)
    outs, out_exists, out_lives = channels_of(
        out_list, out_tile * BLOCK_OUT + tl.arange(0, BLOCK_OUT), num_out, HAS_OUT_LIST, EVEN
    )
    ins, in_exists, in_lives = channels_of(
        in_list, in_tile * BLOCK_IN + tl.arange(0, BLOCK_IN), num_in, HAS_IN_LIST, EVEN
    )
    end = num_rows
    if HAS_OUT_LIST and out_tile * BLOCK_OUT >= live_slots(out_list, num_out, HAS_OUT_LIST):
        end = 0
    if HAS_IN_LIST and in_tile * BLOCK_IN >= live_slots(in_list, num_in, HAS_IN_LIST):
        end = 0

    out_width, in_width = num_out, num_in
    if EVEN:
        out_width, in_width = num_out // GROUP * GROUP, num_in // GROUP * GROUP
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    accumulator = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in range(part * BLOCK_ROWS, end, num_parts * BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        places = rows.to(tl.int64)
        dz = tl.load(
            dz_ptr + places[None, :] * out_width + outs[:, None],
            mask=(rows < num_rows)[None, :] & out_lives[:, None],
            other=0.0,
        )
        x = tl.load(
            x_ptr + places[:, None] * in_width + ins[None, :],
            mask=(rows < num_rows)[:, None] & in_lives[None, :],
            other=0.0,
        )
        if INTERPRETED:  # the interpreter multiplies the bits of bf16
            dz, x = dz.to(tl.float32), x.to(tl.float32)
        accumulator = tl.dot(dz, x, accumulator, input_precision=PRECISION)
    places = (part * num_out + outs).to(tl.int64)[:, None] * in_width + ins[None, :]
    exists = out_exists[:, None] & in_exists[None, :]
    tl.store(out_ptr + places, accumulator.to(out_ptr.dtype.element_ty), mask=exists)
