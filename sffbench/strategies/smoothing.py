"""The interpolation at the heart of SFF: mix a model, in place, with a random twin of itself.

    theta <- alpha * theta_pretrained + (1 - alpha) * theta_random

The twin is never stored: theta_random is drawn where it is needed from the model's own initial
distribution, as a function of (seed, parameter name, element) alone. See `sffbench.models.twin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sffbench.models.twin import mix_

if TYPE_CHECKING:
    from sffbench.models.base import LTSM


def mix_with_random_twin(model: LTSM, alpha: float, seed: int) -> None:
    """theta <- alpha * theta + (1 - alpha) * random twin, in place.

    Every parameter once (aliases once), norm gains and biases included, buffers untouched.
    alpha = 1 leaves every bit alone; alpha = 0 gives `models.create(..., seed=seed)`.
    """
    mix_(model, alpha, model.initial(), seed=seed)
