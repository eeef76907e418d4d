"""`compare A B`: the effect by hand, what is paired, what is left out, what may be claimed."""

import json
import math

import pytest
from scipy.special import stdtrit

from sffbench.errors import InputError
from sffbench.report import compare, comparison
from sffbench.report.comparison_view import claim

LOG2 = math.log(2)


@pytest.fixture
def scored(seeds):
    """Two seeds, four data sets in three clusters; errors are powers of two times `full`'s.

    log2 ratios of sff by (data set, seed), seed 0 and seed 1:
        ETTh1    -1, -1   }
        ETTm1     0, -1   }  cluster ett1     seed 0: -1/2   seed 1: -1    both: -3/4
        ETTh2     0,  0      cluster ett2              0              0            0
        Weather  +1, +2      cluster weather          +1             +2          3/2
    """
    full = {"ETTh1": (1, 2), "ETTm1": (1, 1), "ETTh2": (3, 5), "Weather": (1, 1)}
    sff = {"ETTh1": (0.5, 1), "ETTm1": (1, 0.5), "ETTh2": (3, 5), "Weather": (2, 4)}
    records = []
    for name in full:
        records += seeds(*full[name], data=name, strategy="full")
        records += seeds(*sff[name], data=name, strategy="sff", fields={"alpha": 0.7})
    return records


def only(records, a="sff", b="full"):
    (found,) = comparison.compare(records, a, b)
    return found


def test_the_effect_is_the_mean_over_clusters_of_seed_paired_log_ratios(scored):
    # (-3/4 + 0 + 3/2) / 3 = 1/4
    effect = only(scored).effect
    assert effect.interval.centre == pytest.approx(LOG2 / 4)
    assert (effect.num_cells, effect.num_clusters, effect.interval.df) == (4, 3, 2)


def test_the_interval_is_a_t_interval_over_cluster_means(scored):
    # deviations -1, -1/4, 5/4: sd = sqrt(21/16), half width = t(.975, 2) sd / sqrt(3), in log 2
    half = stdtrit(2, 0.975) * math.sqrt(21 / 16) / math.sqrt(3) * LOG2
    interval = only(scored).effect.interval
    assert (interval.low, interval.high) == pytest.approx((LOG2 / 4 - half, LOG2 / 4 + half))


def test_the_seed_interval_is_over_the_effects_of_each_seed(scored):
    # seed 0: (-1/2 + 0 + 1) / 3 = 1/6; seed 1: (-1 + 0 + 2) / 3 = 1/3; mean 1/4, sd = 1/(6 sqrt 2)
    found = only(scored).over_seeds
    half = stdtrit(1, 0.975) / (6 * math.sqrt(2)) / math.sqrt(2) * LOG2
    assert found.df == 1
    assert (found.centre, found.high - found.centre) == pytest.approx((LOG2 / 4, half))


def test_swapping_the_two_turns_the_sign_and_the_outcomes(scored, record):
    extra = [record(data="Exchange", strategy="full", mse=0.3)]  # a seed set of its own
    extra += [record(data="Exchange", strategy="sff", fields={"alpha": 0.7}, mse=0.2, seed=s)
              for s in range(2)]  # fmt: skip
    one, other = only(scored + extra), only(scored + extra, "full", "sff")
    assert one.effect.interval.centre == pytest.approx(-other.effect.interval.centre)
    assert [one.count(x) for x in ("won", "lost", "tied", None)] == [
        other.count(x) for x in ("lost", "won", "tied", None)
    ]


@pytest.mark.parametrize(
    ("ours", "outcome"),
    [((0.1, 0.2), "won"), ((0.8, 0.9), "lost"), ((0.35, 0.55), "tied"), ((0.4, 0.5), "tied")],
)
def test_a_cell_is_won_only_by_more_than_the_sum_of_both_deviations(seeds, ours, outcome):
    # full: mean .45, sd .0707; ours .35, .55: sd .1414, gap 0
    records = seeds(0.4, 0.5) + seeds(*ours, strategy="sff")
    assert only(records).pairs[0].outcome == outcome


