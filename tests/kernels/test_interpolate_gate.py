"""What ptxas makes of the kernel of `interpolate_`: no stack, wide accesses, few instructions."""

import pytest
from compile_gate import ARCHITECTURES, compile_kernel, needs_compiler

pytestmark = needs_compiler

TYPES = {"chunks": "*i32", "tensors": "*i64", "numbers": "*fp32"}
TYPES |= {"a": "fp32", "b": "fp32", "c": "fp32", "key_low": "i32", "key_high": "i32"}
# 62 instructions an element are what an H200 issues while it copies 8 bytes (a 16-bit type: 31).
# Truncated normals exceed it, and are slower than a copy; cuts at 6 std or more are plain normals.
BUDGET = {"uniform": 25, "normal": 46, "truncated": 90}
NOISE = [("fp32", None), ("bf16", None)]
OTHER = [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16")]


def dtype_of(name):
    import triton.language as tl

    return {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16, None: None}[name]


def compiled(theta, other, arch, on_device=(False, False, False)):
    from sffkernels.gpu import interpolate, table
    from sffkernels.gpu.interpolate_kernel import interpolate_kernel

    constants = {"THETA": dtype_of(theta), "OTHER": dtype_of(other), "NOISE": other is None}
    constants |= {"ON_DEVICE": on_device, "ALIGNED": True, "CHUNK": table.CHUNK}
    return compile_kernel(
        interpolate_kernel,
        TYPES | {name: "*fp32" for name, there in zip("abc", on_device, strict=True) if there},
        constants | {"BLOCK": interpolate.BLOCK},
        arch=arch,
        aligned=("chunks", "tensors", "numbers"),
        num_warps=interpolate.NUM_WARPS,
        enable_fp_fusion=False,
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("theta", "other"), NOISE + OTHER)
def test_no_stack_wide_accesses_and_nothing_through_shared_memory(theta, other, arch):
    code = compiled(theta, other, arch)
    code.assert_no_stack()
    code.assert_wide()
    assert code.shared_bytes == 0
    assert code.count("STS") == code.count("BAR") == 0
    assert code.num_registers <= 64  # 32 warps or more on a multiprocessor


def test_coefficients_on_the_device_cost_three_loads_and_no_stack():
    by_value, on_device = compiled("fp32", None, 90), compiled("fp32", None, 90, (True,) * 3)
    on_device.assert_no_stack()
    on_device.assert_wide()
    assert on_device.count("LDG") == by_value.count("LDG") + 3


def test_products_and_sums_round_apart_outside_the_polynomials():
    code = compiled("fp32", "fp32", 90)
    assert code.count("FFMA") == 0
    assert code.count("FMUL")
    assert code.count("FADD")


@pytest.mark.parametrize("theta", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", BUDGET)
def test_a_number_costs_few_instructions(kind, theta):
    assert instructions_per_element(kind, theta, 90) <= BUDGET[kind]


def instructions_per_element(kind, theta, arch):
    """SASS of one unmasked element with its load, mix and store: the slope between two blocks."""
    from gate_kernels import one_kind

    from sffkernels.gpu import layout

    types = {"theta": f"*{theta}", "numbers": "*fp32", "c": "fp32", "name": "i64", "start": "i64"}
    constants = {"KIND": getattr(layout, kind.upper()), "DTYPE": dtype_of(theta)}
    small, large = (
        compile_kernel(
            one_kind,
            types | {"i": "i32", "key": "i32"},
            constants | {"BLOCK": block},
            arch=arch,
            aligned=("theta", "numbers"),
            num_warps=4,
            enable_fp_fusion=False,
        )
        for block in (1024, 2048)
    )
    return (len(large.opcodes) - len(small.opcodes)) / (1024 / 128)
