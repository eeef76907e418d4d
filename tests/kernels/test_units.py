"""One pruning step of all layers: exact counts, floors, zeros, moving averages, lists, refusals."""

import math

import masked_oracles as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sffkernels import Units, live_list, mask_moments, masked_linear, update_scores
from sffkernels.units import UPDATE_SCORES


def scored(scores, sizes, granularity=1, **options):
    """Units whose first "released" score is `scores`, after one update."""
    units = Units(sizes, granularity=granularity)
    units.moments[0] = -torch.tensor(scores)
    options = {"num_samples": 1, "ratio": 0.0, "ema": 0.5, "scoring": "released"} | options
    update_scores(units, **options)
    return units


def expected_live(scores, sizes, ratio, floor, zeros):
    """The rule of the docstring, unit by unit."""
    units, start = [], 0
    for size in sizes:
        mine = sorted(range(start, start + size), key=lambda i: (abs(scores[i]), i))
        units += mine[: max(0, size - math.ceil(floor * size))]
        start += size
    free = {i for i in units if scores[i] == 0 and zeros == "free"}
    n = sum(score != 0 or zeros == "ranked" for score in scores)
    order = sorted((i for i in units if i not in free), key=lambda i: (abs(scores[i]), i))
    gone = free | set(order[: math.ceil(ratio * n)])
    return [i not in gone for i in range(len(scores))]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    ratio=st.sampled_from([0.0, 0.125, 0.5, 1.0]),
    floor=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    zeros=st.sampled_from(["free", "ranked"]),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_the_lowest_of_the_whole_model_die_above_the_floor_of_each_vector(
    sizes, ratio, floor, zeros, data
):
    number = st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0, 3.0, -4.0])
    scores = data.draw(st.lists(number, min_size=sum(sizes), max_size=sum(sizes)))
    units = scored(scores, sizes, ratio=ratio, floor=floor, zeros=zeros)
    assert units.live.tolist() == expected_live(scores, sizes, ratio, floor, zeros)
    for index in range(len(sizes)):
        assert torch.equal(units.list_of(index), live_list(units.mask_of(index)))


def test_scores_follow_the_published_and_the_released_formula():
    first, second = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([9.0, 4.0, 2.0])
    for scoring, wanted in (
        ("published", (-2 * first / 4 + 4 * second / 8).abs()),
        ("released", -2 * first / 4),
    ):
        units = Units([3])
        units.moments.copy_(torch.stack([first, second]))
        update_scores(units, num_samples=4, ratio=0.0, ema=0.3, scoring=scoring, scale=2.0)
        torch.testing.assert_close(units.scores, wanted)
        units.moments.copy_(torch.stack([second, first]))
        update_scores(units, num_samples=1, ratio=0.0, ema=0.3, scoring=scoring)
        new = (-second + first / 2).abs() if scoring == "published" else -second
        torch.testing.assert_close(units.scores, 0.3 * new + 0.7 * wanted)
        assert not units.moments.any()
        assert int(units.steps) == 2


def test_scores_of_micro_batches_are_those_of_the_whole_batch():
    """|-mean g + mean g^2 / 2|, from moments added up over micro-batches."""
    x, dx = (oracle.random((6, 3, 4), seed, torch.float32) for seed in (1, 2))
    units = Units([4])
    for part in (slice(0, 2), slice(2, 6)):
        units.moments_of(0).add_(mask_moments(x[part], dx[part], None))
    update_scores(units, num_samples=6, ratio=0.0, ema=1.0)
    g = (x.double() * dx.double()).sum(1)
    wanted = (-g.mean(0) + g.square().mean(0) / 2).abs()
    torch.testing.assert_close(units.scores.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_dead_stay_dead_and_keep_their_last_score():
    units = scored([1.0, 2.0, 3.0, 4.0], [4], ratio=0.25)
    units.moments[0] = -torch.tensor([100.0, 1.0, 1.0, 1.0])
    update_scores(units, num_samples=1, ratio=0.3, ema=1.0, scoring="released")
    assert units.scores.tolist() == [1.0, 1.0, 1.0, 1.0]
    assert units.live.tolist() == [False, False, True, True]  # ceil(0.3 * 3) = 1 more, the first


def test_shares_are_exact_where_floating_point_is_not():
    assert math.ceil(0.07 * 100) == 8
    units = scored([float(i + 1) for i in range(100)], [100], ratio=0.07)
    assert int(units.live.sum()) == 93


def test_nan_ranks_above_every_number():
    units = scored([math.nan, math.inf, 1.0], [3], ratio=0.6)
    assert units.live.tolist() == [True, False, False]


def test_groups_of_eight_give_lists_that_masked_linear_takes():
    units = scored([1.0, 2.0, 0.5, 4.0, 5.0], [16, 20], granularity=8, ratio=0.4)
    assert units.live.tolist() == [False, True, False, True, True]
    assert units.channels_of(1).tolist() == [False] * 8 + [True] * 12
    x, weight = oracle.random((3, 16), 1, torch.float64), oracle.random((20, 16), 2, torch.float64)
    y = masked_linear(x, weight, None, units.list_of(0), units.list_of(1))
    wanted = oracle.linear(x, weight, None, units.mask_of(0), units.mask_of(1), None)
    torch.testing.assert_close(y, wanted)


def test_masks_can_be_put_back():
    units, masks = Units([3, 2]), [torch.tensor([True, False, True]), torch.tensor([False, False])]
    units.set_masks(masks)
    assert [units.mask_of(i).tolist() for i in range(2)] == [mask.tolist() for mask in masks]
    assert units.lists.tolist() == [2, 0, 2, 1, 0, 0, 1]
    for wrong in (masks[:1], [masks[1], masks[0]], [mask.int() for mask in masks]):
        with pytest.raises(ValueError, match="masks must be bool of shapes"):
            units.set_masks(wrong)


def test_no_vector_at_all_is_no_error():
    units = Units([])
    update_scores(units, num_samples=1, ratio=0.5, ema=0.5)
    assert int(units.steps) == 1


def test_the_operator_passes_opcheck():
    units = Units([3, 9])
    units.moments.copy_(oracle.random((2, 12), 1))
    tensors = (units.moments, units.scores, units.live, units.lists, units.steps, units.keys)
    numbers = (0.5, 0.25, 0.4, 10**8, 0, True, True)
    torch.library.opcheck(UPDATE_SCORES, (*tensors, units.offsets, *numbers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, r"ratio must lie in \[0, 1\], got 1.5"),
        ({"ema": math.nan}, "ema must lie"),
        ({"floor": -0.1}, "floor must lie"),
        ({"num_samples": 0}, "num_samples >= 1"),
        ({"scale": math.inf}, "finite scale"),
        ({"scoring": "third"}, "scoring must be published or released, got 'third'"),
        ({"zeros": "gone"}, "zeros must be free or ranked"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(options, message):
    units = Units([4])
    units.moments.fill_(1.0)
    with pytest.raises(ValueError, match=message):
        update_scores(units, **({"num_samples": 1, "ratio": 0.5, "ema": 0.5} | options))
    assert units.live.all()
    assert units.moments.sum() == 8


def test_bad_vectors_are_refused():
    with pytest.raises(ValueError, match="granularity must be 1 or 8, got 4"):
        Units([8], granularity=4)
    with pytest.raises(ValueError, match="every mask vector needs a channel"):
        Units([8, 0])
