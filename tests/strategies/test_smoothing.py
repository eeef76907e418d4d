"""SFF and its ends: alpha = 1 is `full`, alpha = 0 is `from-scratch`, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sffkernels
from sffbench import models
from sffbench.models.base import LTSM
from sffbench.strategies.smoothing import mix_with_random_twin
from sffbench.training import Trained

Fit = Callable[..., Trained]


def same_weights(left: LTSM, right: LTSM) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("seed", [0, 5])
def test_sff_at_alpha_1_is_full_after_training_bit_for_bit(fit: Fit, seed: int) -> None:
    left, right = fit("sff", alpha=1.0, seed=seed), fit("full", seed=seed)
    assert same_weights(left.model, right.model)
    assert [p["train_loss"] for p in left.curve] == [p["train_loss"] for p in right.curve]


@pytest.mark.parametrize("seed", [0, 5])
def test_sff_at_alpha_0_is_from_scratch_after_training_bit_for_bit(fit: Fit, seed: int) -> None:
    left, right = fit("sff", alpha=0.0, seed=seed), fit("from-scratch", seed=seed)
    assert same_weights(left.model, right.model)


def test_between_its_ends_sff_is_neither(fit: Fit) -> None:
    model = fit("sff", alpha=0.5).model
    assert not same_weights(model, fit("full").model)
    assert not same_weights(model, fit("from-scratch").model)


def test_alpha_0_is_the_model_that_create_makes(small_ttm: Path) -> None:
    model = models.load("ttm", small_ttm)
    mix_with_random_twin(model, 0.0, seed=3)
    config = {key: value for key, value in model.config.items() if key in _preset_keys()}
    assert same_weights(model, models.create("ttm:tiny", seed=3, **config))


def _preset_keys() -> set[str]:
    return set(models.preset("ttm:tiny").config)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_every_parameter_is_the_mix_of_its_two_ends(small_ttm: Path, alpha: float) -> None:
    """float64 oracle: alpha * pretrained + (1 - alpha) * draw, norms and biases included."""
    pretrained = models.load("ttm", small_ttm)
    mixed = models.load("ttm", small_ttm)
    mix_with_random_twin(mixed, alpha, seed=11)
    initial = pretrained.initial()
    for (name, old), new in zip(pretrained.named_parameters(), mixed.parameters(), strict=True):
        drawn = sffkernels.draw(initial[name], old.shape, seed=11, name=name).double()
        expected = alpha * old.double() + (1 - alpha) * drawn
        torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)


class _Tied(torch.nn.Module):
    """Two names of one parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(4))
        self.second = self.first
        self.register_buffer("table", torch.full((3,), 7.0))

    def initial(self, init: str = "usable") -> dict[str, sffkernels.Init]:
        return {"first": sffkernels.Init("constant", 3.0)}


def test_an_alias_is_mixed_once_and_buffers_are_left_alone() -> None:
    model = _Tied()
    mix_with_random_twin(model, 0.5, seed=0)  # type: ignore[arg-type]
    assert torch.equal(model.first.detach(), torch.full((4,), 2.0))
    assert model.second is model.first
    assert torch.equal(model.table, torch.full((3,), 7.0))


def test_training_with_sff_leaves_every_buffer_untouched(fit: Fit, small_ttm: Path) -> None:
    model = models.load("ttm", small_ttm)
    model.register_buffer("table", torch.arange(5.0))
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    trained = fit("sff", model=model).model
    after: dict[str, Tensor] = dict(trained.named_buffers())
    assert kept.keys() == after.keys()
    assert all(torch.equal(kept[name], after[name]) for name in kept)


def test_smoothed_zero_shot_is_sff_before_its_first_step(fit: Fit, small_ttm: Path) -> None:
    expected = models.load("ttm", small_ttm)
    mix_with_random_twin(expected, 0.85, seed=2)
    trained = fit("smoothed-zero-shot", seed=2, lr=None)
    assert same_weights(trained.model, expected)
    assert trained.selected_step == 0


def test_the_twin_depends_on_the_seed(small_ttm: Path) -> None:
    left, right = models.load("ttm", small_ttm), models.load("ttm", small_ttm)
    mix_with_random_twin(left, 0.7, seed=0)
    mix_with_random_twin(right, 0.7, seed=1)
    assert not same_weights(left, right)
