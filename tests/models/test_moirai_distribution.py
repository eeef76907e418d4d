"""The laws of MOIRAI's mixture against those of scipy, densities and draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sffbench.models._moirai_distribution import (
    KINDS,
    LogNormal,
    Mixture,
    NegativeBinomial,
    Normal,
    NormalFixedScale,
    StudentT,
)

RAW = {"df": [-1.0, 2.0], "loc": [0.3, -0.5], "scale": [0.5, -1.0]}
RAW |= {"total_count": [0.4, 3.0], "logits": [0.2, -0.7]}
RAW = {name: torch.tensor(values, dtype=torch.float64) for name, values in RAW.items()}


def reference(kind, place):
    """scipy's law with the parameters of `RAW` at `place`, and its support."""
    raw = {name: values[place].item() for name, values in RAW.items()}

    def softplus(value):
        return np.log1p(np.exp(value))

    if kind is StudentT:
        return stats.t(2 + softplus(raw["df"]), raw["loc"], softplus(raw["scale"]))
    if kind is NormalFixedScale:
        return stats.norm(raw["loc"], 1e-3)
    if kind is Normal:
        return stats.norm(raw["loc"], softplus(raw["scale"]))
    if kind is LogNormal:
        return stats.lognorm(softplus(raw["scale"]), scale=np.exp(raw["loc"]))
    chance = 1 / (1 + np.exp(raw["logits"]))
    return stats.nbinom(softplus(raw["total_count"]), chance)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("place", [0, 1])
def test_each_law_is_that_of_scipy_in_float64(kind, place):
    law = kind.of(RAW, {"scale": 1e-3})
    exact = reference(kind, place)
    values = exact.ppf(np.array([0.2, 0.5, 0.9]))
    density = exact.logpmf if kind is NegativeBinomial else exact.logpdf
    for value in values:
        given = torch.full((2,), value, dtype=torch.float64)
        assert law.log_prob(given)[place].item() == pytest.approx(density(value), abs=1e-9)
    assert law.mean[place].item() == pytest.approx(exact.mean(), rel=1e-9)
    assert law.variance[place].item() == pytest.approx(exact.var(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("place", [0, 1])
def test_the_draws_of_each_law_follow_it(kind, place):
    count = 20_000
    many = {name: values[place].expand(count) for name, values in RAW.items()}
    drawn = kind.of(many, {"scale": 1e-3}).draw(torch.Generator().manual_seed(0)).numpy()
    exact = reference(kind, place)
    ordered = np.sort(drawn)
    below = np.searchsorted(ordered, ordered, side="right") / count
    distance = np.abs(below - exact.cdf(ordered)).max()
    assert distance < 2.7 / count**0.5  # Kolmogorov's 1e-6 quantile


def mixture(logits, values):
    raw = {name: entry[0].expand(values.shape) for name, entry in RAW.items()}
    names = ("StudentTOutput", "NegativeBinomialOutput", "LogNormalOutput")
    return Mixture(logits.expand(*values.shape, 3), [KINDS[name].of(raw, {}) for name in names])


def test_a_component_outside_its_support_drops_out_and_leaves_finite_gradients():
    logits = torch.tensor([0.2, -0.3, 1.1], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([-0.7, 0.0, 1.3], dtype=torch.float64)
    weights = logits.detach().softmax(-1).numpy()
    t, count, skew = (reference(kind, 0) for kind in (StudentT, NegativeBinomial, LogNormal))
    found = mixture(logits, values).log_prob(values)
    at_zero = weights[0] * t.pdf(0.0) + weights[1] * count.pmf(0)
    assert found[0].item() == pytest.approx(np.log(weights[0] * t.pdf(-0.7)), abs=1e-9)
    assert found[1].item() == pytest.approx(np.log(at_zero), abs=1e-9)
    whole = np.exp(found[2].item()) - weights[0] * t.pdf(1.3) - weights[2] * skew.pdf(1.3)
    smooth = KINDS["NegativeBinomialOutput"].of(RAW, {}).log_prob(values[2:])[0].exp().item()
    assert whole == pytest.approx(weights[1] * smooth, abs=1e-9)
    found.sum().backward()
    assert logits.grad.isfinite().all()


def test_the_draws_of_a_mixture_choose_components_by_weight():
    logits = torch.tensor([0.2, -0.3, 1.1], dtype=torch.float64)
    values = mixture(logits, torch.zeros(4, 5, dtype=torch.float64))
    drawn = values.draw(2_000, torch.Generator().manual_seed(0))
    assert drawn.shape == (2_000, 4, 5)
    weights = logits.softmax(-1).numpy()
    t, count, skew = (reference(kind, 0) for kind in (StudentT, NegativeBinomial, LogNormal))
    for place in (-0.5, 0.5, 1.5, 3.5):
        expected = weights @ np.array([t.cdf(place), count.cdf(place), skew.cdf(place)])
        share = (drawn <= place).double().mean().item()
        assert share == pytest.approx(expected, abs=5 * 0.5 / 40_000**0.5)
