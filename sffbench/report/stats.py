"""The statistics of the leaderboard, as pure functions of numbers.

    log_ratio({0: .36, 1: .37}, {0: .38, 1: .38})      # one cell, paired by seed
    one_way([-.02, -.01, -.03, 0.])                     # t interval over independent clusters
    two_way({("ttm", "ett1"): -.02, ...})               # clustered by model and by data cluster

Why clusters: six data sets are not six independent witnesses (ETTh1 and ETTm1 are one transformer),
and rows that share a model or a data set move together. Tests that count rows call noise an effect
up to two times in three; these intervals keep their level. `docs/columns.md` explains the columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Interval", "log_ratio", "mean", "one_way", "percent", "sample_sd", "two_way"]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence limits; the limits are None where one cluster gives no spread."""

    centre: float
    low: float | None
    high: float | None
    df: int


def mean(values: Collection[float]) -> float:
    """Arithmetic mean by exact summation, so that the order of records cannot change a digit."""
    return math.fsum(values) / len(values)


def sample_sd(values: Collection[float]) -> float | None:
    """sqrt(sum (x - mean)^2 / (n - 1)); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def percent(log_effect: float) -> float:
    """100 * (exp(log_effect) - 1): a mean log ratio as a change of the geometric mean."""
    return 100.0 * math.expm1(log_effect)


def log_ratio(errors: Mapping[int, float], baseline: Mapping[int, float]) -> float:
    """Mean over seeds of log(error / baseline error), for one cell.

    Paired by seed over the seeds that both have. Where `errors` has fewer seeds than the baseline
    (zero-shot is run once), or they share none, the difference of the mean logs.

    Args:
        errors: seed -> positive error. At least one.
        baseline: the same for the strategy to compare with.
    """
    shared = errors.keys() & baseline.keys()
    if len(errors) < len(baseline) or not shared:
        return _mean_log(errors.values()) - _mean_log(baseline.values())
    return mean([math.log(errors[seed] / baseline[seed]) for seed in shared])


def _mean_log(values: Iterable[float]) -> float:
    return mean([math.log(value) for value in values])


def one_way(means: Collection[float], level: float = 0.95) -> Interval:
    """Mean of the cluster means +- t(df = G - 1) * sd / sqrt(G), for G independent clusters."""
    sd = sample_sd(means)
    centre = mean(means)
    if sd is None:
        return Interval(centre, None, None, 0)
    return _interval(centre, sd / math.sqrt(len(means)), len(means) - 1, level)


def two_way(values: Mapping[tuple[Hashable, Hashable], float], level: float = 0.95) -> Interval:
    """Mean over (model, data cluster) cells with an interval clustered both ways.

    With e = value - mean, N cells, M models and G clusters,

        V(model)   = M/(M-1) * sum over models   (sum of its e)^2 / N^2
        V(cluster) = G/(G-1) * sum over clusters (sum of its e)^2 / N^2
        V(cell)    = N/(N-1) * sum over cells     e^2 / N^2
        variance   = max(V(model) + V(cluster) - V(cell), V(model), V(cluster))

    and t quantiles at df = min(M, G) - 1. The difference is the estimator of Cameron, Gelbach and
    Miller (2011); the maximum keeps it from going below either one-way variance, without which the
    interval misses its level by far when models and clusters share no effect.

    Cells may be absent: then the mean is over those present.
    """
    centre = mean(values.values())
    deviations = {cell: value - centre for cell, value in values.items()}
    num_models, by_model = _clustered_variance(deviations, {cell: cell[0] for cell in values})
    num_clusters, by_cluster = _clustered_variance(deviations, {cell: cell[1] for cell in values})
    df = min(num_models, num_clusters) - 1
    if df < 1:
        return Interval(centre, None, None, 0)
    _, by_cell = _clustered_variance(deviations, {cell: cell for cell in values})
    variance = max(by_model + by_cluster - by_cell, by_model, by_cluster)
    return _interval(centre, math.sqrt(variance), df, level)


def _clustered_variance(
    deviations: Mapping[tuple[Hashable, Hashable], float],
    group: Mapping[tuple[Hashable, Hashable], Hashable],
) -> tuple[int, float]:
    """(number of groups, variance of the mean if deviations depend on each other in a group)."""
    members: dict[Hashable, list[float]] = {}
    for cell, deviation in deviations.items():
        members.setdefault(group[cell], []).append(deviation)
    count = len(members)
    squares = math.fsum(math.fsum(values) ** 2 for values in members.values())
    return count, squares / len(deviations) ** 2 * count / max(count - 1, 1)


def _interval(centre: float, standard_error: float, df: int, level: float) -> Interval:
    # stdtrit is the t quantile; scipy.stats would add a second to every `sffbench table`
    from scipy.special import stdtrit

    half = float(stdtrit(df, 0.5 + level / 2)) * standard_error
    return Interval(centre, centre - half, centre + half, df)
