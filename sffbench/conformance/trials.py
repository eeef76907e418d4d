"""One short training run of a strategy under observation, with one thing changed.

    trial = Trials("full", model="ttm:tiny").run(validation=1.0)     # validation rows moved

The cell is an ordinary one (synthetic data, the `quick` protocol), trained by the very code that
suites use. The strategy is watched from outside: its hooks are called through `Watched`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sffbench import cells, runner
from sffbench.measure import MemoryMeter
from sffbench.protocol import Budget
from sffbench.suite import Places, Suite

if TYPE_CHECKING:
    from sffbench.context import Batch, Context
    from sffbench.models.base import LTSM
    from sffbench.strategies import Strategy
    from sffbench.training import Trained

STEPS, BATCH, NUM_VALIDATION, VALIDATE_EVERY = 6, 16, 64, 2
CPU = torch.device("cpu")


@dataclass
class Watched:
    """A strategy whose hooks are observed; everything else is the strategy's own."""

    strategy: Strategy
    last: dict[str, Tensor] = field(default_factory=dict)  # weights after the latest step
    pretrained: dict[str, Tensor] = field(default_factory=dict)  # ctx.pretrained at the end
    drew: set[str] = field(default_factory=set)  # hooks that moved the global generator
    evaluating: set[str] = field(default_factory=set)  # modules in eval mode when a step began
    uncovered: set[str] = field(default_factory=set)  # need gradients, in no optimiser group
    untied: set[str] = field(default_factory=set)
    num_backward: int = 0
    num_validated: int = 0  # calls of ctx.validate by a hook, not by the loop
    _inside: bool = False
    _modes: dict[str, bool] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.strategy, name)

    @contextlib.contextmanager
    def _hook(self, name: str, *, may_draw: bool = False) -> Iterator[None]:
        before, self._inside = torch.random.get_rng_state(), True
        try:
            yield
        finally:
            self._inside = False
        if not may_draw and not torch.equal(before, torch.random.get_rng_state()):
            self.drew.add(name)

    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        """The strategy's, with ctx.validate and ctx.backward counted from here on."""
        _count_calls(self, ctx)
        tied = _aliases(model)
        with self._hook("prepare"):
            prepared = self.strategy.prepare(model, ctx)
        self.untied = tied - _aliases(prepared)
        self.last = _weights(prepared)
        return prepared

    def step(self, model: LTSM, batch: Batch, ctx: Context) -> Any:
        """The strategy's; notes modes, optimiser groups and weights around it."""
        modes = {name: module.training for name, module in model.named_modules()}
        if self._modes is None:
            self._modes = modes
        stray = {name or "the model" for name, on in self._modes.items() if on and not modes[name]}
        self.evaluating |= stray
        held = {id(p) for group in ctx.optimizer.param_groups for p in group["params"]}
        self.uncovered |= {
            name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
        }
        with self._hook("step", may_draw=True):
            loss = self.strategy.step(model, batch, ctx)
        self.last = _weights(model)
        return loss

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        """The strategy's."""
        with self._hook("eval_model"):
            return self.strategy.eval_model(model, ctx)

    def finish(self, model: LTSM, ctx: Context) -> LTSM:
        """The strategy's; what ctx.pretrained says then is kept."""
        with self._hook("finish"):
            finished = self.strategy.finish(model, ctx)
        self.pretrained = {name: value.clone() for name, value in ctx.pretrained.items()}
        return finished


@dataclass(frozen=True)
class Trial:
    """What one run left."""

    trained: Trained
    watched: Watched
    fresh: LTSM  # the network as it was loaded

    @property
    def selected(self) -> dict[str, Tensor]:
        """Weights and buffers of the model that the test would see."""
        return dict(self.trained.model.state_dict())


@dataclass(frozen=True)
class Trials:
    """Runs of one strategy on one small model."""

    strategy: str
    model: str = "ttm:tiny"
    plugins: tuple[str, ...] = ()

    def run(
        self,
        *,
        seed: int = 0,
        validate_every: int = VALIDATE_EVERY,
        validation: float = 0.0,
        test: float = 0.0,
    ) -> Trial:
        """Train; rows of a part become x * (1 + amount) + amount."""
        run = self._cell(seed, validate_every)
        run.dataset = _moved(run.dataset, validation, test)
        watched = Watched(run.strategy)
        run.strategy = watched  # type: ignore[assignment]
        model, fresh = run.network.load(), run.network.load()
        return Trial(run.train(model), watched, fresh)

    def _cell(self, seed: int, validate_every: int) -> runner.Run:
        budget = Budget(
            max_steps=STEPS,
            batch_size=BATCH,
            validate_every=validate_every,
            num_validation=NUM_VALIDATION,
        )
        suite = Suite(
            name="check",
            protocol="quick",
            data="synthetic",
            models=[self.model],  # type: ignore[arg-type]
            datasets=("ETTh1",),
            seeds=(seed,),
            strategies=[self.strategy],  # type: ignore[arg-type]
            budget=budget,
        )
        (spec,) = cells.expand(suite, Places(plugins=self.plugins))
        return runner.Run(spec, CPU, MemoryMeter(CPU))


def _moved(dataset: Any, validation: float, test: float) -> Any:
    """The data set with its later rows replaced: x * (1 + amount) + amount."""
    train_end, val_end, _ = dataset.borders
    copies = {"scaled": dataset.scaled.clone(), "values": dataset.values.clone()}
    for rows in copies.values():
        for part, amount in ((rows[train_end:val_end], validation), (rows[val_end:], test)):
            part.mul_(1 + amount).add_(amount)
    return dataclasses.replace(dataset, **copies)


def _weights(model: LTSM) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _aliases(model: LTSM) -> set[str]:
    """Names under which a parameter appears once more."""
    every = dict(model.named_parameters(remove_duplicate=False))
    return set(every) - set(dict(model.named_parameters()))


def _count_calls(watched: Watched, ctx: Context) -> None:
    validate, backward = ctx.validate, ctx.backward

    def counted_validate(model: LTSM) -> float:
        watched.num_validated += watched._inside
        return validate(model)

    def counted_backward(model: LTSM, batch: Batch) -> Tensor:
        watched.num_backward += 1
        return backward(model, batch)

    ctx.validate, ctx.backward = counted_validate, counted_backward  # type: ignore[method-assign]
