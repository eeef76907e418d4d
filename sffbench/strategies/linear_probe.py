"""Linear probe: train the forecasting head alone, from its pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sffbench.strategies.base import Strategy
from sffbench.strategies.freezing import freeze_all_but_head

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM


class LinearProbe(Strategy):
    """Freeze everything but the head, which keeps its pretrained weights and has its own lr.

    A head alone is a convex problem and takes a larger step than a whole network; the released
    SFF code resets the head and trains it at 3e-5, which makes an unusually weak probe.
    """

    name: ClassVar[str] = "linear-probe"

    lr: float | None = 1e-3

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Turn off gradients outside the head."""
        freeze_all_but_head(model)
        return model
