"""Every published size, once: a training step and a forecast in float32, from random weights.

One window, and a context cut to `CONTEXT` where the network takes any: the sizes under test are
those of the weights. Exceptions stand below and in docs/models.md.
"""

from __future__ import annotations

import gc
from fnmatch import fnmatch

import pytest
import torch

from sffbench import models

PRESETS = [
    f"{name}:{preset}"
    for name in models.names()
    for preset in models.get(name).presets
    if preset != "tiny"
]
CONTEXT = 512
FIXED_CONTEXT = ("ttm:*", "moment:*")  # as many patches as the preset says
NUM_SAMPLES = 2  # of models that draw their forecasts

# One decoder word attends to itself alone: whatever its scores are, its weight is 1.
WITHOUT_GRADIENT = {
    "chronos:bolt-*": (
        "decoder.block.*.SelfAttention.q.weight",
        "decoder.block.*.SelfAttention.k.weight",
        "decoder.block.*.SelfAttention.relative_attention_bias.weight",
    )
}
# The mixture's narrow normal (scale 0.001) has a gradient where a value is near its centre; the
# scores of a variable that attends to itself alone have rounding for one.
AT_TIMES_WITHOUT = {
    "moirai:*": ("param_proj.proj.components.1.*",),
    "chronos:2": ("encoder.block.*.layer.1.self_attention.[qk].weight",),
}


def _lookback(name):
    native = models.preset(name).lookback
    return native if any(fnmatch(name, fixed) for fixed in FIXED_CONTEXT) else min(native, CONTEXT)


def _named(exceptions, name, parameter):
    patterns = [p for model, idle in exceptions.items() if fnmatch(name, model) for p in idle]
    return any(fnmatch(parameter, pattern) for pattern in patterns)


@pytest.fixture
def model(request):
    """One network at a time: the largest takes 12 GB with its gradients and Adam's state."""
    gc.collect()
    yield models.create(request.param, seed=0, lookback=_lookback(request.param))
    gc.collect()


@pytest.fixture
def window(model):
    generator = torch.Generator().manual_seed(0)
    length = model.lookback + min(model.horizon, 96)
    return torch.randn(1, 1, length, generator=generator).split(
        [model.lookback, length - model.lookback], dim=2
    )


def _step(model, past, future):
    """A step of AdamW without decay; for each parameter whether it had a gradient, and moved."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    loss = model.train().loss(past, future)
    loss.backward()
    # The element of the steepest gradient stands for its parameter: copies would double the memory.
    with torch.no_grad():
        places = {
            name: int(p.grad.abs().argmax()) if p.grad is not None else 0
            for name, p in model.named_parameters()
        }
        before = {name: p.flatten()[places[name]].item() for name, p in model.named_parameters()}
    has_gradient = {
        name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    moved = {
        name: p.detach().flatten()[places[name]].item() != before[name]
        for name, p in model.named_parameters()
    }
    return loss.item(), has_gradient, moved


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute alone, many where others use the machine
@pytest.mark.parametrize(
    ("model", "name"), [(p, p) for p in PRESETS], indirect=["model"], ids=PRESETS
)
def test_a_published_size_takes_a_training_step_and_forecasts(model, name, window):
    past, future = window
    loss, has_gradient, moved = _step(model, past, future)
    assert torch.tensor(loss).isfinite()
    assert moved == has_gradient
    for parameter, tensor in model.named_parameters():
        if not _named(AT_TIMES_WITHOUT, name, parameter):
            assert moved[parameter] == (
                tensor.requires_grad
                and not any(fnmatch(parameter, pattern) for pattern in model.unused)
                and not _named(WITHOUT_GRADIENT, name, parameter)
            ), parameter
    model.zero_grad(set_to_none=True)
    draws = type(model)._sample is not models.LTSM._sample
    horizon = future.shape[-1]
    forecast = model.forecast(past, horizon, num_samples=NUM_SAMPLES if draws else None)
    assert forecast.shape == (1, 1, horizon)
    assert forecast.isfinite().all()
