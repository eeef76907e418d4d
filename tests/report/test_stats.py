"""The statistics against arithmetic by hand and against numpy and scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from sffbench.report import stats


def test_log_ratio_pairs_by_seed_when_both_have_the_seeds():
    # log(.2/.4) = -log 2 and log(.8/.4) = +log 2: mean 0; only seeds 0 and 1 are shared
    assert stats.log_ratio({0: 0.2, 1: 0.8, 5: 9.0}, {0: 0.4, 1: 0.4, 7: 1.0}) == pytest.approx(0)


def test_log_ratio_of_a_single_run_takes_the_mean_log_of_all_baseline_seeds():
    # log .4 - (log .2 + log .8)/2 = log .4 - log .4 = 0, although seed 0 alone would give log 2
    assert stats.log_ratio({0: 0.4}, {0: 0.2, 1: 0.8}) == pytest.approx(0, abs=1e-15)


def test_log_ratio_without_a_shared_seed_takes_mean_logs():
    assert stats.log_ratio({4: 0.8}, {0: 0.4}) == pytest.approx(math.log(2))


def test_sample_sd_divides_by_n_minus_one():
    assert stats.sample_sd([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert stats.sample_sd([1.0]) is None


def test_percent_of_log_two_is_a_hundred():
    assert stats.percent(math.log(2)) == pytest.approx(100)


def test_one_way_interval_is_scipys_t_interval():
    means = np.random.default_rng(0).normal(size=4)
    found = stats.one_way(list(means))
    low, high = scipy.stats.t.interval(0.95, 3, loc=means.mean(), scale=scipy.stats.sem(means))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert (found.centre, found.df) == (pytest.approx(means.mean()), 3)


def test_one_cluster_has_a_centre_and_no_interval():
    assert stats.one_way([0.3]) == stats.Interval(0.3, None, None, 0)
    assert stats.two_way({("ttm", "ett1"): 0.1, ("ttm", "ett2"): 0.3}).low is None


def two_way_oracle(table: np.ndarray, level: float) -> tuple[float, float]:
    """The formula on a full float64 table [models, clusters], nan where a cell is absent."""
    there = ~np.isnan(table)
    residual = np.where(there, table - table[there].mean(), 0.0)
    total = there.sum()

    def variance(sums: np.ndarray) -> float:
        return float((sums**2).sum() / total**2 * len(sums) / (len(sums) - 1))

    models, clusters = variance(residual.sum(1)), variance(residual.sum(0))
    both = max(models + clusters - variance(residual[there]), models, clusters)
    half = scipy.stats.t.ppf(0.5 + level / 2, min(table.shape) - 1) * math.sqrt(both)
    centre = float(table[there].mean())
    return centre - half, centre + half


@pytest.mark.parametrize("absent", [[], [(0, 1)], [(2, 3), (0, 0)]])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_two_way_interval_is_the_formula_on_arrays(absent, level):
    table = np.random.default_rng(1).normal(size=(3, 4))
    for cell in absent:
        table[cell] = np.nan
    values = {
        (f"model {i}", f"cluster {j}"): float(table[i, j])
        for i in range(3)
        for j in range(4)
        if not np.isnan(table[i, j])
    }
    found = stats.two_way(values, level)
    assert (found.low, found.high) == pytest.approx(two_way_oracle(table, level), rel=1e-10)
    assert found.df == 2


def test_two_way_variance_by_hand_on_a_two_by_two_table():
    # mean 0, residuals +-1, +-3: model sums 4 and -4, cluster sums -2 and 2, cells 1, 3, 3, 1
    # V(model) = 2 * 32/16 = 4; V(cluster) = 2 * 8/16 = 1; V(cell) = 4/3 * 20/16 = 5/3
    # variance = max(4 + 1 - 5/3, 4, 1) = 4; t(.975, df 1) = 12.706
    values = {("a", "x"): 1.0, ("a", "y"): 3.0, ("b", "x"): -3.0, ("b", "y"): -1.0}
    assert stats.two_way(values).high == pytest.approx(2 * 12.7062047, rel=1e-8)


def rejection_rate(model_sd: float, cluster_sd: float, num_models: int) -> float:
    """How often a two-way interval excludes the true effect, 0, when effects are shared."""
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(600):
        table = rng.normal(0, 0.01, (num_models, 4))
        table += rng.normal(0, model_sd, (num_models, 1)) + rng.normal(0, cluster_sd, (1, 4))
        interval = stats.two_way({(i, j): v for (i, j), v in np.ndenumerate(table)})
        rejected += not interval.low < 0 < interval.high
    return rejected / 600


@pytest.mark.parametrize(("model_sd", "cluster_sd"), [(0.03, 0.005), (0.005, 0.03), (0.0, 0.0)])
def test_two_way_interval_keeps_its_level_when_nothing_is_better(model_sd, cluster_sd):
    # 5 % nominal; 600 draws at 6 % have a standard error of 1 %
    assert rejection_rate(model_sd, cluster_sd, num_models=8) < 0.08
