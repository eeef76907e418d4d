"""Noise drawn in a kernel: float64 oracles on the exact words, moments, Kolmogorov-Smirnov."""

import math

import numpy as np
import pytest
import torch
from on_device import DEVICE, INTERPRETED, needs_kernels
from scipy import special, stats

from sffkernels import Init
from sffkernels.init import box_muller
from sffkernels.philox import Philox, name_words, seed_words

pytestmark = needs_kernels
if INTERPRETED or DEVICE.type == "cuda":
    import kernel_probes as probes

    from sffkernels.gpu import interpolate as gpu
    from sffkernels.gpu import table

NUM = 1 << 16
INITS = {
    "constant": (Init.constant(-0.7), None),
    "uniform": (Init.uniform(-0.3, 0.7), stats.uniform(-0.3, 1.0)),
    "normal": (Init.normal(0.5, 0.02), stats.norm(0.5, 0.02)),
    "two cuts": (Init.truncated_normal(1.0, 2.0, -3.0, 3.0), stats.truncnorm(-2, 1, 1.0, 2.0)),
    "half normal": (Init.truncated_normal(0, 1, 0, math.inf), stats.truncnorm(0, np.inf)),
    "lower tail": (Init.truncated_normal(0, 1, -math.inf, -3.0), stats.truncnorm(-np.inf, -3)),
}


@pytest.fixture(scope="module")
def drawn():
    """drawn(label): 2^16 numbers of a distribution, float64; one block in the interpreter."""
    made = {}

    def values(label):
        if label not in made:
            init, theta = INITS[label][0], torch.full((NUM,), math.nan, device=DEVICE)
            numbers = [init.a, init.b, init.low, init.high]
            with pytest.MonkeyPatch.context() as patch:
                if INTERPRETED:
                    patch.setattr(gpu, "BLOCK", NUM)
                    patch.setattr(table, "CHUNK", NUM)
                gpu.launch([theta], [], [0.0, 0.0, 1.0], [None] * 3, [init.kind], numbers, ["w"], 5)
            made[label] = theta.cpu().double().numpy()
        return made[label]

    return values


def top_bits():
    """k = word >> 8 of those numbers, as float64 [NUM / 4, 4], from the integer stream alone."""
    words = Philox(NUM // 4).words(seed_words(5), name_words("w"), 0, NUM // 4)
    return ((words.numpy().T.astype(np.int64) & 0xFFFFFFFF) >> 8).astype(np.float64)


def oracle(init):
    """The numbers in float64, by the formulas and nothing of the package's arithmetic."""
    k = top_bits()
    if init.kind == "constant":
        return np.full(NUM, init.a)
    if init.kind == "uniform":
        return (init.a + (init.b - init.a) * k / 2**24).reshape(-1)
    if init.kind == "normal":
        radius = np.sqrt(-2 * np.log((k[:, 0::2] + 1) / 2**24))
        angle = 2 * np.pi * k[:, 1::2] / 2**24
        pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 2)
        return init.a + init.b * pairs.reshape(-1)
    low, high = (init.low - init.a) / init.b, (init.high - init.a) / init.b
    below, above = stats.norm.cdf(low), stats.norm.sf(high)
    mass, u = 1 - below - above, k.reshape(-1) / 2**24
    p, q = below + mass * u, above + mass * (1 - u)
    z = np.where(p < q, special.ndtri(np.maximum(p, mass * 2**-25)), -special.ndtri(q))
    return np.clip(init.a + init.b * z, init.low, init.high)


@pytest.mark.parametrize("label", INITS)
def test_every_number_is_within_1e_6_of_float64(label, drawn):
    init = INITS[label][0]
    truth = oracle(init)
    scale = max(init.b, 1e-3) if init.kind == "normal" else np.maximum(1, np.abs(truth))
    # the sum with the mean rounds once more
    assert (np.abs(drawn(label) - truth) <= 1e-6 * scale + 6e-8 * np.abs(truth)).all()


@pytest.mark.parametrize("label", [label for label in INITS if label != "constant"])
def test_moments_and_distribution_are_right(label, drawn):
    values, truth = drawn(label), INITS[label][1]
    std = truth.std()
    assert abs(values.mean() - truth.mean()) < 4 * std / math.sqrt(NUM)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert stats.kstest(values, truth.cdf).pvalue > 1e-3


def test_normals_have_the_right_third_and_fourth_moments_and_no_memory(drawn):
    z = (drawn("normal") - 0.5) / 0.02
    assert abs(stats.skew(z)) < 4 * math.sqrt(6 / NUM)
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24 / NUM)
    for lag in (1, 2, 3, 4):
        assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 4.5 / math.sqrt(NUM)


@pytest.mark.parametrize("outermost", [True, False])
def test_normals_are_within_1e_6_of_float64_and_of_the_cpu_in_the_tails_too(outermost):
    generator = torch.Generator().manual_seed(1)
    num, top = 1 << 18, 1 << (12 if outermost else 24)
    k0 = torch.randint(0, top, (num,), generator=generator, dtype=torch.int32)
    k1 = torch.randint(0, 1 << 24, (num,), generator=generator, dtype=torch.int32)
    k0[:2], k0[2:4] = torch.tensor([0, top - 1]), 77
    k1[:9] = torch.arange(9) * (1 << 21) - torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1])
    mine = torch.stack([one.cpu() for one in probes.normals(k0.to(DEVICE), k1.to(DEVICE))])
    on_cpu = box_muller(torch.stack([k0, k1, k0, k1]).float())[:2]
    radius = (-2 * ((k0.double() + 1) / 2**24).log()).sqrt()
    angle = 2 * math.pi * k1.double() / 2**24
    truth = torch.stack([radius * angle.cos(), radius * angle.sin()])
    assert (mine - truth).abs().max() < 1e-6
    assert (mine - on_cpu).abs().max() < 1e-6
