"""SWA: what validation sees is the mean of the weights that training went through."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import models
from sffbench.strategies.swa import SWA
from sffbench.training import Trained

Fit = Callable[..., Trained]


class Watched(SWA):
    """Keeps the trained weights and the learning rate after every step."""

    seen: list[Any] = []  # noqa: RUF012 pydantic copies it

    def step(self, model: Any, batch: Any, ctx: Any) -> Any:
        loss = super().step(model, batch, ctx)
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.seen.append((state, ctx.optimizer.param_groups[0]["lr"]))
        return loss


def _mean(watched: Watched, steps: list[int], name: str) -> torch.Tensor:
    return torch.stack([watched.seen[step - 1][0][name].double() for step in steps]).mean(0)


@pytest.mark.parametrize(
    ("every", "steps"), [(1, [5, 6, 7, 8]), (2, [6, 8]), (3, [7]), (4, [8]), (9, [])]
)
def test_the_tested_weights_are_the_mean_of_the_visited_ones(
    fit: Fit, every: int, steps: list[int]
) -> None:
    """float64 oracle over every T0 + k * every; without one it is the trained model."""
    watched = Watched(every=every)
    once = {"max_steps": 8, "validate_every": 8, "num_snapshots": 1}
    trained = fit(watched, protocol=once)
    for name, value in trained.model.named_parameters():
        expected = _mean(watched, steps or [8], name)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_rate_is_held_from_the_start_of_averaging(fit: Fit) -> None:
    watched = Watched(every=1)
    fit(watched, lr=0.01, protocol={"max_steps": 8})
    cosine = [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    held = cosine[:4] + [cosine[4]] * 4
    assert [lr for _, lr in watched.seen] == pytest.approx([0.01 * f for f in held])
    assert cosine[4] == pytest.approx(0.5)


def test_averaging_does_not_disturb_training(fit: Fit) -> None:
    """Up to the start it is `full`, and afterwards nothing depends on how often it averages."""
    often, seldom, never = Watched(every=1), Watched(every=9), Watched(every=9, start=0.99)
    for watched, every in ((often, 1), (seldom, 8), (never, 8)):
        fit(watched, protocol={"max_steps": 8, "validate_every": every})
    for left, right in zip(often.seen, seldom.seen, strict=True):
        assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])
    full = fit("full", protocol={"max_steps": 8, "validate_every": 8})
    for name, value in full.model.named_parameters():
        assert torch.equal(value, never.seen[-1][0][name])
    for left, right in zip(often.seen[:4], never.seen[:4], strict=True):
        assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])


def test_snapshots_are_of_the_average_as_it_was(fit: Fit) -> None:
    watched = Watched(every=1)
    trained = fit(watched, protocol={"max_steps": 8, "oracle": True})
    for snapshot, steps in zip(trained.snapshots, ([2], [4], [5, 6], [5, 6, 7, 8]), strict=True):
        for name, value in snapshot.model.named_parameters():
            expected = _mean(watched, steps, name)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_run_without_validation_tests_the_average(fit: Fit) -> None:
    watched = Watched(every=2)
    trained = fit(watched, protocol={"max_steps": 8, "num_snapshots": 0})
    for name, value in trained.model.named_parameters():
        expected = _mean(watched, [6, 8], name)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_buffers_are_the_trained_models_and_ties_survive(fit: Fit, small_ttm: Any) -> None:
    model = models.load("ttm", small_ttm)
    model.register_buffer("table", torch.arange(5.0))
    model.register_buffer("count", torch.tensor(3))
    model.again = model.head  # the same module under two names
    trained = fit("swa", every=1, model=model).model
    assert torch.equal(trained.table, torch.arange(5.0))
    assert torch.equal(trained.count, torch.tensor(3))
    assert trained.again is trained.head
    assert trained is not model


def test_a_phase_of_its_own_holds_a_rate_of_its_own(fit: Fit) -> None:
    from sffbench.context import Phase

    class Phased(Watched):
        def phases(self, ctx: Any) -> list[Phase]:
            return [Phase("a", 1.0), Phase("b", 1.0, lr=0.5)]

    watched = Phased(start=0.0)
    fit(watched, lr=0.01, protocol={"max_steps": 4})
    assert [lr for _, lr in watched.seen] == pytest.approx([0.01, 0.01, 0.5, 0.5])
