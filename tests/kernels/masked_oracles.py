"""What the pruning kernels are held against: the definitions in float64, in plain loops."""

import torch
from torch import Tensor
from torch.nn import functional

# Of one rounding; the interpreter truncates where a GPU rounds bf16, hence twice the usual 2^-8.
EPS = {torch.float64: 1e-15, torch.float32: 1.2e-7, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def random_mask(num: int, density: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num, generator=generator) < density


def channels(mask: Tensor | None, num_channels: int) -> Tensor:
    """Group mask [G] -> float64 0 or 1 [num_channels]."""
    if mask is None:
        return torch.ones(num_channels, dtype=torch.float64)
    return mask.cpu().double().repeat_interleave(8)[:num_channels]


def linear(x, weight, bias, mask_in, mask_out, activation):
    """act((x * m_in) W^T + b) * m_out, densely, in float64."""
    x, weight = x.double(), weight.double()
    z = (x * channels(mask_in, x.shape[-1])) @ weight.t()
    z = z if bias is None else z + bias.double()
    y = z if activation in (None, "none") else getattr(functional, activation)(z)
    return y * channels(mask_out, weight.shape[0])


def gradients(x, weight, bias, mask_in, mask_out, activation, dy):
    """Gradients of `linear` with respect to x, weight and bias (if there is one)."""
    leaves = [t.double().requires_grad_() for t in (x, weight, bias) if t is not None]
    y = linear(*leaves, *([None] * (3 - len(leaves))), mask_in, mask_out, activation)
    return torch.autograd.grad(y, leaves, dy.double())


def mask_gradients(x, dx, ids, num_samples, granularity=1):
    """g [S, U] by a loop over tokens; ids [tokens], those outside 0 .. S - 1 left out."""
    num_units = -(-x.shape[-1] // granularity)
    g = torch.zeros(num_samples, num_units, dtype=torch.float64)
    products = (x.double() * dx.double()).reshape(len(ids), x.shape[-1])
    for token, sample in enumerate(ids.tolist()):
        if 0 <= sample < num_samples:
            for channel in range(products.shape[1]):
                g[sample, channel // granularity] += products[token, channel]
    return g


def close(actual, expected, dtype, scale=None, roundings=1):
    """|actual - expected| within `roundings` roundings of dtype, relative to `scale`."""
    scale = expected.abs() if scale is None else scale
    error = (actual.detach().cpu().double() - expected.detach()).abs()
    bound = roundings * EPS[dtype] * scale + 1e-12
    assert (error <= bound).all(), f"largest error is {float((error / bound).max()):.2f} bounds"
