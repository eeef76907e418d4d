"""The one training loop: every strategy goes through it, none brings its own.

    trained = train(model, strategy, task, train_windows, validation_windows, protocol, ...)

It sees training and validation windows only. The best snapshots of a fixed validation sample are
scored on all validation windows, and the better one is what the test sees later, elsewhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sffbench.context import Batches, Context, Phase, StepBudget, stream
from sffbench.errors import InputError
from sffbench.measure import Stopwatch
from sffbench.models.base import LTSM, evaluating
from sffbench.pace import Pace, by_steps, by_time
from sffbench.protocol import Protocol
from sffbench.strategies.base import Strategy
from sffbench.tasks import Forecast

if TYPE_CHECKING:
    from sffbench.data.windows import Windows

Progress = Callable[[int, int], None]

WARM_UP_STEPS = 3
"""Steps timed apart: the first makes optimiser state, plans and caches that the others reuse."""


class Diverged(Exception):
    """The training loss or the validation error stopped being a finite number."""


@dataclass(frozen=True)
class Snapshot:
    """A candidate for selection: the model that validation saw after `step` steps."""

    step: int
    mse: float
    model: LTSM


@dataclass
class Trained:
    """The selected model and how it came about."""

    model: LTSM
    selected_step: int
    validation_mse: float | None  # None where the protocol selects nothing
    candidates: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    snapshots: list[Snapshot]  # every validated model where the protocol asks for an oracle
    steps: Stopwatch  # of all steps
    warm_up: Stopwatch  # of the first WARM_UP_STEPS among them
    preparation: Stopwatch
    validation: Stopwatch
    num_steps: int
    num_train_windows: int
    num_warm_up_windows: int
    num_validation_windows: int
    num_trained: int
    micro_batch: int  # training windows that were in memory at once


def train(
    model: LTSM,
    strategy: Strategy,
    task: Forecast,
    train_windows: Windows,
    validation_windows: Windows,
    protocol: Protocol,
    *,
    lr: float | None,
    seed: int,
    reload: Callable[[], Mapping[str, Tensor]],
    progress: Progress = lambda step, total: None,
) -> Trained:
    """Fine-tune `model` by `strategy` and select on validation.

    Raises `Diverged` when a loss is not finite. The global generator is set from the run's seed,
    which dropout draws from, and nothing else does.
    """
    loop = _Loop(strategy, task, train_windows, validation_windows, protocol, seed, reload)
    return loop.run(model, lr, progress)


class _Loop:
    """State of one training run; `run` reads top to bottom."""

    def __init__(
        self,
        strategy: Strategy,
        task: Forecast,
        train_windows: Windows,
        validation_windows: Windows,
        protocol: Protocol,
        seed: int,
        reload: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        device = train_windows.device
        self.strategy, self.task, self.protocol = strategy, task, protocol
        self.validation_windows = validation_windows
        self.budget = StepBudget.resolve(protocol, len(train_windows))
        self.steps, self.preparation, self.validation = (Stopwatch(device) for _ in range(3))
        self.warm_up = Stopwatch(device)
        self.sample = _validation_sample(validation_windows, protocol.num_validation)
        self.ctx = Context(
            task=task,
            seed=seed,
            train=Batches(train_windows, self.budget.batch_size, stream(seed, "data order")),
            budget=self.budget,
            clip_norm=protocol.clip_norm,
            reload=reload,
            score=lambda model: self._score(model, self.sample),
        )
        self.curve: list[dict[str, Any]] = []
        self.best: list[Snapshot] = []
        self.all: list[Snapshot] = []
        self.stale = 0
        self.num_train_windows = 0
        self.num_warm_up_windows = 0
        self.num_trained = 0

    def run(self, model: LTSM, lr: float | None, progress: Progress) -> Trained:
        torch.manual_seed(stream(self.ctx.seed, "dropout").initial_seed())
        with self.preparation.running():
            model = self.strategy.prepare(model, self.ctx)
        selects = self.protocol.selects
        if not self.strategy.trains:
            mse = self._checked(self._score(model, None)) if selects else None
            return self._trained(model, 0, mse, [])
        if selects:
            self._record(None, self._checked(self.ctx.validate(model)))
        self._run_phases(model, lr, progress)
        return self._select() if selects else self._unselected(model)

    def _run_phases(self, model: LTSM, lr: float | None, progress: Progress) -> None:
        phases = self.strategy.phases(self.ctx)
        for phase, pace in zip(phases, self._paces(phases), strict=True):
            self.ctx.phase = phase
            base_lr = phase.lr or lr
            assert base_lr is not None, "a strategy that trains has a learning rate"
            self.ctx.lr = base_lr
            self.ctx._optimizer = self._optimizer(model, base_lr)
            self._run_steps(model, pace, progress)
            if self._out_of_patience():
                return

    def _paces(self, phases: list[Phase]) -> list[Pace]:
        if self.protocol.train_s is None:
            return by_steps(self.protocol, self.budget, phases)
        return by_time(self.protocol, phases, self._spent_s)

    def _spent_s(self) -> float:
        """Seconds of preparation and steps; on a CPU its own, which other work does not stretch."""
        watches = (self.preparation, self.steps)
        on_cpu = self.steps.device.type == "cpu"
        return sum(watch.cpu_s if on_cpu else watch.wall_s for watch in watches)

    def _run_steps(self, model: LTSM, pace: Pace, progress: Progress) -> None:
        """The steps of a phase, stopping for validation; watches run between validations only."""
        losses: list[Tensor] = []
        while pace.unfinished and not self._out_of_patience():
            model.train()
            factors = pace.factors()
            cold = min(len(factors), max(0, WARM_UP_STEPS - self.ctx.step))
            burst = self._warm_up(model, factors[:cold]) + self._burst(model, factors[cold:])
            pace.ran()
            self._expect(pace.expected_steps())
            progress(self.ctx.step, self.budget.num_steps)
            losses += burst
            train_loss = self._checked(float(torch.stack(losses).double().mean()))
            if pace.due():
                self._validate(model, train_loss)
                losses = []

    def _expect(self, num_steps: int) -> None:
        """What strategies read as the budget; it moves only where time is the budget."""
        if num_steps != self.budget.num_steps:
            self.budget = self.ctx.budget = replace(self.budget, num_steps=num_steps)

    def _warm_up(self, model: LTSM, factors: list[float]) -> list[Tensor]:
        """A burst whose time counts as training, but not in the rate."""
        if not factors:
            return []
        with self.warm_up.running():
            losses = self._burst(model, factors)
        self.num_warm_up_windows = self.num_train_windows
        return losses

    def _burst(self, model: LTSM, factors: list[float]) -> list[Tensor]:
        """One step for each learning-rate factor, timed as a whole; the losses of the steps."""
        if not factors:
            return []
        losses = []
        with self.steps.running():
            for factor in factors:
                _set_lr(self.ctx.optimizer, factor)
                losses.append(self._step(model))
        return losses

    def _step(self, model: LTSM) -> Tensor:
        batch = next(self.ctx.train)
        loss = self.strategy.step(model, batch, self.ctx)
        self.ctx.step += 1
        self.num_train_windows += len(batch[0])
        return torch.as_tensor(loss, dtype=torch.float32).detach()

    def _validate(self, model: LTSM, train_loss: float) -> None:
        if not self.protocol.selects:
            self._record(train_loss, None)
            return
        seen = self.strategy.eval_model(model, self.ctx)
        mse = self._checked(self.ctx.validate(seen))
        self._record(train_loss, mse)
        self.stale = 0 if not self.best or mse < self.best[0].mse else self.stale + 1
        if self.protocol.oracle or self._enters_best(mse):
            snapshot = Snapshot(self.ctx.step, mse, copy.deepcopy(seen))
            if self.protocol.oracle:
                self.all.append(snapshot)
            self.best = sorted([*self.best, snapshot], key=lambda s: (s.mse, s.step))
            del self.best[self.protocol.num_snapshots :]

    def _enters_best(self, mse: float) -> bool:
        return len(self.best) < self.protocol.num_snapshots or mse < self.best[-1].mse

    def _select(self) -> Trained:
        """The lowest error on all validation windows among the best snapshots."""
        finalists = [
            (snapshot.mse if self.sample is None else self._score(snapshot.model, None), snapshot)
            for snapshot in self.best
        ]
        candidates = [{"step": s.step, "mse": self._checked(mse)} for mse, s in finalists]
        mse, snapshot = min(finalists, key=lambda pair: (pair[0], pair[1].step))
        model = self.strategy.finish(snapshot.model, self.ctx)
        return self._trained(model, snapshot.step, mse, candidates)

    def _unselected(self, model: LTSM) -> Trained:
        """What the last step left, unvalidated; its gradients no longer take up memory."""
        model.zero_grad(set_to_none=True)
        model = self.strategy.finish(self.strategy.eval_model(model, self.ctx), self.ctx)
        return self._trained(model, self.ctx.step, None, [])

    def _trained(
        self, model: LTSM, step: int, mse: float | None, candidates: list[dict[str, Any]]
    ) -> Trained:
        return Trained(
            model=model,
            selected_step=step,
            validation_mse=mse,
            candidates=candidates,
            curve=self.curve,
            snapshots=self.all,
            steps=self.steps,
            warm_up=self.warm_up,
            preparation=self.preparation,
            validation=self.validation,
            num_steps=self.ctx.step,
            num_train_windows=self.num_train_windows,
            num_warm_up_windows=self.num_warm_up_windows,
            num_validation_windows=len(self.validation_windows) if self.protocol.selects else 0,
            num_trained=self.num_trained,
            micro_batch=self.ctx.micro_batch or self.budget.batch_size,
        )

    def _score(self, model: LTSM, sample: Tensor | None) -> float:
        with self.validation.running(), evaluating(model):
            return self.task.evaluate(model._forecast, self.validation_windows, sample).mse

    def _optimizer(self, model: LTSM, lr: float) -> torch.optim.Optimizer:
        groups: list[Any] = list(self.strategy.parameters(model, self.ctx))
        if not groups:
            raise InputError(f"strategy {self.strategy.name!r} trains no parameter")
        kind = torch.optim.AdamW if self.protocol.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(groups, lr=lr, weight_decay=self.protocol.weight_decay, fused=True)
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        trained = {id(p): p.numel() for g in optimizer.param_groups for p in g["params"]}
        self.num_trained = max(self.num_trained, sum(trained.values()))
        return optimizer

    def _record(self, train_loss: float | None, mse: float | None) -> None:
        point = {"step": self.ctx.step, "train_loss": train_loss, "validation_mse": mse}
        self.curve.append(point | {"train_s": round(self.steps.wall_s, 4)})

    def _checked(self, value: float) -> float:
        if not math.isfinite(value):
            raise Diverged(f"loss or validation error is {value} after {self.ctx.step} steps")
        return value

    def _out_of_patience(self) -> bool:
        return self.protocol.patience is not None and self.stale >= self.protocol.patience


def _validation_sample(windows: Windows, size: int | None) -> Tensor | None:
    """The same fixed windows for every seed and strategy, sorted; None means all."""
    if size is None or size >= len(windows):
        return None
    chosen = torch.randperm(len(windows), generator=stream(0, "validation sample"))[:size]
    return chosen.sort().values


def _set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
