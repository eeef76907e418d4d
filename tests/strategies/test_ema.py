"""EMA: what validation sees is the weighted mean of the weights that training went through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import models
from sffbench.strategies.ema import EMA
from sffbench.training import Trained

Fit = Callable[..., Trained]


class Watched(EMA):
    """Keeps the trained weights before the first step and after every one."""

    seen: list[Any] = []  # noqa: RUF012 pydantic copies it

    def step(self, model: Any, batch: Any, ctx: Any) -> Any:
        if not self.seen:
            self.seen.append({n: p.detach().double() for n, p in model.named_parameters()})
        loss = super().step(model, batch, ctx)
        self.seen.append({n: p.detach().double() for n, p in model.named_parameters()})
        return loss


def _mean(watched: Watched, decay: float, num_steps: int, name: str) -> torch.Tensor:
    mean = watched.seen[0][name]
    for t in range(1, num_steps + 1):
        d = min(decay, (1 + t) / (10 + t))
        mean = d * mean + (1 - d) * watched.seen[t][name]
    return mean


@pytest.mark.parametrize("decay", [0.999, 0.2, 0.0])
def test_the_tested_weights_are_the_moving_average_by_hand(fit: Fit, decay: float) -> None:
    """float64 oracle from theta_0 on; decay = 0.2 ends the warm-up after its first step."""
    watched = Watched(decay=decay)
    trained = fit(watched, protocol={"max_steps": 6, "oracle": True})
    assert [snapshot.step for snapshot in trained.snapshots] == [2, 4, 6]
    for snapshot in trained.snapshots:
        for name, value in snapshot.model.named_parameters():
            expected = _mean(watched, decay, snapshot.step, name)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_decay_of_0_is_full_bit_for_bit(fit: Fit) -> None:
    pairs = zip(
        fit("ema", decay=0.0).model.parameters(), fit("full").model.parameters(), strict=True
    )
    assert all(torch.equal(left, right) for left, right in pairs)


def test_averaging_leaves_training_alone(fit: Fit) -> None:
    losses = [[p["train_loss"] for p in fit(name).curve] for name in ("ema", "full")]
    assert losses[0] == losses[1]


def test_buffers_and_ties_survive(fit: Fit, small_ttm: Any) -> None:
    model = models.load("ttm", small_ttm)
    model.register_buffer("table", torch.arange(5.0))
    model.again = model.head
    trained = fit("ema", model=model).model
    assert torch.equal(trained.table, torch.arange(5.0))
    assert trained.again is trained.head
