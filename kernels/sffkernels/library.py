"""The torch.library namespace `sffkernels`: every kernel is one operator in it.

    OPERATOR = register("twice(Tensor x) -> Tensor", plain, cuda="sffkernels.gpu.twice:launch",
                        fake=torch.empty_like, backward=backward)

Plain torch serves every device and is the oracle; on CUDA a launcher takes over, named by a string
because its module imports triton: a machine without one can import this package, and pays nothing.
"""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

NAMESPACE = "sffkernels"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def register(
    schema: str,
    plain: Callable[..., Any],
    *,
    cuda: str,
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Define the operator of `schema` and return its default overload.

    plain: the implementation for all devices but CUDA, in torch operations.
    cuda: "module:function" of the launcher, imported at its first call.
    fake: shapes and dtypes of the outputs (None where the operator only writes to its arguments).
    backward, setup_context: as `torch.library.register_autograd` takes them, for functional ones.

    An operator that writes to its arguments has to raise their version counters itself on CUDA
    (`torch.autograd.graph.increment_version`): a kernel launch does not.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    LIBRARY.impl(name, _imported_at_first_call(cuda), "CUDA")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=LIBRARY
        )
    return getattr(torch.ops.sffkernels, name).default


def _imported_at_first_call(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")

    @cache
    def launcher() -> Callable[..., Any]:
        return getattr(importlib.import_module(module), function)

    def call(*args: Any, **kwargs: Any) -> Any:
        return launcher()(*args, **kwargs)

    return call
