"""Dropout, stronger than the checkpoint's: is SFF only a regulariser?

    x <- x * m / (1 - p),  m = 0 with probability p, wherever the network has a place for it

Source: Srivastava et al. (JMLR 2014). Full fine-tuning otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import nn

from sffbench.errors import NotApplicable
from sffbench.strategies.base import Strategy

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class Dropout(Strategy):
    """Full fine-tuning with dropout p at every place that the network's authors have for one.

    Places are Dropout layers and the dropout of attention weights where it is a number, those with
    a published rate of 0 included. Timer (84M) and Sundial have few, TimesFM has none: `n/a`.
    """

    name: ClassVar[str] = "dropout"

    p: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Set the rate in place; weights are not touched."""
        num_places = 0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = self.p
            elif type(getattr(module, "dropout", None)) in (int, float):
                module.dropout = self.p  # type: ignore[assignment]
            else:
                continue
            num_places += 1
        if num_places == 0:
            raise NotApplicable(f"{model.name} has no dropout")
        return model
