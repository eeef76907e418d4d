"""L2-SP, mixout, weight decay, dropout: one step of each against plain float64 loops."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sffkernels
from sffbench import models, strategies
from sffbench.errors import InputError, NotApplicable
from sffbench.models.base import LTSM
from sffbench.strategies.anchors import in_head
from sffbench.strategies.base import Strategy
from sffbench.training import Trained

Fit = Callable[..., Trained]
ONE_STEP = {"max_steps": 1, "validate_every": 1, "weight_decay": 0.0}


def same_weights(left: LTSM, right: LTSM) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def named(model: LTSM) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()


def cosine(lr: float, num_steps: int) -> list[float]:
    return [0.5 * lr * (1 + math.cos(math.pi * t / num_steps)) for t in range(num_steps)]


OFF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # fields, protocol's fields
    "l2-sp": ({"strength": 0.0}, {"weight_decay": 0.0}),
    "mixout": ({"p": 0.0}, {}),
    "weight-decay": ({"decay": 0.01}, {"weight_decay": 0.01}),
}


@pytest.mark.parametrize("name", list(OFF))
def test_a_regulariser_that_is_off_is_full_bit_for_bit(fit: Fit, name: str) -> None:
    fields, rules = OFF[name]
    assert same_weights(fit(name, protocol=rules, **fields).model, fit(protocol=rules).model)


@pytest.mark.parametrize("name", [*OFF, "dropout"])
def test_a_regulariser_changes_training_and_repeats_its_bits(fit: Fit, name: str) -> None:
    first, again = fit(name), fit(name)
    assert same_weights(first.model, again.model)
    assert not same_weights(first.model, fit().model)


# -- l2-sp -----------------------------------------------------------------------------------------


def test_l2_sp_pulls_each_step_towards_the_pretrained_weights(fit: Fit, small_ttm: Path) -> None:
    """One step: that of full, then lr * strength of the way back."""
    full = dict(named(fit(protocol=ONE_STEP).model))
    start = dict(named(models.load("ttm", small_ttm)))
    held = fit("l2-sp", strength=20.0, protocol=ONE_STEP).model
    for name, new in named(held):
        back = 0.01 * 20.0
        expected = [
            (1 - back) * moved + back * old
            for moved, old in zip(
                full[name].double().flatten().tolist(),
                start[name].double().flatten().tolist(),
                strict=True,
            )
        ]
        torch.testing.assert_close(
            new.double().flatten(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-8
        )


def test_a_pull_of_one_or_more_is_the_way_back_and_not_beyond(fit: Fit, small_ttm: Path) -> None:
    held = fit("l2-sp", strength=1e9, protocol=ONE_STEP).model
    assert same_weights(held, models.load("ttm", small_ttm))


def test_the_pull_follows_the_schedule(fit: Fit, small_ttm: Path) -> None:
    """Without the steps of Adam a displacement fades by a product over the schedule."""
    start = dict(named(models.load("ttm", small_ttm)))

    class Displaced(strategies.strategy_class("l2-sp")):  # type: ignore[misc]
        def prepare(self, model: LTSM, ctx: Any) -> LTSM:
            sffkernels.interpolate_(list(model.parameters()), 1.5)
            return model

        def step(self, model: LTSM, batch: Any, ctx: Any) -> Any:
            kept = [p.detach().clone() for p in model.parameters()]
            step = ctx.optimizer.step
            ctx.optimizer.step = lambda: sffkernels.interpolate_(
                list(model.parameters()), 0.0, other=kept, b=1.0
            )
            loss = super().step(model, batch, ctx)
            ctx.optimizer.step = step
            return loss

    rules = {"num_snapshots": 1, "validate_every": 4}
    trained = fit(Displaced(strength=30.0), protocol=rules)
    left = math.prod(1 - 30.0 * lr for lr in cosine(0.01, 4))
    for name, new in named(trained.model):
        expected = start[name].double() * (1 + 0.5 * left)
        torch.testing.assert_close(new.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("why", ["hold_head", "new_head"])
def test_a_head_that_is_not_held_decays_plainly(fit: Fit, small_ttm: Path, why: str) -> None:
    full = dict(named(fit(protocol=ONE_STEP).model))
    start = dict(named(models.load("ttm", small_ttm)))
    model = models.load("ttm", small_ttm)
    model.new_head = why == "new_head"
    fields = {"hold_head": why != "hold_head", "head_decay": 3.0, "strength": 1e9}
    freed = fit("l2-sp", model=model, protocol=ONE_STEP, **fields).model
    heads = 0
    for name, new in named(freed):
        if in_head(freed, name):
            heads += 1  # AdamW: theta (1 - lr decay), then its update
            expected = full[name].double() - 0.01 * 3.0 * start[name].double()
            torch.testing.assert_close(new.double(), expected, rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(new, start[name])
    assert heads


def test_what_the_checkpoint_does_not_know_is_refused(fit: Fit, small_ttm: Path) -> None:
    class Widened(strategies.strategy_class("l2-sp")):  # type: ignore[misc]
        def prepare(self, model: LTSM, ctx: Any) -> LTSM:
            model.extra = nn.Parameter(torch.ones(1))
            return model

    with pytest.raises(InputError, match="'extra' has no pretrained value"):
        fit(Widened())


# -- mixout ----------------------------------------------------------------------------------------


class _Probe(strategies.strategy_class("mixout")):  # type: ignore[misc]
    """Mixout that keeps what forward and backward saw, and what the optimiser got."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 pydantic copies it

    def prepare(self, model: LTSM, ctx: Any) -> LTSM:
        with torch.no_grad():  # away from the pretrained weights, or there is nothing to mix
            for theta in model.parameters():
                theta.add_(0.1)
        return model

    def step(self, model: LTSM, batch: Any, ctx: Any) -> Any:
        entry: dict[str, Any] = {"before": {n: p.clone() for n, p in named(model)}}
        backward, clip = ctx.backward, ctx.clip

        def spy(model: LTSM, batch: Any) -> Tensor:
            entry["mixed"] = {name: p.clone() for name, p in named(model)}
            loss: Tensor = backward(model, batch)
            entry["gradient"] = {n: p.grad.clone() for n, p in model.named_parameters()}
            return loss

        def clipped(model: LTSM) -> None:
            entry["after"] = {name: p.clone() for name, p in named(model)}
            entry["given"] = {n: p.grad.clone() for n, p in model.named_parameters()}
            clip(model)

        ctx.backward, ctx.clip = spy, clipped
        loss = super().step(model, batch, ctx)
        del ctx.backward, ctx.clip  # the methods of the class again
        self.seen.append(entry)
        return loss