def test_with_one_seed_nobody_knows_who_won(seeds):
    found = only(seeds(0.1, strategy="sff") + seeds(0.4, 0.5))
    assert (found.pairs[0].outcome, found.over_seeds) == (None, None)
    assert found.pairs[0].log_ratio == pytest.approx(math.log(0.1 / 0.4))  # seed 0 alone
    assert [one.why for one in found.left_out] == ["full: seed 1 without a partner"]
    assert claim(found).startswith("A hint, no claim (fewer than 3 seeds): on")


def test_a_run_without_a_seed_is_the_partner_of_every_seed(seeds):
    found = only(seeds(0.2, strategy="zero-shot") + seeds(0.4, 0.8), "zero-shot", "full")
    # mean of log(.2/.4) and log(.2/.8): -(1 + 2) / 2 log 2
    assert found.effect.interval.centre == pytest.approx(-1.5 * LOG2)
    assert found.over_seeds is not None
    assert found.left_out == []


def test_a_row_without_a_model_is_the_partner_of_every_model(seeds):
    records = seeds(0.8, strategy="last-value")
    records += seeds(0.4, model="ttm:a") + seeds(0.2, model="timer:b")
    found = only(records, "last-value", "full")
    assert {pair.model: pair.log_ratio for pair in found.pairs} == {
        "ttm:a": pytest.approx(LOG2),
        "timer:b": pytest.approx(2 * LOG2),
    }


def test_two_models_are_clustered_both_ways(seeds):
    from sffbench.report import stats

    values = {("a", "ETTh1"): 2.0, ("a", "ETTh2"): 4.0, ("b", "ETTh1"): 1.0, ("b", "ETTh2"): 8.0}
    records = []
    for (model, data), ratio in values.items():
        records += seeds(1.0, model=f"{model}:x", data=data)
        records += seeds(ratio, model=f"{model}:x", data=data, strategy="sff")
    clusters = {"ETTh1": "ett1", "ETTh2": "ett2"}
    logs = {(model, clusters[data]): math.log(ratio) for (model, data), ratio in values.items()}
    assert only(records).effect.interval == stats.two_way(logs)


def test_what_is_left_out_is_told_with_its_reason(seeds, record):
    records = seeds(0.4, 0.4) + seeds(0.3, 0.3, strategy="sff")
    records += seeds(0.4, data="ETTh2")
    records += [
        record(data="ETTh2", strategy="sff", mse=None, status="failed", reason="diverged"),
        record(data="Weather"),
        record(data="Exchange", strategy="sff", seed=5),
        record(data="Exchange", seed=6),
        record(model="timer:b"),
        record(data="ETTm1", mse=0.0),
        record(data="ETTm1", strategy="sff"),
    ]
    found = only(records)
    assert [pair.data for pair in found.pairs] == ["ETTh1"]
    told = {(one.model, one.data, one.why) for one in found.left_out}
    ttm = "ttm:r2-512-96"
    assert {
        (ttm, "ETTh2", "sff failed: diverged"),
        (ttm, "Weather", "sff missing"),
        (ttm, "Exchange", "sff: seed 5 without a partner"),
        (ttm, "Exchange", "full: seed 6 without a partner"),
        (ttm, "ETTm1", "an error of exactly 0 has no ratio"),
        ("timer:b", "ETTh1", "no run of sff"),
    } <= told


def test_protocols_and_sources_are_never_pooled(seeds, quick):
    records = []
    for rules in ({}, {"protocol": quick}, {"source": "synthetic"}):
        records += seeds(0.4, **rules) + seeds(0.2, strategy="sff", **rules)
    found = comparison.compare(records, "sff", "full")
    assert len(found) == 3
    assert all(len(one.pairs) == 1 for one in found)


