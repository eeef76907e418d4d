"""Selection on validation, patience and divergence: which snapshot a run hands to the test."""

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from sffbench import data, training
from sffbench.context import Context
from sffbench.data.dataset import Dataset
from sffbench.data.windows import Windows, split
from sffbench.models.base import LTSM, evaluating
from sffbench.strategies import Strategy
from sffbench.tasks import Forecast
from sffbench.training import Diverged, Trained

Fit = Callable[..., Trained]


@pytest.fixture
def twin() -> Dataset:
    return data.load("ETTh1", "", source="synthetic")


# -- divergence ------------------------------------------------------------------------------------


class _Breaking(Strategy):
    at: int = 1
    loss: float = math.nan

    def step(self, model: LTSM, batch: Any, ctx: Context) -> Any:
        value = super().step(model, batch, ctx)
        return self.loss if ctx.step == self.at else value


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_loss_that_is_not_finite_is_divergence(fit: Fit, loss: float, at: int) -> None:
    with pytest.raises(Diverged):
        fit(_Breaking(at=at, loss=loss))


class _Ruin(Strategy):
    def prepare(self, model: LTSM, ctx: Context) -> LTSM:
        with torch.no_grad():
            next(iter(model.parameters())).fill_(math.nan)
        return model


class _RuinUntrained(_Ruin):
    trains: ClassVar[bool] = False


@pytest.mark.parametrize("strategy", [_Ruin, _RuinUntrained])
def test_a_validation_error_that_is_not_finite_is_divergence(
    fit: Fit, strategy: type[Strategy]
) -> None:
    with pytest.raises(Diverged):
        fit(strategy())


def test_a_learning_rate_far_too_large_is_divergence_or_a_number(fit: Fit) -> None:
    with pytest.raises(Diverged):
        fit(lr=1e30, protocol={"clip_norm": None, "optimizer": "adam"})


# -- selection and patience ------------------------------------------------------------------------


class _Staged(Strategy):
    """Validation sees copies of known quality: `offsets[i]` is added to the head's bias."""

    offsets: tuple[float, ...]

    def step(self, model: LTSM, batch: Any, ctx: Context) -> Any:
        return torch.tensor(1.0)

    def eval_model(self, model: LTSM, ctx: Context) -> LTSM:
        copied = copy.deepcopy(model)
        with torch.no_grad():
            list(copied.parameters())[-1].add_(self.offsets[ctx.step - 1])
        return copied


def _full_validation(model: LTSM, twin: Dataset) -> float:
    windows = split(twin, "validation", 32, 8)
    with evaluating(model):
        return Forecast(8).evaluate(model._forecast, windows).mse


def test_selection_takes_the_better_of_the_two_best_on_all_validation_windows(
    fit: Fit, twin: Dataset
) -> None:
    offsets = (0.4, 0.1, 0.9, 0.12)
    trained = fit(_Staged(offsets=offsets), protocol={"validate_every": 1})
    sampled = {p["step"]: p["validation_mse"] for p in trained.curve if p["step"]}
    finalists = sorted(sampled, key=lambda step: sampled[step])[:2]
    assert {c["step"] for c in trained.candidates} == set(finalists)
    oracle = {}
    for step in finalists:
        model = fit(_Staged(offsets=(offsets[step - 1],)), protocol={"max_steps": 1}).model
        oracle[step] = _full_validation(model, twin)
    assert {c["step"]: c["mse"] for c in trained.candidates} == pytest.approx(oracle, rel=1e-6)
    assert trained.selected_step == min(oracle, key=lambda step: oracle[step])
    assert trained.validation_mse == pytest.approx(min(oracle.values()), rel=1e-6)
    assert _full_validation(trained.model, twin) == pytest.approx(trained.validation_mse, rel=1e-6)


def test_full_validation_may_overrule_the_sample(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([9.0, 5.0, 1.0, 2.0, 4.0, 0.7, 0.6])  # curve: 9 | 5 1 2 4; then all windows

    def score(self: Any, model: LTSM, sample: Tensor | None) -> float:
        return next(scores)

    monkeypatch.setattr(training._Loop, "_score", score)
    trained = fit(protocol={"validate_every": 1})
    assert trained.candidates == [{"step": 2, "mse": 0.7}, {"step": 3, "mse": 0.6}]
    assert (trained.selected_step, trained.validation_mse) == (3, 0.6)


def test_the_untrained_model_is_on_the_curve_but_is_no_candidate(fit: Fit) -> None:
    trained = fit(lr=0.5)
    assert trained.curve[0]["step"] == 0
    assert trained.curve[0]["train_loss"] is None
    assert all(candidate["step"] > 0 for candidate in trained.candidates)


def test_the_selected_model_is_the_snapshot_not_the_last_step(fit: Fit) -> None:
    trained = fit(_Staged(offsets=(0.0, 3.0, 3.0, 3.0)), protocol={"validate_every": 1})
    last = fit(_Staged(offsets=(3.0,)), protocol={"max_steps": 1}).model
    assert trained.selected_step == 1
    pairs = zip(trained.model.parameters(), last.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_without_a_sample_all_validation_windows_are_seen_once_each_time(
    fit: Fit, twin: Dataset
) -> None:
    trained = fit(protocol={"num_validation": None})
    (chosen,) = [c for c in trained.candidates if c["step"] == trained.selected_step]
    assert chosen["mse"] in [p["validation_mse"] for p in trained.curve]
    assert chosen["mse"] == pytest.approx(_full_validation(trained.model, twin), rel=1e-6)


def test_the_validation_sample_is_fixed_sorted_and_without_repeats() -> None:
    windows = Windows(torch.zeros(500, 2), 3, 1)
    first, second = (training._validation_sample(windows, 64) for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert len(set(first.tolist())) == 64
    assert torch.equal(first, first.sort().values)
    assert training._validation_sample(windows, len(windows)) is None
    assert training._validation_sample(windows, None) is None


@pytest.mark.parametrize(
    ("offsets", "num_checks"),
    [
        ((0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 3),  # best at once, then two without a gain
        ((0.9, 0.5, 0.6, 0.4, 0.6, 0.7), 6),
        ((0.9, 0.5, 0.6, 0.6, 0.1, 0.1), 4),
        ((0.6, 0.5, 0.4, 0.3, 0.2, 0.1), 6),
    ],
)
def test_patience_stops_after_that_many_checks_without_a_gain(
    fit: Fit, offsets: tuple[float, ...], num_checks: int
) -> None:
    trained = fit(
        _Staged(offsets=tuple(5 * offset for offset in offsets)),
        protocol={"validate_every": 1, "patience": 2, "max_steps": 6, "num_snapshots": 1},
    )
    assert len(trained.curve) - 1 == num_checks
    assert trained.num_train_windows == 16 * num_checks
