"""Launchers of `masked_linear`: forward, gradient of the input, gradient of the weight.

Tile shapes come from a small table, never from trial runs: no autotuner, so the same shapes always
give the same bits. The table was chosen by reading machine code (registers, spills, width of
accesses: see docs/kernels.md) and awaits timing on a GPU.
"""

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sffkernels.gpu.products import product_kernel, weight_gradient_kernel
from sffkernels.groups import GROUP

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# A list of the channels that are reduced over is read before the tiles that it points to: two more
# stages keep as many tiles in flight as without it.
STAGES_OF_A_LIST = 2
STRIPE = 8  # rows of tiles that run side by side and share what they read of the other operand
WANTED_PROGRAMS = 264  # two for each of the 132 processors of an H100 or H200


class Tile(NamedTuple):
    """Output tile, step of the reduction, warps, stages of the pipeline."""

    rows: int
    columns: int
    reduced: int
    num_warps: int
    num_stages: int


LARGE, SMALL = Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 3)  # 16 bits; 128 x 128 spills in 4
LARGE_TF32, SMALL_TF32 = Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3)
EXACT = Tile(64, 64, 16, 8, 3)  # float32 without tensor cores: the other shapes tried spill


def pick_tile(dtype: torch.dtype, num_rows: int, num_columns: int, precision: str) -> Tile:
    """The large tile where it fills the processors once, else the small one."""
    if dtype == torch.float32 and precision == "ieee":
        return EXACT
    large, small = (LARGE_TF32, SMALL_TF32) if dtype == torch.float32 else (LARGE, SMALL)
    num_tiles = triton.cdiv(num_rows, large.rows) * triton.cdiv(num_columns, large.columns)
    return large if 2 * num_tiles >= WANTED_PROGRAMS else small


def num_parts(num_rows: int, num_tiles: int, block_rows: int) -> int:
    """Parts that a reduction over rows is cut into: a power of two, 1 where tiles are plenty."""
    parts = 1
    while parts < 8 and parts * num_tiles < WANTED_PROGRAMS and num_rows >= 16 * parts * block_rows:
        parts *= 2
    return parts


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    live_in: Tensor | None,
    live_out: Tensor | None,
    activation: str,
    save: bool,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """y [M, N], and z before the activation if `save`: else an empty tensor."""
    y = x.new_empty(x.shape[0], weight.shape[0])
    z = torch.empty_like(y) if save else x.new_empty(0)
    _product(x, weight, bias, y, z, live_in, live_out, activation, True, tile)
    return y, z


def input_gradient(
    dz: Tensor,
    weight: Tensor,
    live_out: Tensor | None,
    live_in: Tensor | None,
    tile: Tile | None = None,
) -> Tensor:
    """dx [M, K] = dz [M, live N] @ W [live N, live K]."""
    dx = dz.new_empty(dz.shape[0], weight.shape[1])
    _product(dz, weight, None, dx, dz.new_empty(0), live_out, live_in, "none", False, tile)
    return dx


def weight_gradient(
    dz: Tensor,
    x: Tensor,
    live_out: Tensor | None,
    live_in: Tensor | None,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """dW [N, K] = dz [M, live N]^T @ x [M, live K]."""
    num_out, num_in = dz.shape[1], x.shape[1]
    dw = dz.new_empty(num_out, num_in)
    if dw.numel() == 0:
        return dw
    precision = _precision()
    tile = tile or pick_tile(x.dtype, num_out, num_in, precision)
    num_tiles = triton.cdiv(num_out, tile.rows) * triton.cdiv(num_in, tile.columns)
    parts = parts or num_parts(x.shape[0], num_tiles, tile.reduced)
    shape = (parts, num_out, num_in)
    out = dw if parts == 1 else dz.new_empty(shape, dtype=torch.float32)
    with torch.cuda.device_of(x):
        weight_gradient_kernel[(num_tiles, parts)](
            dz.contiguous(),
            x.contiguous(),
            out,
            live_out,
            live_in,
            x.shape[0],
            num_out,
            num_in,
            BLOCK_OUT=tile.rows,
            BLOCK_IN=tile.columns,
            BLOCK_ROWS=tile.reduced,
            HAS_OUT_LIST=live_out is not None,
            HAS_IN_LIST=live_in is not None,
            **_options(tile, precision, num_out, num_in),
        )
    return dw if parts == 1 else torch.sum(out, 0, dtype=torch.float32).to(dw.dtype)


def _product(
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    saved: Tensor,
    reduce_list: Tensor | None,
    column_list: Tensor | None,
    activation: str,
    transposed: bool,
    tile: Tile | None,
) -> None:
    (num_rows, num_reduced), num_columns = a.shape, out.shape[1]
    if out.numel() == 0:
        return
    precision = _precision()
    tile = tile or pick_tile(a.dtype, num_rows, num_columns, precision)
    grid = (triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns),)
    with torch.cuda.device_of(a):
        product_kernel[grid](
            a.contiguous(),
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            out,
            saved if saved.numel() else None,
            reduce_list,
            column_list,
            num_rows,
            num_reduced,
            num_columns,
            HAS_BIAS=bias is not None,
            SAVE=saved.numel() > 0,
            ACTIVATION=activation,
            TRANSPOSED=transposed,
            BLOCK_ROWS=tile.rows,
            BLOCK_COLUMNS=tile.columns,
            BLOCK_REDUCED=tile.reduced,
            HAS_REDUCE_LIST=reduce_list is not None,
            HAS_COLUMN_LIST=column_list is not None,
            **_options(tile, precision, num_reduced, num_columns)
            | {"num_stages": tile.num_stages + (0 if reduce_list is None else STAGES_OF_A_LIST)},
        )


def _options(tile: Tile, precision: str, *widths: int) -> dict[str, Any]:
    return {
        "EVEN": all(width % GROUP == 0 for width in widths),
        "STRIPE": STRIPE,
        "PRECISION": precision,
        "INTERPRETED": INTERPRETED,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
