"""Freezing: which parameters get no gradient, so that no backward pass is spent on them.

frozen = freeze_all_but_head(model)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Parameter

    from sffbench.models.base import LTSM


def head_parameters(model: LTSM) -> list[Parameter]:
    """Parameters of the forecasting head, each once; a tied one goes by its first name."""
    named = model.named_parameters()
    return [parameter for name, parameter in named if name.startswith(model.head_prefixes)]


def freeze_all_but_head(model: LTSM) -> list[Parameter]:
    """Turn off gradients outside the head; returns the parameters that had them until now."""
    head = {id(parameter) for parameter in head_parameters(model)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in head]
    frozen = [parameter for parameter in rest if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
