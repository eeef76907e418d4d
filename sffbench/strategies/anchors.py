"""Pairs of a parameter and its pretrained value, for strategies that hold on to the latter."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from sffbench.errors import InputError

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class Anchored(NamedTuple):
    """Parameters that train, their names, and their pretrained values, in one order."""

    names: list[str]
    parameters: list[Tensor]
    pretrained: list[Tensor]


def anchored(model: LTSM, ctx: Context, *, head: bool = True) -> Anchored:
    """Every parameter that trains with its pretrained value, aliases once.

    `head=False` leaves the head out; a head that is new has no pretrained value and is never in.
    Raises `InputError` for a parameter that the checkpoint does not know, and where none is left.
    """
    with_head = head and not model.new_head
    found = Anchored([], [], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not (with_head or not in_head(model, name)):
            continue
        if name not in ctx.pretrained:
            raise InputError(f"{name!r} has no pretrained value to hold on to")
        found.names.append(name)
        found.parameters.append(parameter)
        found.pretrained.append(ctx.pretrained[name])
    if not found.names:
        raise InputError(f"{model.name}: no pretrained parameter trains")
    return found


def in_head(model: LTSM, name: str) -> bool:
    """Whether a parameter belongs to the head."""
    return name.startswith(model.head_prefixes) if model.head_prefixes else False