@pytest.fixture
def probe(fit: Fit) -> list[dict[str, Any]]:
    strategy = _Probe(p=0.6)
    fit(strategy, protocol={"max_steps": 3, "validate_every": 3})
    return list(strategy.seen)


def _linear(model: LTSM) -> set[str]:
    return {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def test_mixout_forwards_mixed_weights_and_steps_the_others(
    probe: list[dict[str, Any]], small_ttm: Path
) -> None:
    """float64: u where the mask is 0, else u + (w - u) / (1 - p); the gradient by the chain."""
    model = models.load("ttm", small_ttm)
    pretrained, linear = dict(named(model)), _linear(model)
    assert len(probe) == 3
    for step, entry in enumerate(probe):
        for name, w in entry["before"].items():
            assert torch.equal(entry["after"][name], w)
            if name not in linear:
                assert torch.equal(entry["mixed"][name], w)
                assert torch.equal(entry["given"][name], entry["gradient"][name])
                continue
            law, stream = sffkernels.Init.uniform(0.0, 1.0), f"mixout/{step}/{name}"
            stays = sffkernels.draw(law, w.shape, seed=0, name=stream) >= 0.6
            u = pretrained[name].double()
            scaled = u + (w.double() - u) / 0.4
            expected = torch.where(stays, scaled, u)
            torch.testing.assert_close(
                entry["mixed"][name].double(), expected, rtol=1e-5, atol=1e-6
            )
            assert torch.equal(entry["mixed"][name][~stays], pretrained[name][~stays])
            chain = torch.where(stays, entry["gradient"][name].double() / 0.4, 0.0)
            torch.testing.assert_close(entry["given"][name].double(), chain, rtol=1e-6, atol=0.0)


def test_the_share_of_pretrained_elements_is_p(
    probe: list[dict[str, Any]], small_ttm: Path
) -> None:
    model = models.load("ttm", small_ttm)
    pretrained, linear = dict(named(model)), _linear(model)
    masks = [
        torch.cat([(e["mixed"][n] == pretrained[n]).flatten() for n in sorted(linear)])
        for e in probe
    ]
    for mask in masks:
        spread = math.sqrt(0.6 * 0.4 / mask.numel())
        assert abs(float(mask.double().mean()) - 0.6) < 5 * spread
    assert not torch.equal(masks[0], masks[1])


class _Cubic(LTSM, registered=False):
    """A loss of its weights alone, in float64."""

    name = "cubic"

    def __init__(self) -> None:
        super().__init__({})
        self.map = nn.Linear(3, 2, bias=False, dtype=torch.float64)

    def value(self) -> Tensor:
        return (self.map.weight**3).sum()


def test_the_gradient_of_mixout_is_that_of_its_loss_by_differences() -> None:
    model = _Cubic()
    pretrained = {"map.weight": torch.linspace(-1, 1, 6).double().view(2, 3)}
    losses: list[float] = []

    def backward(model: Any, batch: Any) -> Tensor:
        loss = model.value()
        losses.append(loss.item())
        loss.backward()
        return loss

    def loss_at(weight: Tensor) -> float:
        with torch.no_grad():
            model.map.weight.copy_(weight)
        optimizer = SimpleNamespace(zero_grad=lambda **_: None, step=lambda: None)
        fields = {"seed": 0, "step": 0, "state": {}, "pretrained": pretrained}
        ctx = SimpleNamespace(
            **fields, optimizer=optimizer, backward=backward, clip=lambda model: None
        )
        model.zero_grad()
        strategies.get("mixout", p=0.5).step(model, None, ctx)
        return losses[-1]

    start = torch.linspace(0.2, -0.7, 6).double().view(2, 3)
    loss_at(start)
    given = model.map.weight.grad.clone()
    assert 0 < int((given == 0).sum()) < 6  # some elements are pretrained ones, some are not
    for index in range(6):
        step = torch.zeros(6).double()
        step[index] = 1e-5
        up, down = (loss_at(start + sign * step.view(2, 3)) for sign in (1, -1))
        expected = (up - down) / 2e-5
        assert float(given.flatten()[index]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_weights_are_given_back_when_backward_fails(fit: Fit, small_ttm: Path) -> None:
    model = models.load("ttm", small_ttm)

    class Failing(_Probe):
        def step(self, model: LTSM, batch: Any, ctx: Any) -> Any:
            ctx.backward = lambda model, batch: 1 / 0
            return strategies.strategy_class("mixout").step(self, model, batch, ctx)

    with pytest.raises(ZeroDivisionError):
        fit(Failing(p=0.6), model=model)
    for name, start in named(models.load("ttm", small_ttm)):
        assert torch.equal(dict(named(model))[name], start + 0.1)


# -- weight decay and dropout ----------------------------------------------------------------------


def test_weight_decay_shrinks_before_the_step_of_adam(fit: Fit, small_ttm: Path) -> None:
    full = dict(named(fit(protocol=ONE_STEP).model))
    start = dict(named(models.load("ttm", small_ttm)))
    for name, new in named(fit("weight-decay", decay=5.0, protocol=ONE_STEP).model):
        expected = full[name].double() - 0.01 * 5.0 * start[name].double()
        torch.testing.assert_close(new.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", models.names())
def test_dropout_acts_in_every_model_that_has_a_place_for_it(name: str) -> None:
    strategy: Strategy = strategies.get("dropout", p=0.9)
    model = models.load(f"{name}:tiny")
    if name == "timesfm":
        with pytest.raises(NotApplicable, match="timesfm has no dropout"):
            strategy.prepare(model, None)  # type: ignore[arg-type]
        return
    before = {key: value.clone() for key, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(2, 1, model.lookback, generator=generator)
    model = strategy.prepare(model, None).eval()  # type: ignore[arg-type]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    still = [_forecast(model, past) for _ in range(2)]
    assert torch.equal(*still)
    drawn = [_forecast(model.train(), past) for _ in range(2)]
    assert not torch.equal(*drawn)


def _forecast(model: LTSM, past: Tensor) -> Tensor:
    with torch.no_grad():
        return model._forecast(past, 8, generator=torch.Generator().manual_seed(1))
