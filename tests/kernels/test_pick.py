"""The picking rule: its limits are what arithmetic says, whatever the constants."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sffkernels import Machine, Work, pick
from sffkernels.pick import step_seconds

LARGE = {"num_rows": 32768, "num_in": 768, "num_out": 3072}
shares = st.floats(0, 1)
sizes = st.integers(0, 100_000)


@given(sizes, sizes, sizes, shares, shares, st.floats(0.1, 1e6), st.booleans())
def test_it_takes_the_least_of_what_is_allowed(rows, num_in, num_out, live_in, live_out, steps, g):
    work = Work(rows, num_in, num_out, live_in, live_out)
    seconds = step_seconds(work, steps, Machine.captured() if g else Machine())
    if g:
        del seconds["slice"]
    assert seconds[pick(work, steps, captured=g)] == min(seconds.values())


def test_masks_that_stay_are_sliced_and_never_left_to_the_kernel():
    for live in (0.1, 0.25, 0.5, 0.75):
        assert pick(Work(**LARGE, live_out=live), math.inf) == "slice"


def test_masks_that_move_within_a_captured_graph_use_the_kernel_where_enough_is_dead():
    assert pick(Work(**LARGE, live_out=0.25), 1, captured=True) == "kernel"
    assert pick(Work(**LARGE, live_out=0.5), 1, captured=True) == "kernel"
    assert pick(Work(**LARGE, live_out=0.95), 1, captured=True) == "dense"


def test_small_products_stay_dense():
    for live in (0.25, 0.5):
        assert pick(Work(512, 192, 768, live_out=live), 8) == "dense"


def test_the_break_even_with_the_dense_product_is_the_kernels_efficiency():
    """Without launches and weight traffic: live share < efficiency, and nothing else."""
    machine = Machine(1e15, 1e30, 0.8, 0.0, 0.0, 1.0)
    for live, wanted in ((0.79, "kernel"), (0.81, "dense")):
        assert pick(Work(**LARGE, live_out=live), 1, captured=True, machine=machine) == wanted


def test_a_fully_live_map_is_dense():
    assert pick(Work(**LARGE), 1) == "dense"
    assert pick(Work(**LARGE), 1, captured=True) == "dense"


def test_estimates_are_those_of_the_arithmetic_by_hand():
    seconds = step_seconds(Work(1000, 100, 10, live_in=0.5, itemsize=4), 4, Machine(1e9, 1e6))
    launch, kernel_launch, reslice = 5e-6, 18e-6, 100e-6
    assert seconds["dense"] == pytest.approx(6e-3 + 6 * 4e-3 + 5 * launch)
    assert seconds["kernel"] == pytest.approx(3e-3 / 0.8 + 3 * kernel_launch)
    assert seconds["slice"] == pytest.approx(3e-3 + 3 * launch + (reslice + 4.5 * 4e-3) / 4)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ({"num_rows": -1}, "must not be negative"),
        ({"live_in": 1.5}, "live shares must lie"),
        ({"live_out": math.nan}, "live shares must lie"),
    ],
)
def test_impossible_work_is_refused(work, message):
    with pytest.raises(ValueError, match=message):
        Work(**({"num_rows": 8, "num_in": 8, "num_out": 8} | work))


def test_masks_must_move_in_some_number_of_steps():
    with pytest.raises(ValueError, match="steps_per_mask must be above 0"):
        pick(Work(8, 8, 8), 0)
