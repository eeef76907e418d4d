"""LP-FF is two plain loops, one after the other: the head alone, then everything."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import models, strategies
from sffbench.errors import InputError
from sffbench.strategies.lp_ff import LPFF
from sffbench.training import Trained

Fit = Callable[..., Trained]


def test_lp_ff_is_a_linear_probe_and_then_full_fine_tuning_by_hand(
    double_fit: Fit, by_hand: Any, cosine: Any, assert_close: Any
) -> None:
    """float64 oracle with two optimisers, two schedules and one stream of batches."""
    plain = by_hand()
    head = list(plain.model.head.parameters())
    for parameters, peak in ((head, 0.05), (list(plain.model.parameters()), 0.01)):
        optimizer = plain.adamw(parameters)
        for step in range(3):
            plain.model.zero_grad()
            plain.loss().backward()
            for parameter in plain.model.parameters():
                if not any(parameter is one for one in parameters):
                    parameter.grad = None
            plain.update(optimizer, peak * cosine(step, 3))
    trained = double_fit("lp-ff", num_steps=6, lr=0.01, probe_lr=0.05)
    assert_close(trained.model, plain.model)


def test_the_probe_moves_the_head_and_the_second_phase_everything(fit: Fit, small_ttm: Any) -> None:
    before = dict(models.load("ttm", small_ttm).named_parameters())
    trained = fit("lp-ff", protocol={"oracle": True})
    moved = [
        {n for n, p in snapshot.model.named_parameters() if not torch.equal(p, before[n])}
        for snapshot in trained.snapshots
    ]
    assert [snapshot.step for snapshot in trained.snapshots] == [2, 4]
    assert moved[0] == {name for name in before if name.startswith("head.")}
    assert moved[1] == set(before)


def test_no_gradient_is_computed_for_what_the_probe_freezes(fit: Fit) -> None:
    seen: list[tuple[str, set[str], int]] = []

    class Watched(LPFF):
        def step(self, model: Any, batch: Any, ctx: Any) -> Any:
            loss = super().step(model, batch, ctx)
            with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
            count = sum(len(group["params"]) for group in ctx.optimizer.param_groups)
            seen.append((ctx.phase.name, with_gradient, count))
            return loss

    trained = fit(Watched())
    names = [name for name, _ in trained.model.named_parameters()]
    head = {name for name in names if name.startswith("head.")}
    assert seen[0] == seen[1] == ("probe", head, len(head))
    assert seen[2] == seen[3] == ("full", set(names), len(names))


def test_lp_ff_counts_all_parameters_as_trained(fit: Fit) -> None:
    trained = fit("lp-ff")
    assert trained.num_trained == sum(p.numel() for p in trained.model.parameters())


def test_the_share_splits_the_budget_and_adds_nothing_to_it(fit: Fit) -> None:
    assert fit("lp-ff").num_train_windows == fit("full").num_train_windows
    seen: list[str] = []

    class Watched(LPFF):
        def step(self, model: Any, batch: Any, ctx: Any) -> Any:
            seen.append(ctx.phase.name)
            return super().step(model, batch, ctx)

    fit(Watched(share=0.25))
    assert seen == ["probe", "full", "full", "full"]


def test_what_was_frozen_before_the_probe_stays_frozen(fit: Fit, small_ttm: Any) -> None:
    model = models.load("ttm", small_ttm)
    frozen, kept = next(iter(model.named_parameters()))[0], next(model.parameters())
    kept.requires_grad_(False)
    before = kept.detach().clone()
    trained = fit("lp-ff", model=model, protocol={"num_snapshots": 1, "validate_every": 4})
    assert torch.equal(dict(trained.model.named_parameters())[frozen], before)


@pytest.mark.parametrize("fields", [{"share": 0.0}, {"share": 1.0}, {"probe_lr": 0.0}])
def test_a_phase_without_steps_or_rate_is_one_line(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(fields))):
        strategies.get("lp-ff", **fields)
