"""SFF, smoothed full fine-tuning (ICLR 2026): interpolate with a random twin, then fine-tune.

    theta_0 = alpha * theta_pretrained + (1 - alpha) * theta_random;  then as `full`

alpha weighs the pretrained side; the headline value is the released code's 0.7, untuned. What
changes the twin or its weight is a field; what puts something else in the twin's place is a
strategy of its own: `shrink`, `sff-noise`, `sff-permuted`, `sff-rescaled`, `gaussian-noise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from sffbench.models.base import InitName
from sffbench.strategies.base import Strategy
from sffbench.strategies.groups import check_words, values_by_name
from sffbench.strategies.smoothing import mix_with_random_twin

if TYPE_CHECKING:
    from sffbench.context import Context
    from sffbench.models.base import LTSM

Alpha = Annotated[float, Field(ge=0.0, le=1.0)]


class SFF(Strategy):
    """Mix once before training, with the run's seed; alpha=1 is `full`, alpha=0 `from-scratch`.

    init: the twin's distribution, "published" as the authors of the model have it, or "usable",
        which replaces the degenerate ones among them (docs/models.md).
    twin_seed: the twin's own seed; None takes the run's, which also orders the data.
    groups: an alpha for parts of the network, `{ norms = 1.0 }` to leave the norms out,
        `{ head = 1.0 }` the head; see `strategies/groups.py` for the words and patterns.
    """

    name: ClassVar[str] = "sff"
    added: ClassVar[frozenset[str]] = frozenset({"init", "twin_seed", "groups"})

    alpha: Alpha = 0.7
    init: InitName = "usable"
    twin_seed: int | None = None
    groups: dict[str, Alpha] = {}  # noqa: RUF012 pydantic copies it

    @field_validator("groups")
    @classmethod
    def _known_groups(cls, value: dict[str, float]) -> dict[str, float]:
        check_words(value)
        return value

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """Smooth the pretrained weights in place."""
        seed = ctx.seed if self.twin_seed is None else self.twin_seed
        alphas = values_by_name(model, self.groups)
        mix_with_random_twin(model, self.alpha, seed, init=self.init, alphas=alphas)
        return model
