"""The interpolation at the heart of SFF: mix a model, in place, with a random twin of itself.

    theta <- alpha * theta_pretrained + (1 - alpha) * theta_random

The twin is never stored: theta_random is drawn where it is needed from the model's own initial
distribution, as a function of (seed, parameter name, element) alone. See `sffbench.models.twin`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sffbench.models.base import InitName
from sffbench.models.twin import mix_

if TYPE_CHECKING:
    from sffbench.models.base import LTSM


def mix_with_random_twin(
    model: LTSM,
    alpha: float,
    seed: int,
    *,
    init: InitName = "usable",
    alphas: Mapping[str, float] | None = None,
) -> None:
    """theta <- alpha * theta + (1 - alpha) * random twin, in place.

    Every parameter once (aliases once), norm gains and biases included, buffers untouched.
    alpha = 1 leaves every bit alone; alpha = 0 gives `models.create(..., seed=seed)`. `alphas`
    names the parameters that have an alpha of their own.
    """
    names_of = defaultdict(set)
    for name, _ in model.named_parameters():
        names_of[(alphas or {}).get(name, alpha)].add(name)
    for own, names in names_of.items():
        mix_(model, own, model.initial(init), seed=seed, only=names)
