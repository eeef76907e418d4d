"""The mixture that MOIRAI predicts for every value: Student-t, Normal and two skew laws.

    mixture = Mixture(logits, [StudentT(df, loc, scale), ...])     # tensors of one shape [...]
    mixture.log_prob(z), mixture.mean, mixture.draw(100, generator)

In the network's normalised units. The negative binomial is the authors' continuous extension. Draws
take a generator, which `torch.distributions` does not; formulas are its where it has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, distributions

Generator = torch.Generator | None
LARGEST_RATE = 1e15  # torch counts Poisson events in 64 bits


def positive(raw: Tensor) -> Tensor:
    """softplus, at least the spacing of float32 at 1."""
    return F.softplus(raw).clamp_min(torch.finfo(torch.float32).eps)


def normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers in the shape of `like`."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


class Component:
    """One law for every value; `fields` are its parameters in the order the network gives them."""

    fields: ClassVar[tuple[str, ...]]

    def __init__(self, *params: Tensor):
        self.params = params

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        """From the network's unbounded outputs."""
        raise NotImplementedError

    def at(self, places: Tensor) -> Component:
        """The same law for some of the values, counted through all axes."""
        return type(self)(*(param.flatten()[places] for param in self.params))

    def supports(self, values: Tensor) -> Tensor:
        return torch.ones_like(values, dtype=torch.bool)

    def law(self) -> distributions.Distribution:
        raise NotImplementedError

    def log_prob(self, values: Tensor) -> Tensor:
        found: Tensor = self.law().log_prob(values)  # type: ignore[no-untyped-call]
        return found

    @property
    def mean(self) -> Tensor:
        return self.law().mean

    @property
    def variance(self) -> Tensor:
        return self.law().variance

    def draw(self, generator: Generator) -> Tensor:
        raise NotImplementedError


class StudentT(Component):
    """df = 2 + softplus, loc, scale = softplus."""

    fields = ("df", "loc", "scale")

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        return cls(2.0 + F.softplus(raw["df"]), raw["loc"], positive(raw["scale"]))

    def law(self) -> distributions.Distribution:
        df, loc, scale = self.params
        return distributions.StudentT(df, loc, scale, validate_args=False)

    def draw(self, generator: Generator) -> Tensor:
        df, loc, scale = self.params
        chi_square = 2.0 * torch._standard_gamma(df / 2.0, generator=generator)
        return loc + scale * normal(loc, generator) * (chi_square / df).rsqrt()


class Normal(Component):
    """loc, and a scale that is learned or fixed."""

    fields: ClassVar[tuple[str, ...]] = ("loc", "scale")

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        return cls(raw["loc"], positive(raw["scale"]))

    def law(self) -> distributions.Distribution:
        loc, scale = self.params
        return distributions.Normal(loc, scale, validate_args=False)

    def draw(self, generator: Generator) -> Tensor:
        loc, scale = self.params
        return loc + scale * normal(loc, generator)


class NormalFixedScale(Normal):
    """loc alone; the scale is a number of the config."""

    fields = ("loc",)

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        return cls(raw["loc"], torch.full_like(raw["loc"], settings.get("scale", 1e-3)))


class LogNormal(Normal):
    """The exponential of a normal value; support z > 0."""

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        return cls(raw["loc"], positive(raw["scale"]))

    def supports(self, values: Tensor) -> Tensor:
        return values > 0

    def law(self) -> distributions.Distribution:
        loc, scale = self.params
        return distributions.LogNormal(loc, scale, validate_args=False)

    def draw(self, generator: Generator) -> Tensor:
        return super().draw(generator).exp()


class NegativeBinomial(Component):
    """total_count r = softplus, logits l; support z >= 0, real z.

    log p(z) = r log s(-l) + z log s(l) - log B(1 + z, r) - log(r + z), s the sigmoid.
    """

    fields = ("total_count", "logits")

    @classmethod
    def of(cls, raw: dict[str, Tensor], settings: dict[str, float]) -> Component:
        return cls(F.softplus(raw["total_count"]), raw["logits"])

    def supports(self, values: Tensor) -> Tensor:
        return values >= 0

    def log_prob(self, values: Tensor) -> Tensor:
        count, logits = self.params
        log_beta = torch.lgamma(1 + values) + torch.lgamma(count) - torch.lgamma(1 + values + count)
        log_mass = count * F.logsigmoid(-logits) + values * F.logsigmoid(logits)
        return log_mass - log_beta - torch.log(count + values)

    @property
    def mean(self) -> Tensor:
        count, logits = self.params
        return count * logits.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean / torch.sigmoid(-self.params[1])

    def draw(self, generator: Generator) -> Tensor:
        count, logits = self.params
        rate = torch._standard_gamma(count, generator=generator) * logits.exp()
        return torch.poisson(rate.clamp_max(LARGEST_RATE), generator=generator)


# By the class names of published configs, `"_target_": "uni2ts.distribution.<file>.<name>"`.
KINDS: dict[str, type[Component]] = {
    "StudentTOutput": StudentT,
    "NormalOutput": Normal,
    "NormalFixedScaleOutput": NormalFixedScale,
    "NegativeBinomialOutput": NegativeBinomial,
    "LogNormalOutput": LogNormal,
}


@dataclass(frozen=True)
class Mixture:
    """sum_k softmax(logits)_k p_k(z): logits [..., K], K components with parameters [...]."""

    logits: Tensor
    components: Sequence[Component]

    def log_prob(self, values: Tensor) -> Tensor:
        """log density of z [...]; a component outside its support drops out of the sum.

        The weights of the others are not raised in turn, as published.
        """
        weights = self.logits.log_softmax(-1)
        terms = []
        for index, component in enumerate(self.components):
            inside = component.supports(values)
            safe = values.masked_fill(~inside, 1.0)  # no NaN gradient from the branch not taken
            term = weights[..., index] + component.log_prob(safe)
            terms.append(term.masked_fill(~inside, float("-inf")))
        return torch.stack(terms).logsumexp(0)

    @property
    def mean(self) -> Tensor:
        """sum_k w_k E_k; the exponentials in the last two components can be huge."""
        means = torch.stack([component.mean for component in self.components], -1)
        return (self.logits.softmax(-1) * means).sum(-1)

    @property
    def variance(self) -> Tensor:
        """sum_k w_k (V_k + E_k^2) - mean^2."""
        weights = self.logits.softmax(-1)
        means = torch.stack([component.mean for component in self.components], -1)
        spread = torch.stack([component.variance for component in self.components], -1)
        within, between = (weights * spread).sum(-1), (weights * means.square()).sum(-1)
        return within + between - self.mean.square()

    def draw(self, num_samples: int, generator: Generator) -> Tensor:
        """[...] -> [S, ...]: a component by its weight, then a value of it, and only of it."""
        edges = self.logits.softmax(-1).cumsum(-1)[..., :-1]
        shape = (num_samples, *edges.shape[:-1])
        place = torch.rand(shape, generator=generator, device=edges.device, dtype=edges.dtype)
        index = (place[..., None] > edges).sum(-1).flatten()
        values = place.flatten()  # all of them will be overwritten
        for number, component in enumerate(self.components):
            chosen = (index == number).nonzero()[:, 0]
            drawn = component.at(chosen % (place.numel() // num_samples)).draw(generator)
            values[chosen] = drawn
        return values.view(shape)

    def map(self, change: Callable[[Tensor], Tensor]) -> Mixture:
        """The mixture of changed parameters; the logits have one axis more, at the end."""
        changed = [type(part)(*(change(p) for p in part.params)) for part in self.components]
        return Mixture(change(self.logits), changed)
