"""The network of a cell: a checkpoint's, or one drawn at random where a suite asks for that.

    models = [{ name = "timer:base-84m", weights = "random" }]      # in a suite

Random weights need no file, so every size can be timed anywhere. What such a network costs is
real; what it forecasts says nothing, so its cells are flagged `untrained` and are never ranked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sffbench import models
from sffbench.errors import InputError
from sffbench.models import checkpoint

if TYPE_CHECKING:
    from sffbench.models.base import LTSM

RANDOM = "random"
SEED = 0  # one draw for all runs, as one checkpoint would be: the run's seed is not the weights'


def is_random(identity: Mapping[str, Any]) -> bool:
    """Whether `cell["model"]` names weights that no file holds."""
    return str(identity["weights"]).startswith(f"{RANDOM}:")


def describe(
    name: str, source: str | None, weights: str, options: Mapping[str, Any]
) -> tuple[str, str]:
    """(config hash, weights hash) for the key; the latter is `random:<seed>` for drawn weights.

    Raises `InputError` for options that the model does not take, for a missing file, and for random
    weights with a source or without a preset.
    """
    if weights != RANDOM:
        models.check_options(name, source, options, weights=weights)
        return models.describe(name, source, weights=weights)
    if source is not None:
        raise InputError(f"model {name!r}: random weights are drawn, not read: drop the source")
    config = models.preset(name).config
    models.refuse_unknown_options(name, models.get(name).variant(config), options)
    return checkpoint.config_hash(config), f"{RANDOM}:{SEED}"


def build(
    name: str,
    source: str | None,
    weights: str,
    options: Mapping[str, Any],
    *,
    lookback: int | None = None,
    horizon: int | None = None,
) -> LTSM:
    """The network on the CPU in eval mode, as `models.load` or, for "random", `models.create`."""
    if weights == RANDOM:
        return models.create(name, SEED, lookback=lookback, horizon=horizon, **options)
    return models.load(name, source, weights=weights, lookback=lookback, horizon=horizon, **options)
