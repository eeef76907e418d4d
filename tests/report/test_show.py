"""One run, readable, and how it is found."""

import pytest

from sffbench.errors import InputError
from sffbench.report import find, show


def test_show_tells_identity_protocol_metrics_selection_curve_cost_and_environment(record):
    run = record(mse=0.4123, fields={"alpha": 0.7}, strategy="sff") | {"warnings": ["odd rows"]}
    text = show([run], run["key"][:6])
    for part in (
        run["key"],
        "ttm:r2-512-96",
        "ETTh1",
        "alpha=0.7",
        "name=standard, version=1",
        "max_steps=300",
        "mse=0.4123",
        "num_windows=19495",
        "step 150, on validation only",
        "odd rows",
        "train_windows_per_s",
        "Some(R) CPU",
    ):
        assert part in text
    selected = [line for line in text.splitlines() if "<- selected" in line]
    assert [line.split()[0] for line in selected] == ["150"]


def test_a_failed_run_shows_its_reason(record):
    run = record(mse=None, status="failed", reason="diverged: loss is NaN at step 7")
    assert "failed: diverged: loss is NaN at step 7" in show([run], run["key"])


def test_two_devices_of_one_cell_are_one_run_and_the_newest_ok_is_shown(record):
    old = record(device_name="old", finished_at="2026-01-01")
    new = record(device_name="new", finished_at="2026-01-02")
    assert find([old, new], old["key"]) is new
    assert find([old, new], f"{old['key']}/{old['performance_key']}") is old


def test_an_ambiguous_prefix_names_the_candidates(record):
    runs = [record(seed=seed) | {"key": f"abc{seed}"} for seed in range(2)]
    with pytest.raises(InputError, match=r"'abc' is ambiguous, 2 match: abc0 \(.* seed 0\), abc1"):
        show(runs, "abc")


def test_an_unknown_prefix_names_the_nearest_run(record):
    runs = [record() | {"key": key} for key in ("abcdef", "xyz123")]
    with pytest.raises(InputError, match=r"no run 'abd'; nearest: abcdef \(.*\)$"):
        show(runs, "abd")


def test_an_empty_store_says_so():
    with pytest.raises(InputError, match="holds no records"):
        show([], "a")
