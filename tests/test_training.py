"""The training loop: what it trains on, how it selects, and that nothing else leaks in."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sffbench import data, models, pace, strategies
from sffbench.context import Batches, Context, Phase, StepBudget, stream
from sffbench.data.dataset import Dataset
from sffbench.data.windows import Windows, split
from sffbench.errors import InputError
from sffbench.models.base import LTSM
from sffbench.protocol import Protocol
from sffbench.strategies import Strategy
from sffbench.tasks import Forecast
from sffbench.training import Trained

Fit = Callable[..., Trained]


def same_weights(left: LTSM, right: LTSM) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def rules(**fields: Any) -> Protocol:
    return Protocol(**({"name": "test", "max_steps": 4, "batch_size": 16} | fields))


# -- what the weights depend on -------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(fit: Fit) -> None:
    first, second = fit("sff"), fit("sff")
    assert same_weights(first.model, second.model)
    assert [p["train_loss"] for p in first.curve] == [p["train_loss"] for p in second.curve]


@pytest.mark.parametrize("strategy", ["full", "sff", "from-scratch"])
def test_another_seed_gives_other_weights(fit: Fit, strategy: str) -> None:
    assert not same_weights(fit(strategy, seed=0).model, fit(strategy, seed=1).model)


def test_training_changes_every_parameter(fit: Fit, small_ttm: Any) -> None:
    before = models.load("ttm", small_ttm)
    after = fit("full").model
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert not torch.equal(old, new), name


def _perturbed(dataset: Dataset, begin: int, end: int) -> Dataset:
    scaled = dataset.scaled.clone()
    scaled[begin:end] += 3.0
    return dataclasses.replace(dataset, scaled=scaled)


@pytest.fixture
def twin() -> Dataset:
    return data.load("ETTh1", "", source="synthetic")


def test_the_weights_do_not_depend_on_test_rows(fit: Fit, twin: Dataset) -> None:
    _, val_end, test_end = twin.borders
    changed = _perturbed(twin, val_end, test_end)
    assert same_weights(fit(dataset=twin).model, fit(dataset=changed).model)


def test_the_weights_depend_on_validation_rows_through_selection_alone(
    fit: Fit, twin: Dataset
) -> None:
    train_end, val_end, _ = twin.borders
    changed = fit(dataset=_perturbed(twin, train_end, val_end))
    plain = fit(dataset=twin)
    assert [p["train_loss"] for p in plain.curve] == [p["train_loss"] for p in changed.curve]
    assert plain.validation_mse != changed.validation_mse
    once = {"validate_every": 4, "num_snapshots": 1}  # one candidate: nothing to select
    plain, changed = (
        fit(dataset=dataset, protocol=once)
        for dataset in (twin, _perturbed(twin, train_end, val_end))
    )
    assert same_weights(plain.model, changed.model)


def test_the_weights_depend_on_train_rows(fit: Fit, twin: Dataset) -> None:
    """The tests above could pass if the loop read no data at all."""
    changed = _perturbed(twin, 0, twin.borders[0] // 2)
    assert not same_weights(fit(dataset=twin).model, fit(dataset=changed).model)


def test_validating_more_often_does_not_change_the_trajectory(fit: Fit) -> None:
    often = fit(protocol={"validate_every": 1, "num_snapshots": 1})
    seldom = fit(protocol={"validate_every": 4, "num_snapshots": 1})
    losses = [p["train_loss"] for p in often.curve[1:]]
    assert seldom.curve[-1]["train_loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)
    assert often.curve[-1]["validation_mse"] == seldom.curve[-1]["validation_mse"]


# -- budget, schedules, phases --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "num_windows", "expected"),
    [
        ({"max_steps": 300, "batch_size": 256, "validate_every": 50}, 10_000, (300, 256, 40, 50)),
        ({"max_steps": 60, "batch_size": 64, "validate_every": 20}, 40, (60, 40, 1, 20)),
        ({"max_steps": None, "epochs": 10, "batch_size": 256}, 1000, (40, 256, 4, 4)),
        ({"max_steps": None, "epochs": 2, "batch_size": 10}, 20, (4, 10, 2, 2)),
        ({"max_steps": 3, "batch_size": 1, "validate_every": 50}, 7, (3, 1, 7, 3)),
        ({"max_steps": 3, "batch_size": 1}, 1, (3, 1, 1, 1)),
    ],
)
def test_a_budget_resolves_to_its_closed_form(
    fields: dict[str, Any], num_windows: int, expected: tuple[int, int, int, int]
) -> None:
    assert dataclasses.astuple(StepBudget.resolve(rules(**fields), num_windows)) == expected


def _factors(protocol: Protocol, num_steps: int, epoch_steps: int) -> list[float]:
    budget = StepBudget(num_steps, 1, epoch_steps, num_steps)
    return pace.StepPace(protocol, budget, num_steps, 0).factors()


def test_the_cosine_schedule_is_its_closed_form() -> None:
    factors = _factors(rules(), 8, 3)
    assert factors == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)])
    assert factors[0] == 1.0
    assert factors[4] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 0


def test_the_halving_schedule_keeps_two_epochs_and_then_halves() -> None:
    factors = _factors(rules(schedule="halving"), 15, 3)
    by_epoch = [factors[i : i + 3] for i in range(0, 15, 3)]
    assert by_epoch == [[f] * 3 for f in (1.0, 1.0, 0.5, 0.25, 0.125)]


class _Spy(Strategy):
    """Full fine-tuning that keeps what it saw."""

    phases_: tuple[Phase, ...] = (Phase(),)
    seen: list[tuple[str, float]] = []  # noqa: RUF012 pydantic copies it

    def phases(self, ctx: Context) -> list[Phase]:
        return list(self.phases_)

    def step(self, model: LTSM, batch: Any, ctx: Context) -> Any:
        self.seen.append((ctx.phase.name, ctx.optimizer.param_groups[0]["lr"]))
        return super().step(model, batch, ctx)


def test_the_optimiser_follows_the_schedule(fit: Fit) -> None:
    spy = _Spy()
    fit(spy, lr=0.01)
    assert [lr for _, lr in spy.seen] == pytest.approx(
        [0.01 * 0.5 * (1 + math.cos(math.pi * t / 4)) for t in range(4)]
    )


def test_a_phase_has_its_own_learning_rate_and_its_own_schedule(fit: Fit) -> None:
    spy = _Spy(phases_=(Phase("a", 1.0, lr=0.5), Phase("b", 1.0)))
    fit(spy, lr=0.01)
    assert [name for name, _ in spy.seen] == ["a", "a", "b", "b"]
    assert [lr for _, lr in spy.seen] == pytest.approx([0.5, 0.25, 0.01, 0.005])


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 1.0), (0.3, 0.7), (1, 1, 1), (5.0, 0.001, 2.0)])
@pytest.mark.parametrize("num_steps", [1, 2, 7, 300])
def test_the_shares_of_phases_add_up_to_the_budget(
    shares: tuple[float, ...], num_steps: int
) -> None:
    steps = pace.shares([Phase(share=share) for share in shares], num_steps)
    assert sum(steps) == num_steps
    for share, given in zip(shares, steps, strict=True):
        assert abs(given - num_steps * share / sum(shares)) <= 1


def test_an_epoch_visits_every_window_once() -> None:
    windows = Windows(torch.arange(20.0)[:, None], 3, 1)  # 17 windows
    batches = Batches(windows, 5, stream(0, "order"))
    for _ in range(2):
        sizes, firsts = [], []
        for _ in range(4):
            past, _future = next(batches)
            sizes.append(len(past))
            firsts += past[:, 0, 0].tolist()
        assert sizes == [5, 5, 5, 2]
        assert sorted(firsts) == [float(start) for start in range(17)]
        assert firsts != sorted(firsts)


def test_streams_depend_on_the_seed_and_the_name() -> None:
    draws = {
        (seed, name): torch.rand(3, generator=stream(seed, name)).tolist()
        for seed in (0, 1, -1, 2**70)
        for name in ("a", "b")
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert draws[0, "a"] == torch.rand(3, generator=stream(0, "a")).tolist()


# -- micro-batches ---------------------------------------------------------------------------------


class _Narrow(Forecast):
    """A task on a device that holds `capacity` windows."""

    capacity: ClassVar[int] = 1
    sizes: ClassVar[list[int]] = []

    def loss(self, model: LTSM, past: Tensor, future: Tensor) -> Tensor:
        self.sizes.append(len(past))
        if len(past) > self.capacity:
            raise torch.OutOfMemoryError("pretended")
        return super().loss(model, past, future)


@pytest.fixture
def context(twin: Dataset) -> Callable[[Forecast], Context]:
    windows = split(twin, "train", 32, 8)

    def make(task: Forecast) -> Context:
        return Context(
            task=task,
            seed=0,
            train=Batches(windows, 13, stream(0, "order")),
            budget=StepBudget(1, 13, 1, 1),
            clip_norm=None,
            reload=dict,
            score=lambda model: 0.0,
        )

    return make


@pytest.mark.parametrize("capacity", [1, 2, 5, 6, 12])
def test_when_memory_runs_out_the_gradient_stays_the_same(
    context: Callable[[Forecast], Context],
    small_ttm: Any,
    monkeypatch: pytest.MonkeyPatch,
    capacity: int,
) -> None:
    monkeypatch.setattr(_Narrow, "capacity", capacity)
    monkeypatch.setattr(_Narrow, "sizes", [])
    wide, narrow = context(Forecast(8)), context(_Narrow(8))
    batch = next(wide.train)
    gradients, losses = [], []
    for ctx in (wide, narrow):
        model = models.load("ttm", small_ttm)  # in eval mode: dropout draws differ by batch shape
        losses.append(float(ctx.backward(model, batch)))
        gradients.append([p.grad for p in model.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert max(s for s in _Narrow.sizes[-3:]) <= capacity


def test_a_batch_stays_halved(
    context: Callable[[Forecast], Context], small_ttm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Narrow, "capacity", 6)
    monkeypatch.setattr(_Narrow, "sizes", [])
    ctx, model = context(_Narrow(8)), models.load("ttm", small_ttm)
    ctx.backward(model, next(ctx.train))
    assert _Narrow.sizes == [13, 6, 6, 1]
    ctx.backward(model, next(ctx.train))
    assert _Narrow.sizes[4:] == [6, 6, 1]


def test_when_one_window_is_too_much_the_error_is_passed_on(
    context: Callable[[Forecast], Context], small_ttm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Narrow, "capacity", 0)
    ctx = context(_Narrow(8))
    with pytest.raises(torch.OutOfMemoryError):
        ctx.backward(models.load("ttm", small_ttm), next(ctx.train))


# -- the record of a run and the order of hooks ------------------------------------------------


def test_an_oracle_protocol_keeps_every_snapshot(fit: Fit) -> None:
    trained = fit(protocol={"oracle": True, "num_snapshots": 1})
    assert [snapshot.step for snapshot in trained.snapshots] == [2, 4]
    assert not same_weights(trained.snapshots[0].model, trained.snapshots[1].model)
    assert fit().snapshots == []


def test_windows_trained_on_and_parameters_are_counted(fit: Fit) -> None:
    trained = fit()
    assert trained.num_train_windows == 4 * 16
    assert trained.num_trained == sum(p.numel() for p in trained.model.parameters())


def test_a_strategy_that_freezes_everything_is_refused(fit: Fit) -> None:
    class Frozen(Strategy):
        def parameters(self, model: LTSM, ctx: Context) -> Iterable[torch.nn.Parameter]:
            return []

    Frozen.name = "frozen"
    with pytest.raises(InputError, match="'frozen' trains no parameter"):
        fit(Frozen())


def test_hooks_run_in_the_documented_order(fit: Fit) -> None:
    called: list[str] = []

    class Ordered(Strategy):
        def prepare(self, model: LTSM, ctx: Context) -> LTSM:
            with pytest.raises(RuntimeError, match="while the model trains"):
                _ = ctx.optimizer
            called.append("prepare")
            return model

        def phases(self, ctx: Context) -> list[Phase]:
            called.append("phases")
            return super().phases(ctx)

        def parameters(self, model: LTSM, ctx: Context) -> Any:
            called.append("parameters")
            return super().parameters(model, ctx)

        def step(self, model: LTSM, batch: Any, ctx: Context) -> Any:
            assert model.training
            called.append("step")
            return super().step(model, batch, ctx)

        def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
            called.append("eval_model")
            return model

        def finish(self, model: LTSM, ctx: Context) -> LTSM:
            called.append("finish")
            return model

    fit(Ordered(), protocol={"max_steps": 2})
    assert called == ["prepare", "phases", "parameters", "step", "step", "eval_model", "finish"]


def test_the_context_ends_at_the_validation_border(fit: Fit, twin: Dataset) -> None:
    """No tensor that a hook can reach is a view of the data set or holds a test row."""
    marked = _perturbed(twin, twin.borders[1], twin.borders[2])
    storage = marked.scaled.untyped_storage().data_ptr()
    reached: list[Tensor] = []

    class Nosy(Strategy):
        def prepare(self, model: LTSM, ctx: Context) -> LTSM:
            reached.extend(
                value for value in vars(ctx.train.windows).values() if isinstance(value, Tensor)
            )
            return model

    fit(Nosy(), dataset=marked, protocol={"max_steps": 1})
    assert reached
    for tensor in reached:
        base = tensor.untyped_storage()
        assert base.data_ptr() != storage
        assert base.nbytes() <= 4 * marked.borders[0] * marked.num_channels


def test_the_pretrained_state_is_what_was_loaded(fit: Fit, small_ttm: Any) -> None:
    seen: dict[str, Tensor] = {}

    class Reader(Strategy):
        def finish(self, model: LTSM, ctx: Context) -> LTSM:
            seen.update(ctx.pretrained)
            with pytest.raises(TypeError):
                ctx.pretrained["x"] = torch.zeros(1)  # type: ignore[index]
            return model

    fit(Reader())
    original = models.load("ttm", small_ttm).state_dict()
    assert seen.keys() == original.keys()
    assert all(torch.equal(seen[name], original[name]) for name in seen)


def test_the_paper_protocol_trains_on_the_error_of_the_forecast(fit: Fit) -> None:
    trained = fit(protocol={"loss": "forecast", "optimizer": "adam", "schedule": "halving"})
    assert math.isfinite(trained.validation_mse)


def test_strategies_without_training_cost_no_step(fit: Fit) -> None:
    trained = fit("zero-shot", lr=None)
    assert (trained.num_train_windows, trained.steps.wall_s, trained.curve) == (0, 0.0, [])
    assert strategies.get("zero-shot").trains is False
