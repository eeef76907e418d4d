"""Operators: plain torch without triton, and registered as torch.compile and autograd need it."""

import subprocess
import sys

import torch

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
