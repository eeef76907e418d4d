"""LoRA, low-rank adaptation (Hu et al., ICLR 2022), by the `peft` library.

    W x -> W x + (alpha / r) B A x,  A [r, in] random, B [out, r] zero;  then W += (alpha / r) B A

The pretrained maps stay frozen while A, B and the head are trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveInt, model_validator

from sffbench.strategies.adapters import adapted, inject, merge, require_peft
from sffbench.strategies.base import Strategy
from sffkernels import Init, interpolate_

if TYPE_CHECKING:
    from torch.nn import Parameter

    from sffbench.context import Context
    from sffbench.models.base import LTSM


class LoRA(Strategy):
    """W x + (alpha / r) B A x in every linear map outside the head; the head is trained in full.

    Rank 8 is the SFF paper's, alpha = 2 r is common practice. A low rank wants a larger step than
    all weights do, about ten times (Schulman et al., "LoRA Without Regret", 2025; Hu et al. train
    RoBERTa at 4e-4 where full fine-tuning takes 1e-5 to 3e-5): what is trained here is trained at
    `lr_factor` times the protocol's or the card's rate, and at `lr` itself where that is set.
    After training the adapters are merged, so that the tested model is a plain one.
    """

    name: ClassVar[str] = "lora"

    r: PositiveInt = 8
    alpha: PositiveInt = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    lr_factor: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 10.0

    @model_validator(mode="after")
    def _has_peft(self) -> LoRA:
        require_peft(self.name)
        return self

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Inject the adapters; A is drawn from the counter stream of the run's seed."""
        from peft import LoraConfig

        config = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.dropout)
        inject(model, config, ctx)
        _draw_down_projections(model, ctx.seed)
        return model

    def parameters(
        self, model: LTSM, ctx: Context
    ) -> Iterable[Parameter] | Iterable[dict[str, Any]]:
        """Adapters and head in one group, at their own rate."""
        factor = self.lr_factor if self.lr is None else 1.0
        assert ctx.lr is not None
        return [{"params": list(super().parameters(model, ctx)), "lr": factor * ctx.lr}]

    def finish(self, model: LTSM, ctx: Context) -> LTSM:
        """The adapters become part of the weights: official names, no other module."""
        merge(model)
        return model


def _draw_down_projections(model: LTSM, seed: int) -> None:
    """A ~ U(-1 / sqrt(in), 1 / sqrt(in)): the library's distribution, the same on any device."""
    down = {name: layer.lora_A["default"].weight for name, layer in adapted(model).items()}
    bounds = [weight.shape[1] ** -0.5 for weight in down.values()]
    init = [Init("uniform", -bound, bound) for bound in bounds]
    names = [f"{name}.lora_A" for name in down]
    interpolate_(list(down.values()), 0.0, init=init, c=1.0, seed=seed, names=names)
