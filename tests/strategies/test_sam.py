"""SAM against a loop written out by hand; the way back from the ascent is exact to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import models, strategies
from sffbench.context import Batches, Context, StepBudget, stream
from sffbench.data.windows import split
from sffbench.errors import InputError
from sffbench.strategies.sam import SAM
from sffbench.tasks import Forecast
from sffbench.training import Diverged, Trained

Fit = Callable[..., Trained]


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_its_formula_by_hand(
    double_fit: Fit, by_hand: Any, cosine: Any, assert_close: Any, adaptive: bool
) -> None:
    """float64 oracle: e = rho g / ||g||, or rho theta^2 g / ||theta g||; same dropout twice."""
    plain, rho = by_hand(), 0.3
    optimizer = plain.adamw(plain.model.parameters())
    for step in range(4):
        batch, state = next(plain.batches), torch.get_rng_state()
        plain.model.zero_grad()
        plain.model.loss(*batch).backward()
        kept = [p.detach().clone() for p in plain.model.parameters()]
        scale = [value.abs() if adaptive else torch.ones_like(value) for value in kept]
        grads = [p.grad.clone() for p in plain.model.parameters()]
        squared = sum(float((t * g).square().sum()) for t, g in zip(scale, grads, strict=True))
        with torch.no_grad():
            for p, t, g in zip(plain.model.parameters(), scale, grads, strict=True):
                p += rho * t * t * g / squared**0.5
        plain.model.zero_grad()
        torch.set_rng_state(state)
        plain.model.loss(*batch).backward()
        with torch.no_grad():
            for p, value in zip(plain.model.parameters(), kept, strict=True):
                p.copy_(value)
        plain.update(optimizer, 0.01 * cosine(step, 4))
    trained = double_fit("sam", lr=0.01, rho=rho, adaptive=adaptive)
    assert_close(trained.model, plain.model)


def same_bits(left: Any, right: Any) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(
        torch.equal(ours.view(torch.int32), theirs.view(torch.int32)) for ours, theirs in pairs
    )


def test_sam_at_rho_0_is_full_bit_for_bit_dropout_included(fit: Fit) -> None:
    left, right = fit("sam", rho=0.0), fit("full")
    assert same_bits(left.model, right.model)
    assert [p["train_loss"] for p in left.curve] == [p["train_loss"] for p in right.curve]
    assert not same_bits(fit("sam").model, right.model)


def _context(dataset: Any, model_seed: int = 0) -> Context:
    windows = split(dataset, "train", 32, 8)
    return Context(
        task=Forecast(8),
        seed=0,
        train=Batches(windows, 12, stream(0, "order")),
        budget=StepBudget(1, 12, 1, 1),
        clip_norm=None,
        reload=dict,
        score=lambda model: 0.0,
    )


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_way_back_from_the_ascent_is_exact_to_the_bit(
    small_ttm: Any, double_data: Any, adaptive: bool
) -> None:
    """An optimiser that does nothing must leave every bit, whatever the ascent did to it."""
    ctx = _context(double_data)
    batch = tuple(part.float() for part in next(ctx.train))
    model, before = models.load("ttm", small_ttm).train(), models.load("ttm", small_ttm)
    ctx._optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctx._optimizer.step = lambda: None  # type: ignore[method-assign]
    for rho in (0.05, 7.0):
        climbed: list[bool] = []
        ctx.loss = lambda m, b, ctx=ctx, c=climbed: (  # type: ignore[method-assign]
            c.append(same_bits(m, before)) or ctx.task.loss(m, *b)
        )
        SAM(rho=rho, adaptive=adaptive).step(model, batch, ctx)  # type: ignore[arg-type]
        assert climbed == [True, False]  # the second pass did look elsewhere
        assert same_bits(model, before)


def test_micro_batches_give_the_same_step(small_ttm: Any, double_data: Any) -> None:
    results = []
    for micro_batch in (None, 5, 1):
        ctx = _context(double_data)
        ctx.micro_batch = micro_batch
        model = models.load("ttm", small_ttm).double()  # in eval mode: dropout differs by shape
        ctx._optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = SAM().step(model, next(ctx.train), ctx)
        results.append((float(loss), model))
    for loss, model in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for ours, whole in zip(model.parameters(), results[0][1].parameters(), strict=True):
            torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)


def test_the_reported_loss_is_that_before_the_ascent(fit: Fit) -> None:
    once = {"max_steps": 1, "validate_every": 1}
    losses = [fit(name, protocol=once).curve[-1]["train_loss"] for name in ("sam", "full")]
    assert losses[0] == losses[1]


def test_a_gradient_of_zero_is_no_error_and_a_nan_is_a_divergence(
    fit: Fit, small_ttm: Any, double_data: Any
) -> None:
    ctx = _context(double_data)
    model, before = models.load("ttm", small_ttm), models.load("ttm", small_ttm)
    ctx._optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ctx.loss = lambda m, b: 0.0 * sum(p.sum() for p in m.parameters())  # type: ignore[method-assign]
    SAM().step(model, next(ctx.train), ctx)
    assert same_bits(model, before)
    broken = models.load("ttm", small_ttm)
    torch.nn.init.constant_(next(broken.parameters()), float("nan"))
    with pytest.raises(Diverged):
        fit("sam", model=broken, protocol={"num_snapshots": 0})


def test_sam_trains_what_is_not_frozen_and_leaves_the_rest(fit: Fit, small_ttm: Any) -> None:
    model = models.load("ttm", small_ttm)
    first = next(model.parameters()).requires_grad_(False)
    before = first.detach().clone()
    trained = fit("sam", model=model)
    assert torch.equal(next(trained.model.parameters()), before)


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_rho_that_is_no_radius_is_one_line(rho: float) -> None:
    with pytest.raises(InputError, match="rho"):
        strategies.get("sam", rho=rho)
