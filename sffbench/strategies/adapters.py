"""Adapters of the `peft` library, injected into a model in place and merged away after training.

    inject(model, peft.LoraConfig(...), ctx)    # every linear map outside the head gets an adapter
    merge(model)                                # a plain LTSM again, with the official key names

The head is trained in full, as the field does for regression (`modules_to_save` in peft, which
copies it; here it stays where it is). The library is imported where it is used: it is an extra.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sffbench.errors import InputError
from sffbench.strategies.freezing import head_parameters

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


def require_peft(name: str) -> None:
    """One line for whoever has not installed the extra; nothing is imported yet."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(f"{name} needs the peft library: pip install 'sffbench[peft]'")


def target_modules(model: LTSM) -> list[str]:
    """Names of the `nn.Linear`s that a forecast reads, but for those that share the head's weights.

    Prompt tokens, positions, norms, convolutions and mixture layers stay as they are.
    """
    head = {id(parameter) for parameter in head_parameters(model)}
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    return [
        name
        for name, module in linear
        if id(module.weight) not in head
        and not any(fnmatch.fnmatch(f"{name}.weight", pattern) for pattern in model.unused)
    ]


def inject(model: LTSM, config: Any, ctx: Context) -> None:
    """Put the adapters that `config` describes into `model`, in place; freeze all but them and the
    head.

    What the library draws depends on the run's seed alone: its draws are made from a fork of the
    global generator, which dropout finds afterwards as it was.
    """
    from peft import inject_adapter_in_model

    head = [parameter for parameter in head_parameters(model) if parameter.requires_grad]
    # One expression: a list would also match the ends of other names.
    config.target_modules = "|".join(re.escape(name) for name in target_modules(model))
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(ctx.rng("adapters").initial_seed())
        inject_adapter_in_model(config, model)
    for parameter in head:
        parameter.requires_grad_(True)


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that hold adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)}


def merge(model: LTSM) -> None:
    """Add every adapter to the weight that it stands beside and put the plain layers back."""
    for name, layer in adapted(model).items():
        layer.merge(safe_merge=False)
        model.set_submodule(name, layer.get_base_layer())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
