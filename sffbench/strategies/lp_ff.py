"""LP-FF, linear probing then full fine-tuning (Kumar et al., ICLR 2022).

    phase "probe": theta_head alone, the rest frozen;  phase "full": all of theta, fresh optimiser

A head that fits the features before they may move distorts them less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from sffbench.context import Phase
from sffbench.strategies.base import Strategy
from sffbench.strategies.freezing import freeze_all_but_head

if TYPE_CHECKING:
    from torch.nn import Parameter

    from sffbench.context import Context
    from sffbench.models.base import LTSM

_FROZEN = "lp-ff/frozen"


class LPFF(Strategy):
    """theta_head first, then theta: linear probe, then full fine-tuning, within one budget.

    `share` is the probe's part of the steps: one half, as the released SFF code splits its LP-FF
    (10 epochs and 10 epochs), but inside the budget that every strategy gets, not on top of it.
    `probe_lr` is the rate of `linear-probe`; `lr` is that of the second phase. The head starts from
    its pretrained weights, as in `linear-probe`; Kumar et al. start from a new one.
    """

    name: ClassVar[str] = "lp-ff"

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    probe_lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1e-3

    def phases(self, ctx: Context) -> list[Phase]:
        """The probe at its own learning rate, then everything at the run's."""
        probe = Phase("probe", self.share, lr=self.probe_lr)
        return [probe, Phase("full", 1.0 - self.share)]

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[Parameter] | Iterable[dict[str, Any]]:
        """The head alone; in the second phase also what was frozen for the first."""
        if ctx.phase.name == "probe":
            ctx.state[_FROZEN] = freeze_all_but_head(model)
        else:
            for parameter in ctx.state.pop(_FROZEN):
                parameter.requires_grad_(True)
        return super().parameters(model, ctx)
