"""The contract of a fine-tuning strategy: a frozen model whose fields are its hyper-parameters.

Subclassing registers it. Every hook is optional; a strategy that overrides none is plain full
fine-tuning. The training loop calls the hooks in the order in which they stand below.
docs/adding-a-strategy.md walks through one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from sffbench.context import Phase

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM

_REGISTRY: dict[str, type[Strategy]] = {}


class Strategy(BaseModel):
    """A fine-tuning strategy; its fields, its name and its version are in the key of every run.

    `lr` replaces the learning rate of the protocol or of the model's card. A field that a published
    strategy gets later is listed in `added`: it joins the key only where it is not its default, so
    that old records are still found.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    version: ClassVar[int] = 1
    trains: ClassVar[bool] = True  # False: the test sees what `prepare` returns
    seeded: ClassVar[bool] = True  # False: no seed can change the result, so one run is enough
    needs_model: ClassVar[bool] = True  # False: `forecast`, or a `network` of its own, answers
    added: ClassVar[frozenset[str]] = frozenset()  # fields younger than its first record

    lr: float | None = None

    @field_validator("lr")
    @classmethod
    def _positive_lr(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError("must be a positive number")
        return value

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            register(cls)

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """The model that training starts from. May change weights in place or wrap the model."""
        return model

    def phases(self, ctx: Context) -> list[Phase]:
        """Stretches of training; `ctx.phase` tells the other hooks which one runs."""
        return [Phase()]

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[torch.nn.Parameter] | Iterable[dict[str, Any]]:
        """Parameters, or optimiser groups of them, to train in this phase."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> float | Tensor:
        """One optimiser step; returns the loss. Owns zero_grad, backward and step."""
        ctx.optimizer.zero_grad(set_to_none=True)
        loss = ctx.backward(model, batch)
        ctx.clip(model)
        ctx.optimizer.step()
        return loss

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """What validation and the test see (an average of weights, say)."""
        return model

    def finish(self, model: LTSM, ctx: Context) -> LTSM:
        """The selected model, made ready for the test (adapters merged, say)."""
        return model


def register(cls: type[Strategy]) -> None:
    """Enter a strategy under its name; one name from two different files is an error."""
    name = cls.name
    if not name or name != name.lower() or " " in name:
        raise ValueError(f"strategy name {name!r}: use lower case words joined by '-'")
    known = _REGISTRY.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (
        cls.__module__,
        cls.__qualname__,
    ):
        raise ValueError(f"strategy {name!r} is already registered by {known.__module__}")
    _REGISTRY[name] = cls


def registry() -> dict[str, type[Strategy]]:
    """All registered strategies by name."""
    return _REGISTRY
