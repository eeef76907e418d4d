"""What a strategy sees of a run: its data, its budget, its random streams, its optimiser.

The data end at the validation border. `Context` is the `ctx` of every hook in strategies/base.py;
training.py fills it and drives it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sffbench.data.windows import Windows
    from sffbench.models.base import LTSM
    from sffbench.protocol import Protocol
    from sffbench.tasks import Forecast

Batch = tuple[Tensor, Tensor]

UNKNOWN_STEPS = 1_000_000
"""Stands for the steps of a timed run before any was timed: all of them lie ahead."""


@dataclass(frozen=True)
class Phase:
    """One stretch of training with an optimiser and a schedule of its own.

    `share` is its part of the step budget: the shares of all phases are scaled to add up to one.
    """

    name: str = "main"
    share: float = 1.0
    lr: float | None = None


def stream(seed: int, name: str) -> torch.Generator:
    """A generator that depends on (seed, name) alone: data order never shifts dropout."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class StepBudget:
    """Steps and windows a run may spend, resolved from the protocol for one data set.

    Where time is the budget, `num_steps` is what is expected, from the first step on.
    """

    num_steps: int
    batch_size: int
    epoch_steps: int
    validate_every: int

    @classmethod
    def resolve(cls, protocol: Protocol, num_windows: int) -> StepBudget:
        """An epoch is ceil(windows / batch) steps; a batch is never larger than the data."""
        batch_size = min(protocol.batch_size, num_windows)
        epoch_steps = math.ceil(num_windows / batch_size)
        num_steps = protocol.max_steps or epoch_steps * (protocol.epochs or 1)
        if protocol.train_s is not None:
            num_steps = UNKNOWN_STEPS
        every = min(protocol.validate_every or epoch_steps, num_steps)
        return cls(num_steps, batch_size, epoch_steps, every)


class Batches:
    """Endless shuffled batches of training windows; every epoch visits each window once."""

    def __init__(self, windows: Windows, batch_size: int, generator: torch.Generator) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self._generator = generator
        self._order: tuple[Tensor, ...] = ()
        self._next = 0

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if self._next == len(self._order):
            order = torch.randperm(len(self.windows), generator=self._generator)
            self._order, self._next = order.split(self.batch_size), 0
        index = self._order[self._next]
        self._next += 1
        return self.windows.batch(index)


@dataclass
class Context:
    """What the hooks of a strategy may see and use; its data end at the validation border."""

    task: Forecast
    seed: int
    train: Batches
    budget: StepBudget
    clip_norm: float | None
    reload: Callable[[], Mapping[str, Tensor]]
    score: Callable[[LTSM], float]
    lr: float | None = None  # of the current phase, as resolved from strategy, protocol or card
    phase: Phase = field(default_factory=Phase)
    step: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    _optimizer: torch.optim.Optimizer | None = None
    _pretrained: Mapping[str, Tensor] | None = None

    @property
    def horizon(self) -> int:
        """Forecast horizon of the task."""
        return self.task.horizon

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of the current phase; there is none before training starts."""
        if self._optimizer is None:
            raise RuntimeError("ctx.optimizer exists only while the model trains")
        return self._optimizer

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """The pretrained state, read from the checkpoint at first use."""
        if self._pretrained is None:
            self._pretrained = MappingProxyType(dict(self.reload()))
        return self._pretrained

    def rng(self, name: str) -> torch.Generator:
        """A fresh generator of the run's seed and `name`."""
        return stream(self.seed, f"strategy/{name}")

    def validate(self, model: LTSM) -> float:
        """MSE of `model` on the protocol's validation sample."""
        return self.score(model)

    def loss(self, model: LTSM, batch: Batch) -> Tensor:
        """The task's training loss of a batch."""
        return self.task.loss(model, *batch)

    def backward(self, model: LTSM, batch: Batch) -> Tensor:
        """Accumulate the gradient of the batch's mean loss; returns that loss, detached.

        When memory runs out the batch is halved, and stays halved: the gradient is the same
        weighted mean over micro-batches.
        """
        while True:
            try:
                return self._backward_in_parts(model, batch)
            except torch.OutOfMemoryError:
                size = self.micro_batch or len(batch[0])
                if size == 1:
                    raise
                self.micro_batch = size // 2
                model.zero_grad(set_to_none=True)

    def _backward_in_parts(self, model: LTSM, batch: Batch) -> Tensor:
        past, future = batch
        size = self.micro_batch or len(past)
        if size >= len(past):
            loss = self.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()
        total = torch.zeros((), device=past.device)
        for part in zip(past.split(size), future.split(size), strict=True):
            loss = self.loss(model, part) * (len(part[0]) / len(past))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def clip(self, model: LTSM) -> None:
        """Clip the gradient's global norm to the protocol's."""
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
