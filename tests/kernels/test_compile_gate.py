"""The gate itself: it counts instructions, and it turns a kernel with a stack away."""

import pytest
from compile_gate import ARCHITECTURES, compile_kernel, needs_compiler

pytestmark = needs_compiler


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request):
    return request.param


def kernels():
    """Kernels defined late: this file can be collected without triton."""
    import gate_kernels

    return gate_kernels


def test_a_copy_uses_wide_accesses_and_no_stack(arch):
    copy, signature = kernels().copy, {"x": "*fp32", "y": "*fp32"}
    code = compile_kernel(copy, signature, {"BLOCK": 1024}, arch=arch, aligned=("x", "y"))
    code.assert_no_stack()
    code.assert_wide()
    assert code.count("LDG") == code.count("LDG", width=128) == 2  # 8 floats a thread, 4 a load
    assert code.kinds["EXIT"] >= 1
    assert 0 < code.num_registers < 64


def test_an_unaligned_copy_is_turned_away(arch):
    code = compile_kernel(kernels().copy, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 1024}, arch=arch)
    with pytest.raises(AssertionError, match=r"no LDG\.128"):
        code.assert_wide()


def test_the_stack_of_libdevices_sine_is_turned_away(arch):
    code = compile_kernel(
        kernels().sine, {"x": "*fp32", "y": "*fp32"}, {"BLOCK": 1024}, arch=arch, aligned=("x", "y")
    )
    with pytest.raises(AssertionError, match="stack"):
        code.assert_no_stack()
