"""Scoring rules on a fixture computed by hand; the arithmetic stands in the tests."""

import math

import pytest

from sffbench.report import effects
from sffbench.report.build import build
from sffbench.report.overall import summarise


@pytest.fixture
def scored(seeds):
    """Two seeds, four data sets in three clusters; errors are powers of two times `full`'s.

    log2 ratios of sff by (data set, seed):
        ETTh1    -1, -1    mean -1   }
        ETTm1     0, -1    mean -1/2 }  cluster ett1     -3/4
        ETTh2     0,  0    mean  0      cluster ett2      0
        Weather  +1, +2    mean  3/2    cluster weather   3/2
    """
    full = {"ETTh1": (1, 2), "ETTm1": (1, 1), "ETTh2": (3, 5), "Weather": (1, 1)}
    sff = {"ETTh1": (0.5, 1), "ETTm1": (1, 0.5), "ETTh2": (3, 5), "Weather": (2, 4)}
    zero = {"ETTh1": (0.7,), "ETTm1": (1.5,), "ETTh2": (4,), "Weather": (2.9,)}
    records = []
    for name in full:
        records += seeds(*full[name], data=name, strategy="full")
        records += seeds(*sff[name], data=name, strategy="sff", fields={"alpha": 0.7})
        records += seeds(*zero[name], data=name, strategy="zero-shot")
    return records


def comparison(records, label):
    board = build(records)[0]
    row = next(row for row in board.rows if row.label == label)
    baselines = effects.Baselines.of(board)
    full, zero = baselines.find(row, "full"), baselines.find(row, "zero-shot")
    return effects.against(row, full, board), effects.losses(row, zero, board)


def test_effect_is_the_mean_over_clusters_of_seed_paired_log_ratios(scored):
    effect, _ = comparison(scored, "sff")
    # (-3/4 + 0 + 3/2) / 3 = 1/4, so the geometric mean error ratio is 2^(1/4) = 1.1892
    assert effect.interval.centre == pytest.approx(0.25 * math.log(2))
    assert effect.percent == pytest.approx(18.9207, abs=1e-4)
    assert (effect.num_cells, effect.num_clusters, effect.interval.df) == (4, 3, 2)


def test_interval_is_a_t_interval_over_cluster_means(scored):
    effect, _ = comparison(scored, "sff")
    # cluster means -3/4, 0, 3/2 have deviations -1, -1/4, 5/4 from 1/4:
    # sd = sqrt((1 + 1/16 + 25/16) / 2) = sqrt(1.3125) = 1.145644
    # half width = t(.975, df 2) * sd / sqrt(3) = 4.302653 * 1.145644 / 1.732051 = 2.845930
    # limits = 2^(0.25 -+ 2.845930) - 1 = -83.458 % and +755.0 %
    low, high = effect.limits
    assert low == pytest.approx(-83.459, abs=2e-3)
    assert high == pytest.approx(755.0, abs=0.1)


def test_a_single_zero_shot_run_is_compared_with_all_seeds_of_full(scored):
    effect, _ = comparison(scored, "zero-shot")
    # per data set log(zero) - mean log(full): full's mean logs are log sqrt2, 0, log sqrt15, 0
    one = (math.log(0.7 / math.sqrt(2)) + math.log(1.5)) / 2
    assert effect.interval.centre == pytest.approx(
        (one + math.log(4 / math.sqrt(15)) + math.log(2.9)) / 3
    )


def test_cells_worse_than_zero_shot_compare_means_over_seeds(scored):
    # sff means .75 > .7, .75 < 1.5, 4 = 4 (a tie is no loss), 3 > 2.9
    assert comparison(scored, "sff")[1] == (2, 4)
    # full means 1.5 > .7, 1 < 1.5, 4 = 4, 1 < 2.9
    assert comparison(scored, "full")[1] == (1, 4)


def test_a_failed_data_set_is_left_out_and_counted(scored):
    kept = [
        one
        if (one["cell"]["data"]["name"], one["label"]) != ("Weather", "sff")
        else one | {"status": "failed", "metrics": {}, "reason": "diverged"}
        for one in scored
    ]
    effect, worse = comparison(kept, "sff")
    assert effect.interval.centre == pytest.approx((-0.75 + 0) / 2 * math.log(2))
    assert (effect.num_cells, worse) == (3, (1, 3))


