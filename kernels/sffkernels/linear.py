"""A linear map that skips its dead channels, with masks that may move while it is being trained.

    y = act(x[..., in] @ W[out, in]^T + b[out]) at the live output channels `out`, 0 at the others

`in` and `out` are the live channels, in groups of eight. Dead channels are never read: neither
their activations nor their weights nor their gradients. Gradients are those of the masked map, 0
wherever a channel is dead, so weights and optimiser states keep their dense shapes.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sffkernels.groups import channel_mask, live_channels, live_list, num_groups
from sffkernels.library import register

ACTIVATIONS = ("relu", "gelu", "silu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # float64 on a CPU only


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    live_in: Tensor | None,
    live_out: Tensor | None,
    activation: str | None = None,
) -> Tensor:
    """y[..., n] = act(sum over live k of x[..., k] * W[n, k] + b[n]) if n lives, else 0.

    x: [..., K]; weight: [N, K]; bias: [N] or None; all of one dtype (float32, bfloat16, float16;
    float64 on a CPU) and device, cast as by `linear` where autocast is on. Returns [..., N].
    live_in, live_out: a bool mask [ceil(K / 8)], [ceil(N / 8)] of groups, or the live list that
    `live_list` makes of it once, or None where all live. They stay on the device.
    activation: None, "relu", "gelu" (exact: x Phi(x)) or "silu".

    Sums are float32. float32 products on CUDA follow `torch.get_float32_matmul_precision()`:
    "highest" is exact, otherwise TF32. Cannot be differentiated twice.

    Raises ValueError, before anything is computed, naming the argument that is wrong.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autocast(x, weight, bias)
    _check(x, weight, bias, activation)
    groups_in = _as_list("live_in", live_in, weight.shape[1], x.device)
    groups_out = _as_list("live_out", live_out, weight.shape[0], x.device)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    name = activation or "none"
    trained = any(t is not None and t.requires_grad for t in (x, weight, bias))
    save = name in ("gelu", "silu") and trained and torch.is_grad_enabled()
    y, _ = MASKED_LINEAR(rows, weight, bias, groups_in, groups_out, name, save)
    full: Tensor = y.view(*x.shape[:-1], weight.shape[0])
    return full


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or one of {ACTIVATIONS}, got {activation!r}")
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        shapes = f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        raise ValueError(f"x must be [..., K] and weight [N, K], got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got {tuple(bias.shape)}")
    for label, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            given = f"{tensor.dtype} on {tensor.device}, x {x.dtype} on {x.device}"
            raise ValueError(f"{label} is {given}: dtype and device must be equal")
    if x.dtype not in DTYPES or (x.dtype == torch.float64 and x.device.type != "cpu"):
        raise ValueError(f"x has dtype {x.dtype}, allowed are float32, bfloat16 and float16")


def _as_list(
    label: str, groups: Tensor | None, num_channels: int, device: torch.device
) -> Tensor | None:
    """The live list of a mask or a list, checked; None stays None."""
    if groups is None:
        return None
    if groups.device != device:
        raise ValueError(f"{label} is on {groups.device}, x on {device}")
    needed = num_groups(num_channels)
    if groups.dtype == torch.bool and groups.shape == (needed,):
        return live_list(groups)
    if groups.dtype == torch.int32 and groups.shape == (1 + needed,):
        return groups
    raise ValueError(
        f"{label} must be a bool mask of [{needed}] groups of 8 for {num_channels} channels, or "
        f"its live list, int32 [{1 + needed}], got {groups.dtype} {tuple(groups.shape)}"
    )


# Operators -------------------------------------------------------------------------------------


def _forward_plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    live_in: Tensor | None,
    live_out: Tensor | None,
    activation: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    num_out, num_in = weight.shape
    out, into = _channels(live_out, num_out), _channels(live_in, num_in)
    small = None if bias is None else _take(bias, out, 0)
    z = functional.linear(_take(x, into, 1), _take(_take(weight, out, 0), into, 1), small)
    y = _spread(_activate(z, activation), out, 1, num_out)
    return y, _spread(z, out, 1, num_out) if save else x.new_empty(0)


def _input_gradient_plain(
    dz: Tensor, weight: Tensor, live_out: Tensor | None, live_in: Tensor | None
) -> Tensor:
    num_out, num_in = weight.shape
    out, into = _channels(live_out, num_out), _channels(live_in, num_in)
    dx = _take(dz, out, 1) @ _take(_take(weight, out, 0), into, 1)
    return _spread(dx, into, 1, num_in)