def test_horizons_are_pooled(seeds):
    records = []
    for horizon, error in ((96, 0.2), (192, 0.8)):
        records += seeds(0.4, horizon=horizon) + seeds(error, strategy="sff", horizon=horizon)
    assert only(records).effect.interval.centre == pytest.approx(0)


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ({"ETTh1": 0.2, "ETTh2": 0.21, "Weather": 0.19}, "sff has a lower error than full"),
        ({"ETTh1": 0.8, "ETTh2": 0.81, "Weather": 0.79}, "sff has a higher error than full"),
        ({"ETTh1": 0.8, "ETTh2": 0.4, "Weather": 0.2}, "nor are they shown to be equal"),
        ({"ETTh1": 0.2}, "too few clusters give no interval"),
    ],
)
def test_the_claim_says_what_the_interval_permits_and_for_which_checkpoint(seeds, errors, verdict):
    records = []
    for data, error in errors.items():
        records += seeds(*[0.4] * 3, data=data) + seeds(*[error] * 3, data=data, strategy="sff")
    text = claim(only(records))
    assert verdict in text
    assert "On ttm:r2-512-96 (this checkpoint alone)" in text
    assert "nothing is said of other checkpoints" in text


def test_synthetic_data_and_unranked_protocols_permit_hints_only(seeds, quick):
    rules = {"protocol": quick, "source": "synthetic", "model": "ttm:tiny"}
    found = only(seeds(0.4, **rules) + seeds(0.2, strategy="sff", **rules))
    assert claim(found).startswith("A hint, no claim (quick protocol; synthetic data; tiny presets")


@pytest.mark.parametrize("name", ["sff", "sff alpha=0.7", "mine"])
def test_a_strategy_is_named_by_its_label_or_by_its_name_and_fields(seeds, name):
    records = seeds(0.4) + seeds(0.2, strategy="sff", fields={"alpha": 0.7}, label="mine")
    assert only(records, name).a == "mine"


def test_an_exact_label_goes_before_a_name(seeds):
    records = seeds(0.4) + seeds(0.2, strategy="sff", fields={"alpha": 0.7})
    records += seeds(0.3, strategy="sff", fields={"alpha": 0.9}, label="sff alpha=0.9")
    assert only(records).pairs[0].ours == {0: 0.2}
    assert only(records, "sff alpha=0.9").pairs[0].ours == {0: 0.3}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("sf", "full", r"unknown strategy .*'sf'; did you mean 'sff b'"),
        ("sff", "full", r"'sff' could mean any of: sff a, sff b"),
        ("full", "full", "are one strategy"),
        ("sff a", "zero-shot", "share no cell"),
        ("", "full", "unknown strategy"),
    ],
)
def test_a_name_that_means_nothing_or_too_much_is_one_line(seeds, record, a, b, message):
    records = [*seeds(0.4), record(strategy="zero-shot", data="ETTh2")]
    records += seeds(0.2, strategy="sff", fields={"alpha": 0.7}, label="sff a")
    records += seeds(0.2, strategy="sff", fields={"alpha": 0.9}, label="sff b")
    with pytest.raises(InputError, match=message):
        compare(records, a, b)


def test_one_label_for_two_settings_in_two_tables_is_refused(seeds):
    records = seeds(0.4) + seeds(0.4, horizon=192)
    records += seeds(0.2, strategy="sff", fields={"alpha": 0.7}, label="x")
    records += seeds(0.2, strategy="sff", fields={"alpha": 0.9}, label="x", horizon=192)
    with pytest.raises(InputError, match=r"could mean any of: x \(alpha=0.7\), x \(alpha=0.9\)"):
        compare(records, "x", "full")


def test_no_records_are_one_line():
    with pytest.raises(InputError, match="nothing to compare"):
        compare([], "sff", "full")


def test_the_text_and_the_json_hold_the_same_numbers(scored):
    text = compare(scored, "sff", "full")
    (found,) = json.loads(compare(scored, "sff", "full", as_json=True))["comparisons"]
    assert found["effect"]["log_ratio"] == only(scored).effect.interval.centre
    assert f"{found['effect']['percent']:+.2f}%" in text
    assert found["claim"] in text
    # gaps .75, .25, 0, 2 against sums of deviations 1.06, .35, 2.83, 1.41
    assert (found["won"], found["tied"], found["lost"]) == (0, 3, 1)
    assert found["cells"][0]["a"] == {"0": 0.5, "1": 1}


def test_the_order_of_records_changes_no_byte(scored):
    for as_json in (False, True):
        texts = (compare(r, "sff", "full", as_json=as_json) for r in (scored, scored[::-1]))
        assert len(set(texts)) == 1
