"""Machine code of the pruning kernels: no stack, wide accesses, tensor cores, for sm_80 and sm_90.

Every row of the tile table is compiled with each kernel that uses it. The one exception to wide
accesses is known: on sm_90 the TF32 product for the gradient of a weight wants its operands
transposed, which copies of four bytes do.
"""

from functools import cache

import pytest
from compile_gate import ARCHITECTURES, compile_kernel, needs_compiler

pytestmark = needs_compiler

TILES = [
    ("LARGE", "bf16", "ieee"),
    ("LARGE_TF32", "fp32", "tf32"),
    ("EXACT", "fp32", "ieee"),
    pytest.param("SMALL", "bf16", "ieee", marks=pytest.mark.slow),
    pytest.param("LARGE", "fp16", "ieee", marks=pytest.mark.slow),
    pytest.param("SMALL_TF32", "fp32", "tf32", marks=pytest.mark.slow),
]
LISTS = {"reduce_list", "column_list", "out_list", "in_list"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request):
    return request.param


def arguments(kernel, dtype, others, constants):
    """Triton's types: tensors of `dtype` but for `others`, sizes i32."""
    types = {}
    for name in kernel.arg_names:
        pointer = f"*{dtype}" if name.endswith("_ptr") else "i32"
        types[name] = "*i32" if name in LISTS else others.get(name, pointer)
    aligned = [n for n in types if types[n].startswith("*") and n not in {*LISTS, *constants}]
    return {"signature": types, "constants": constants, "aligned": aligned}


@cache
def product(kind, tile_name, dtype, precision, arch):
    from sffkernels.gpu import linear

    tile = getattr(linear, tile_name)
    shape = dict(zip(("ROWS", "COLUMNS", "REDUCED"), tile[:3], strict=True))
    if kind == "weight_gradient":
        kernel, shape = (
            linear.weight_gradient_kernel,
            dict(zip(("OUT", "IN", "ROWS"), tile[:3], strict=True)),
        )
        own = {"HAS_OUT_LIST": True, "HAS_IN_LIST": True}
    else:
        kernel, forward = linear.product_kernel, kind == "forward"
        own = {"HAS_BIAS": forward, "SAVE": forward, "TRANSPOSED": forward}
        own |= {"ACTIVATION": "gelu" if forward else "none"}
        own |= {"HAS_REDUCE_LIST": True, "HAS_COLUMN_LIST": True}
        own |= {} if forward else {"bias_ptr": None, "saved_ptr": None}
    own |= {f"BLOCK_{name}": size for name, size in shape.items()}
    own |= {"EVEN": True, "STRIPE": 8, "PRECISION": precision, "INTERPRETED": False}
    more = 0 if kind == "weight_gradient" else linear.STAGES_OF_A_LIST
    options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages + more}
    return compile_kernel(kernel, **arguments(kernel, dtype, {}, own), arch=arch, **options)


@pytest.mark.parametrize("kind", ["forward", "input_gradient", "weight_gradient"])
@pytest.mark.parametrize(("tile", "dtype", "precision"), TILES)
def test_masked_products_use_tensor_cores_wide_copies_and_no_stack(
    kind, tile, dtype, precision, arch
):
    code = product(kind, tile, dtype, precision, arch)
    code.assert_no_stack()
    transposing = (kind, precision, arch) == ("weight_gradient", "tf32", 90)
    if not transposing:
        code.assert_wide(loads="LDGSTS")
    assert code.count("STG") == code.count("STG", width=128)
    tensor_cores = {90: "HGMMA", 80: "HMMA"}[arch]
    assert bool(code.kinds[tensor_cores]) == (tile != "EXACT")


@pytest.mark.parametrize("kind", ["forward", "input_gradient", "weight_gradient"])
def test_the_large_tile_keeps_three_pairs_of_tiles_in_shared_memory_of_sm_90(kind):
    pairs = 3 * (128 + 128) * 64 * 2
    assert pairs <= product(kind, "LARGE", "bf16", "ieee", 90).shared_bytes <= 227 * 1024


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("tokens", "channels"), [(32, 128), (8, 512)])
def test_mask_gradients_read_128_bits_at_a_time_without_a_stack(dtype, tokens, channels, arch):
    from sffkernels.gpu import scores

    constants = {"SORTED": False, "MOMENTS": True, "GRANULARITY": 8, "EVEN": True}
    constants |= {"BLOCK_TOKENS": tokens, "BLOCK_CHANNELS": channels}
    constants |= {"order_ptr": None, "ends_ptr": None}
    given = arguments(scores.sample_kernel, dtype, {"out_ptr": "*fp32"}, constants)
    code = compile_kernel(scores.sample_kernel, **given, arch=arch, num_warps=scores.NUM_WARPS)
    code.assert_no_stack()
    per_load = 128 // (32 if dtype == "fp32" else 16)
    num_loads = 2 * tokens * channels // (32 * scores.NUM_WARPS * per_load)
    assert code.count("LDG", width=128) == code.count("LDG") == num_loads


@pytest.mark.parametrize("name", ["score_kernel", "threshold_kernel", "lists_kernel"])
def test_the_pruning_step_has_no_stack(name, arch):
    from sffkernels.gpu import select

    kernel = getattr(select, name)
    rules = {"SECOND_ORDER": True, "FREE_ZEROS": True, "BLOCK": select.BLOCK}
    types = {"live_ptr": "*i8", "score_ptr": "*fp32", "moments_ptr": "*fp32"}
    types |= dict.fromkeys(("weight", "square_weight", "ema"), "fp32")
    constants = {key: value for key, value in rules.items() if key in kernel.arg_names}
    given = arguments(kernel, "i32", types, constants)
    code = compile_kernel(kernel, **given, arch=arch, num_warps=select.NUM_WARPS)
    code.assert_no_stack()
    assert code.num_registers <= 64


ONES = ["num_rows", "num_reduced", "num_columns", "num_out", "num_in", "num_samples"]
ONES += ["num_channels", "num_tokens", "samples_per_program"]


@pytest.mark.parametrize("name", ["product_kernel", "weight_gradient_kernel", "sample_kernel"])
def test_sizes_of_one_which_a_launch_makes_constants_compile(name):
    from sffkernels.gpu import linear, scores

    kernel = getattr(scores if name == "sample_kernel" else linear, name)
    rules = {"HAS_BIAS": True, "SAVE": True, "ACTIVATION": "silu", "TRANSPOSED": True}
    rules |= {"SORTED": True, "MOMENTS": False, "GRANULARITY": 8, "BLOCK_TOKENS": 1}
    rules |= {"STRIPE": 8, "PRECISION": "ieee", "INTERPRETED": False, "EVEN": False}
    blocks = {key: 32 for key in kernel.arg_names if key.startswith("BLOCK_")}
    lists = {key: True for key in kernel.arg_names if key.startswith("HAS_")}
    constants = blocks | lists | {k: v for k, v in rules.items() if k in kernel.arg_names}
    constants |= {key: 1 for key in ONES if key in kernel.arg_names}
    others = {"order_ptr": "*i64", "ends_ptr": "*i64"}
    code = compile_kernel(kernel, **arguments(kernel, "fp32", others, constants), arch=90)
    code.assert_no_stack()
