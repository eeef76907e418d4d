"""Operators: plain torch without triton, and registered as torch.compile and autograd need it."""

import subprocess
import sys

import pytest
import torch

from sffkernels import Init, interpolate_
from sffkernels.library import register


def test_importing_the_package_and_calling_it_on_a_cpu_imports_no_triton():
    code = (
        "import sys, torch, sffkernels\n"
        "sffkernels.interpolate_([torch.ones(9)], 0.5)\n"
        "sys.exit(any(name.partition('.')[0] == 'triton' for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_registered_operator_passes_opcheck_and_compiles_whole():
    twice = register_twice()
    x = torch.randn(5, requires_grad=True)
    torch.library.opcheck(twice, (x,))
    assert torch.equal(torch.compile(twice, fullgraph=True, backend="aot_eager")(x), 2 * x)
    (gradient,) = torch.autograd.grad(twice(x).sum(), x)
    assert torch.equal(gradient, torch.full((5,), 2.0))


def register_twice():
    return register(
        "twice_for_tests(Tensor x) -> Tensor",
        lambda x: x * 2,
        cuda="sffkernels.gpu.nowhere:launch",
        fake=torch.empty_like,
        backward=lambda ctx, gradient: gradient * 2,
    )


def arguments(tensors, other=()):
    inits = [Init.normal(), Init.truncated_normal()] if not other else []
    return (
        tensors,
        list(other),
        [0.7, 0.2, 0.1],
        [None, None, None],
        [one.kind for one in inits],
        [number for one in inits for number in (one.a, one.b, one.low, one.high)],
        ["v", "w"] if inits else [],
        -5,
    )


@pytest.mark.parametrize("with_other", [False, True])
def test_interpolate_passes_opcheck(with_other):
    tensors = [torch.randn(5), torch.randn(2, 3)]
    other = [torch.randn(5), torch.randn(2, 3)] if with_other else []
    torch.library.opcheck(torch.ops.sffkernels.interpolate_.default, arguments(tensors, other))


def test_interpolate_compiles_whole_and_gives_the_same_bits():
    inits, names = [Init.normal(), Init.uniform(-1, 1)], ["v", "w"]

    def step(tensors, other):
        interpolate_(tensors, 0.7, other=other, b=0.2, init=inits, c=0.1, seed=3, names=names)
        return tensors[0] * 2

    start, other = [torch.randn(5), torch.randn(2, 3)], [torch.randn(5), torch.randn(2, 3)]
    eager, traced = [one.clone() for one in start], [one.clone() for one in start]
    expected = step(eager, other)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(traced, other), expected)
    assert all(torch.equal(one, two) for one, two in zip(eager, traced, strict=True))


def test_a_coefficient_may_be_a_tensor_inside_torch_compile():
    theta, twin = torch.randn(5), torch.zeros(5)
    twin.copy_(theta)
    compiled = torch.compile(lambda x, a: interpolate_([x], a), fullgraph=True, backend="aot_eager")
    compiled(theta, torch.tensor(0.3))
    interpolate_([twin], 0.3)
    assert torch.equal(theta, twin)


def test_parameters_that_require_gradients_change_in_place_and_autograd_notices():
    weight = torch.nn.Parameter(torch.ones(4))
    loss, version = weight.square().sum(), weight._version
    torch.compile(lambda: interpolate_([weight], 0.5), fullgraph=True, backend="aot_eager")()
    assert weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_launcher_is_named_for_cuda_and_not_imported_here():
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("sffkernels::interpolate_", "CUDA")
    assert has("sffkernels::interpolate_", "CompositeExplicitAutograd")
    code = "import sys, sffkernels; sys.exit('sffkernels.gpu' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
