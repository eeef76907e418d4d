"""WiSE-FT: the tested weights lie between the fine-tuned and the pretrained ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sffbench import models, strategies
from sffbench.errors import InputError
from sffbench.training import Trained

Fit = Callable[..., Trained]
ONCE = {"validate_every": 4, "num_snapshots": 1}


def same_weights(left: Any, right: Any) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_every_weight_is_the_mix_of_its_two_ends(fit: Fit, small_ttm: Any, alpha: float) -> None:
    """float64 oracle: alpha * fine-tuned + (1 - alpha) * pretrained."""
    pretrained = models.load("ttm", small_ttm)
    tuned, mixed = (
        fit("full", protocol=ONCE).model,
        fit("wise-ft", alpha=alpha, protocol=ONCE).model,
    )
    rows = zip(mixed.named_parameters(), tuned.parameters(), pretrained.parameters(), strict=True)
    for (name, ours), new, old in rows:
        expected = alpha * new.double() + (1 - alpha) * old.double()
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-7, msg=name)


def test_its_ends_are_full_and_the_checkpoint_bit_for_bit(fit: Fit, small_ttm: Any) -> None:
    assert same_weights(fit("wise-ft", alpha=1.0).model, fit("full").model)
    assert same_weights(fit("wise-ft", alpha=0.0).model, models.load("ttm", small_ttm))


def test_mixing_leaves_training_alone_and_snapshots_are_kept(fit: Fit, small_ttm: Any) -> None:
    pretrained = models.load("ttm", small_ttm)
    plain, mixed = (fit(name, protocol={"oracle": True}) for name in ("full", "wise-ft"))
    assert [p["train_loss"] for p in plain.curve] == [p["train_loss"] for p in mixed.curve]
    for tuned, mix in zip(plain.snapshots, mixed.snapshots, strict=True):
        rows = zip(
            mix.model.parameters(), tuned.model.parameters(), pretrained.parameters(), strict=True
        )
        for ours, new, old in rows:
            torch.testing.assert_close(ours, 0.5 * new + 0.5 * old)


def test_a_run_without_validation_tests_the_mix(fit: Fit) -> None:
    speed = {"num_snapshots": 0}
    expected = fit("wise-ft", protocol=ONCE).model
    assert same_weights(fit("wise-ft", protocol=speed).model, expected)


def test_a_model_with_other_parameters_than_the_checkpoint_is_one_line(fit: Fit) -> None:
    pytest.importorskip("peft")
    with pytest.raises(InputError, match=r"wise-ft: .* is not in the checkpoint"):
        fit(strategies.get("chain", links=["lora", "wise-ft"]))
