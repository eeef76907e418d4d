"""Noise: float64 oracles on the exact words, moments, Kolmogorov-Smirnov, and bad distributions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import sffkernels.plain as module
from sffkernels import Init, draw
from sffkernels.init import box_muller, quantile_magnitude, sample
from sffkernels.philox import Philox, name_words, seed_words

NUM = 200_000
INITS = {
    "uniform": (Init.uniform(-0.3, 0.7), stats.uniform(-0.3, 1.0)),
    "normal": (Init.normal(0.5, 0.02), stats.norm(0.5, 0.02)),
    "two sided": (Init.truncated_normal(1.0, 2.0, -3.0, 3.0), stats.truncnorm(-2, 1, 1.0, 2.0)),
    "half normal": (Init.truncated_normal(0, 1, 0, math.inf), stats.truncnorm(0, np.inf)),
    "upper tail": (Init.truncated_normal(0, 1, 2.0, 5.0), stats.truncnorm(2, 5)),
    "lower tail": (Init.truncated_normal(0, 1, -math.inf, -3.0), stats.truncnorm(-np.inf, -3)),
    "wide": (Init.truncated_normal(0, 0.02, -2.0, 2.0), stats.norm(0, 0.02)),
}


def top_bits(seed: int, name: str, num: int) -> np.ndarray:
    """k = word >> 8 as float64 [num, 4], from the integer stream alone."""
    words = Philox(num).words(seed_words(seed), name_words(name), 0, num)[:, :num]
    return ((words.numpy().T.astype(np.int64) & 0xFFFFFFFF) >> 8).astype(np.float64)


def noise(init: Init, num: int = NUM, seed: int = 0, name: str = "w") -> np.ndarray:
    return draw(init, (num,), seed=seed, name=name).double().numpy()


@pytest.mark.parametrize("label", INITS)
def test_moments_and_distribution_are_right(label):
    init, truth = INITS[label]
    values, std = noise(init), truth.std()
    assert abs(values.mean() - truth.mean()) < 4 * std / math.sqrt(NUM)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert stats.kstest(values, truth.cdf).pvalue > 1e-3


@pytest.mark.parametrize("label", INITS)
def test_neighbours_are_uncorrelated(label):
    values = noise(INITS[label][0])
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4.5 / math.sqrt(NUM)


def test_other_seeds_and_other_names_give_unrelated_noise():
    base = noise(Init.normal())
    for other in (noise(Init.normal(), seed=1), noise(Init.normal(), seed=1 << 32)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 4.5 / math.sqrt(NUM)
    assert abs(np.corrcoef(base, noise(Init.normal(), name="v"))[0, 1]) < 4.5 / math.sqrt(NUM)


def test_uniforms_are_the_top_24_bits_of_the_words():
    k = top_bits(3, "u", 500).reshape(-1)
    got = draw(Init.uniform(0, 1), (2000,), seed=3, name="u").double().numpy()
    assert np.array_equal(got, k / 2**24)


def test_uniforms_on_an_interval_are_within_one_rounding_of_float64():
    k = top_bits(3, "u", 500).reshape(-1)
    got = draw(Init.uniform(-0.3, 0.7), (2000,), seed=3, name="u").double().numpy()
    assert np.abs(got - (-0.3 + k / 2**24)).max() < 1.2e-7


def test_normals_are_within_1e_6_of_float64_box_muller():
    k = top_bits(9, "z", 250_000)
    radius = np.sqrt(-2 * np.log((k[:, 0::2] + 1) / 2**24))
    angle = 2 * np.pi * k[:, 1::2] / 2**24
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2).reshape(-1)
    got = draw(Init.normal(), (1_000_000,), seed=9, name="z").double().numpy()
    assert np.abs(got - expected).max() < 1e-6


def test_normals_hold_at_the_corners_of_the_words():
    corners = [0, 1, 2**22 - 1, 2**22, 2**22 + 1, 2**23 - 1, 2**23, 3 * 2**22, 2**24 - 2, 2**24 - 1]
    k = torch.cartesian_prod(torch.tensor(corners), torch.tensor(corners)).t().double()
    radius = (-2 * ((k[0] + 1) / 2**24).log()).sqrt()
    angle = 2 * math.pi * k[1] / 2**24
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()])
    got = box_muller(k.float().repeat(2, 1))
    assert torch.isfinite(got).all()
    assert (got[:2].double() - expected).abs().max() < 1e-6
    assert torch.equal(got[:2], got[2:])


@pytest.mark.parametrize("label", ["two sided", "half normal", "upper tail", "lower tail"])
def test_truncated_normals_are_within_1e_6_of_the_float64_inverse_cdf(label):
    init, _ = INITS[label]
    u = top_bits(4, "t", 50_000).reshape(-1) / 2**24
    low, high = (init.low - init.a) / init.b, (init.high - init.a) / init.b
    below, above = special.ndtr(low), special.ndtr(-high)
    mass = special.ndtr(-low) - above if low > 0 else special.ndtr(high) - below
    p, q = below + mass * u, above + mass * (1 - u)
    z = np.where(p < q, special.ndtri(p), -special.ndtri(q))
    got = draw(init, (200_000,), seed=4, name="t").double().numpy()
    error = np.abs(got - (init.a + init.b * z)) / (init.b * np.maximum(1, np.abs(z)))
    assert error[np.isfinite(z)].max() < 1e-6


@pytest.mark.parametrize("label", ["two sided", "half normal", "upper tail", "lower tail"])
def test_truncated_normals_stay_within_their_cuts_and_are_finite(label):
    init, _ = INITS[label]
    values = noise(init)
    assert np.isfinite(values).all()
    assert values.min() >= init.low
    assert values.max() <= init.high


@given(
    low=st.floats(-8, 2.5), width=st.floats(0.01, 12), mean=st.floats(-3, 3), std=st.floats(0.01, 3)
)
@settings(max_examples=100, deadline=None)
def test_the_outermost_words_stay_within_any_cuts(low, width, mean, std):
    low, high = mean + low * std, mean + (low + width) * std
    try:
        init = Init.truncated_normal(mean, std, low, high)
    except ValueError as error:
        assert "must keep at least" in str(error)  # noqa: PT017 - drawn at random, seldom refused
        return
    words = torch.tensor([0, 255, 256, -1, -256, -512], dtype=torch.int32).repeat(4, 1)
    values = sample(init, words)
    assert torch.isfinite(values).all()
    if not init.is_plain_normal:
        assert values.min() >= np.float32(low)
        assert values.max() <= np.float32(high)


def test_a_cut_beyond_float32_is_no_cut():
    far = draw(Init.truncated_normal(0, 1, 0, 1e300), (99,), seed=0, name="w")
    assert torch.equal(far, draw(Init.truncated_normal(0, 1, 0, math.inf), (99,), seed=0, name="w"))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_outermost_word_is_finite_where_a_cut_is_missing(sign):
    cuts = (-math.inf, 1.0) if sign < 0 else (-1.0, math.inf)
    ends = sample(Init.truncated_normal(0, 1, *cuts), torch.tensor([[0, -1]] * 4).int())
    assert torch.isfinite(ends).all()
    assert 5.0 < ends.abs().max() < 5.7


def test_the_quantile_polynomials_hold_over_their_whole_range():
    tail = torch.logspace(-37, -1, 100_001, base=2, dtype=torch.float64).float()
    expected = -special.ndtri(tail.double().numpy())
    error = np.abs(quantile_magnitude(tail.clone()).double().numpy() - expected)
    assert (error / np.maximum(1, expected)).max() < 6e-7


def test_cuts_six_std_away_give_the_very_normal():
    wide = draw(Init.truncated_normal(0, 0.02, -2, 2), (1001,), seed=1, name="w")
    plain = draw(Init.normal(0, 0.02), (1001,), seed=1, name="w")
    near = draw(Init.truncated_normal(0, 0.02, -0.1, 0.1), (1001,), seed=1, name="w")
    assert torch.equal(wide, plain)
    assert not torch.equal(near, plain)


def test_constants_are_exact_in_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        got = draw(Init.constant(0.1), (3,), seed=0, name="w", dtype=dtype)
        assert torch.equal(got, torch.full((3,), 0.1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_hold_the_float32_noise_rounded_once(dtype):
    single = draw(Init.normal(0, 0.3), (1001,), seed=2, name="w")
    other = draw(Init.normal(0, 0.3), (1001,), seed=2, name="w", dtype=dtype)
    assert torch.equal(other, single.to(dtype))


@pytest.mark.parametrize("label", INITS)
@pytest.mark.parametrize("num_counters", [16, 64, 100, 4096])
def test_the_chunk_size_changes_no_bit(label, num_counters, monkeypatch):
    init, _ = INITS[label]
    expected = draw(init, (20_001,), seed=0, name="w")
    monkeypatch.setattr(module, "CHUNK_COUNTERS", num_counters)
    assert torch.equal(draw(init, (20_001,), seed=0, name="w"), expected)


@pytest.mark.parametrize("label", INITS)
def test_a_longer_tensor_begins_with_the_shorter_one(label):
    init, _ = INITS[label]
    long = draw(init, (140_003,), seed=0, name="w")
    for num in (1, 2, 3, 5, 63, 257, 131_073):
        assert torch.equal(draw(init, (num,), seed=0, name="w"), long[:num])


def test_the_number_of_threads_changes_no_bit():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = draw(Init.normal(), (300_001,), seed=0, name="w")
        torch.set_num_threads(2)
        assert torch.equal(draw(Init.normal(), (300_001,), seed=0, name="w"), single)
    finally:
        torch.set_num_threads(before)


# Computed in plain Python, without torch: seed 0, name "w", elements 0 to 3.
FROZEN_WORDS = [0x985868C7, 0xADDD6B23, 0xDC73DDE6, 0xE5A64A01]
FROZEN_NORMALS = [-0.4386657, -0.9195800, 0.4363755, -0.3294933]


def test_the_stream_is_frozen():
    words = Philox(1).words(seed_words(0), name_words("w"), 0, 1)[:, 0]
    assert [int(word) & 0xFFFFFFFF for word in words] == FROZEN_WORDS
    values = draw(Init.normal(), (4,), seed=0, name="w").tolist()
    assert values == pytest.approx(FROZEN_NORMALS, abs=1e-6)


def test_fan_in_uniform_is_bounded_by_the_inverse_root():
    assert Init.fan_in_uniform(16) == Init.uniform(-0.25, 0.25)
    with pytest.raises(ValueError, match="fan_in"):
        Init.fan_in_uniform(0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Init("unifrom", 0.0, 1.0), "did you mean 'uniform'"),
        (lambda: Init("gamma", 1.0), "unknown init kind 'gamma'"),
        (lambda: Init.uniform(1.0, 0.0), "low <= high"),
        (lambda: Init.uniform(0.0, math.inf), "finite"),
        (lambda: Init.normal(0.0, -1.0), "negative"),
        (lambda: Init.normal(0.0, math.nan), "finite"),
        (lambda: Init.constant(1e39), "at most 1e.38"),
        (lambda: Init.normal(math.nan, 1.0), "finite"),
        (lambda: Init.constant(math.inf), "finite"),
        (lambda: Init.truncated_normal(0.0, 0.0, -1.0, 1.0), "std > 0"),
        (lambda: Init.truncated_normal(0.0, 1.0, 1.0, 1.0), "low < high"),
        (lambda: Init.truncated_normal(0.0, 1.0, math.nan, 1.0), "low < high"),
        (lambda: Init.truncated_normal(0.0, 1.0, 4.0, 5.0), "must keep at least"),
    ],
)
def test_a_bad_distribution_is_refused_where_it_is_written(build, message):
    with pytest.raises(ValueError, match=message):
        build()
