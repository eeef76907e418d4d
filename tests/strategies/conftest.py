"""Fine-tuning written out by hand, in float64: the oracle beside the training loop's strategies."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sffbench import data, models
from sffbench.context import Batches, stream
from sffbench.data.dataset import Dataset
from sffbench.data.windows import split
from sffbench.models.base import LTSM
from sffbench.training import Trained


@dataclasses.dataclass
class ByHand:
    """What a plain loop needs: a float64 model, its batches, and AdamW as the fixture `fit` has it.

    The dropout stream is the run's own from the moment this is made.
    """

    model: LTSM
    batches: Iterator[tuple[Tensor, Tensor]]

    def loss(self) -> Tensor:
        """The loss of the next batch."""
        return self.model.loss(*next(self.batches))

    def adamw(self, parameters: Iterable[Tensor]) -> torch.optim.AdamW:
        return torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.01, fused=False)

    def update(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        """Clip to norm 1, step at `lr`."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.cat([grad.flatten() for grad in grads]).norm())
        for grad in grads:
            grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()


@pytest.fixture
def double_data() -> Dataset:
    """The synthetic ETTh1 in float64."""
    twin = data.load("ETTh1", "", source="synthetic")
    return dataclasses.replace(twin, scaled=twin.scaled.double())


@pytest.fixture
def by_hand(small_ttm: Path, double_data: Dataset) -> Callable[..., ByHand]:
    """by_hand(seed): the small TTM in training mode and the batches that `fit` gives it."""

    def make(seed: int = 0) -> ByHand:
        model = models.load("ttm", small_ttm).double().train()
        torch.manual_seed(stream(seed, "dropout").initial_seed())
        windows = split(double_data, "train", 32, 8)
        return ByHand(model, Batches(windows, 16, stream(seed, "data order")))

    return make


@pytest.fixture
def double_fit(
    fit: Callable[..., Trained], small_ttm: Path, double_data: Dataset
) -> Callable[..., Trained]:
    """`fit` in float64, tested on what the last step left: one validation, after it."""

    def run(strategy: Any, num_steps: int = 4, **fields: Any) -> Trained:
        model = models.load("ttm", small_ttm).double()
        rules = {"max_steps": num_steps, "validate_every": num_steps, "num_snapshots": 1}
        return fit(strategy, model=model, dataset=double_data, protocol=rules, **fields)

    return run


@pytest.fixture
def cosine() -> Callable[[int, int], float]:
    """Factor of step t of T."""
    return lambda step, num_steps: 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


@pytest.fixture
def assert_close() -> Callable[[LTSM, LTSM], None]:
    """The same names, and values within float64 rounding of a few steps."""

    def check(ours: LTSM, theirs: LTSM) -> None:
        expected = dict(theirs.named_parameters())
        assert [name for name, _ in ours.named_parameters()] == list(expected)
        for name, value in ours.named_parameters():
            torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=name)

    return check