def _weight_gradient_plain(
    dz: Tensor, x: Tensor, live_out: Tensor | None, live_in: Tensor | None
) -> Tensor:
    num_out, num_in = dz.shape[1], x.shape[1]
    out, into = _channels(live_out, num_out), _channels(live_in, num_in)
    dw = _take(dz, out, 1).t() @ _take(x, into, 1)
    return _spread(_spread(dw, into, 1, num_in), out, 0, num_out)


def _channels(groups: Tensor | None, num_channels: int) -> Tensor | None:
    return None if groups is None else live_channels(groups, num_channels)


def _take(values: Tensor, channels: Tensor | None, axis: int) -> Tensor:
    """The live channels; `index_select` is five times as fast as brackets."""
    return values if channels is None else values.index_select(axis, channels)


def _spread(values: Tensor, channels: Tensor | None, axis: int, num_channels: int) -> Tensor:
    """Channels into their places among `num_channels`, 0 elsewhere, as one more `index_select`."""
    if channels is None:
        return values
    ranks = torch.arange(len(channels), device=channels.device)
    places = ranks.new_full((num_channels,), len(channels)).index_copy_(0, channels, ranks)
    shape = list(values.shape)
    shape[axis] = 1  # a channel of zeros, after the last
    return torch.cat([values, values.new_zeros(shape)], axis).index_select(axis, places)


def _activate(z: Tensor, activation: str) -> Tensor:
    return z if activation == "none" else getattr(functional, activation)(z)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    live_in: Tensor | None,
    live_out: Tensor | None,
    activation: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, torch.empty_like(y) if save else x.new_empty(0)


def _input_gradient_fake(
    dz: Tensor, weight: Tensor, live_out: Tensor | None, live_in: Tensor | None
) -> Tensor:
    return dz.new_empty(dz.shape[0], weight.shape[1])


def _weight_gradient_fake(
    dz: Tensor, x: Tensor, live_out: Tensor | None, live_in: Tensor | None
) -> Tensor:
    return dz.new_empty(dz.shape[1], x.shape[1])


# Gradients -------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What the backward pass needs: of relu's output only the sign, of gelu and silu z."""
    x, weight, bias, live_in, live_out, activation, _ = inputs
    y, z = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(z)
    ctx.activation, ctx.has_bias = activation, bias is not None
    outcome = {"none": None, "relu": y}.get(activation, z)
    ctx.save_for_backward(x, weight, live_in, live_out, outcome)


def _backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, weight, live_in, live_out, outcome = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, *_rest = ctx.needs_input_grad
    dz = _through_activation(dy, outcome, ctx.activation)
    return (
        INPUT_GRADIENT(dz, weight, live_out, live_in) if needs_x else None,
        WEIGHT_GRADIENT(dz, x, live_out, live_in) if needs_weight else None,
        _bias_gradient(dz, live_out) if needs_bias else None,
        *(None,) * 4,
    )


def _through_activation(dy: Tensor, outcome: Tensor | None, activation: str) -> Tensor:
    """dz = dy * act'(z), from y of a relu and from z otherwise."""
    aten = torch.ops.aten
    if activation == "relu":
        return aten.threshold_backward(dy, outcome, 0)
    if activation == "gelu":
        return aten.gelu_backward(dy, outcome)
    if activation == "silu":
        return aten.silu_backward(dy, outcome)
    return dy


def _bias_gradient(dz: Tensor, live_out: Tensor | None) -> Tensor:
    total = dz.sum(0)
    if live_out is None:
        return total
    return torch.where(channel_mask(live_out, dz.shape[1]), total, 0.0)


def _twice(ctx: Any, *_: Tensor) -> tuple[None, ...]:
    raise RuntimeError("masked_linear cannot be differentiated twice: use `w * mask` and `linear`")


MASKED_LINEAR = register(
    "masked_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? live_in, Tensor? live_out, "
    "str activation, bool save) -> (Tensor, Tensor)",
    _forward_plain,
    cuda="sffkernels.gpu.linear:forward",
    fake=_forward_fake,
    backward=_backward,
    setup_context=_keep,
)
INPUT_GRADIENT = register(
    "masked_input_gradient(Tensor dz, Tensor weight, Tensor? live_out, Tensor? live_in) -> Tensor",
    _input_gradient_plain,
    cuda="sffkernels.gpu.linear:input_gradient",
    fake=_input_gradient_fake,
    backward=_twice,
)
WEIGHT_GRADIENT = register(
    "masked_weight_gradient(Tensor dz, Tensor x, Tensor? live_out, Tensor? live_in) -> Tensor",
    _weight_gradient_plain,
    cuda="sffkernels.gpu.linear:weight_gradient",
    fake=_weight_gradient_fake,
    backward=_twice,
)