def test_two_rows_called_full_leave_nothing_to_compare_with(scored, record):
    rivals = [record(lr=0.1, data=data) for data in ("ETTh1", "ETTm1", "ETTh2", "Weather")]
    assert comparison(scored + rivals, "sff")[0] is None


def test_a_tuned_full_under_its_own_label_does_not_become_the_baseline(scored, record):
    tuned = [record(lr=0.1, data="ETTh1", label="full tuned", mse=9.0)]
    before, _ = comparison(scored, "sff")
    assert comparison(scored + tuned, "sff")[0] == before


def test_a_value_leads_only_by_more_than_the_seed_spread(seeds):
    clear = seeds(0.30, 0.31, 0.32, strategy="sff") + seeds(0.40, 0.41, 0.42, strategy="full")
    close = seeds(0.395, 0.405, 0.415, strategy="sff") + seeds(0.40, 0.41, 0.42, strategy="full")
    assert [key[0] for key in effects.leaders(build(clear)[0])] == [
        row.key for row in build(clear)[0].rows if row.label == "sff"
    ]
    assert effects.leaders(build(close)[0]) == set()


def test_leaked_unranked_and_untrained_rows_never_lead(seeds):
    full = seeds(0.40, 0.41, 0.42, strategy="full")
    for rival in (
        seeds(0.1, 0.1, 0.1, strategy="sff", leaked="yes"),
        seeds(0.1, 0.1, strategy="sff"),
        seeds(0.1, 0.1, 0.1, strategy="smoothed-zero-shot"),
    ):
        assert effects.leaders(build(full + rival)[0]) == set()


@pytest.fixture
def two_models(seeds):
    """sff against full, log2 ratios: model a -1 (ett1), -3 (weather); model b 3 (ett1), 1."""
    ratios = {
        ("a:x", "ETTh1"): -1,
        ("a:x", "Weather"): -3,
        ("b:x", "ETTh1"): 3,
        ("b:x", "Weather"): 1,
    }
    records = []
    for (model, data), power in ratios.items():
        records += seeds(1.0, model=model, data=data, strategy="full")
        records += seeds(2.0**power, model=model, data=data, strategy="sff")
    return records


def test_the_summary_over_two_models_is_clustered_both_ways(two_models):
    summary = summarise(build(two_models))[0]
    sff = next(row for row in summary.rows if row.label == "sff")
    # the table of test_stats: mean 0, standard error 2 (in log2), df = min(2, 2) - 1
    assert sff.effect.interval.centre == pytest.approx(0, abs=1e-15)
    assert sff.effect.interval.high == pytest.approx(2 * 12.7062047 * math.log(2))
    assert (sff.num_models, sff.num_cells, sff.num_possible) == (2, 4, 4)


def test_one_model_at_one_horizon_needs_no_summary(scored):
    assert summarise(build(scored)) == []


def test_horizons_are_averaged_and_are_no_replicates(seeds):
    records = []
    for horizon, power in ((96, 1), (192, 3)):
        for data in ("ETTh1", "Weather"):
            shared = {"data": data, "horizon": horizon}
            records += seeds(1.0, strategy="full", **shared)
            records += seeds(2.0 ** (power + (data == "Weather")), strategy="sff", **shared)
    summary = summarise(build(records))[0]
    sff = next(row for row in summary.rows if row.label == "sff")
    # clusters: ett1 (1 + 3)/2 = 2, weather (2 + 4)/2 = 3; mean 5/2, sd .7071, df 1
    assert sff.effect.interval.centre == pytest.approx(2.5 * math.log(2))
    assert sff.effect.interval.df == 1
    assert sff.effect.interval.high == pytest.approx((2.5 + 12.7062047 * 0.5) * math.log(2))


def test_two_checkpoints_of_one_family_count_as_one_model(seeds):
    records = []
    for preset in ("x", "y"):
        for data in ("ETTh1", "Weather"):
            records += seeds(1.0, model=f"a:{preset}", data=data, strategy="full", horizon=96)
            records += seeds(0.9, model=f"a:{preset}", data=data, strategy="full", horizon=192)
    assert summarise(build(records))[0].models == ("a",)
