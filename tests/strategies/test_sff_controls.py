"""SFF's options and its controls: each does what its formula says, and only that."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sffkernels
from sffbench import models, strategies
from sffbench.context import Context, stream
from sffbench.models.base import LTSM
from sffbench.models.twin import start_of
from sffbench.strategies.groups import part_of
from sffbench.training import Trained

Fit = Callable[..., Trained]
SEED = 5


class _Ctx:
    """As much of a context as preparation needs."""

    seed = SEED
    rng = Context.rng


def prepared(name: str, folder: Path | None, model: LTSM | None = None, **fields: Any) -> LTSM:
    model = model or models.load("ttm", folder)
    result: LTSM = strategies.get(name, **fields).prepare(model, _Ctx())  # type: ignore[arg-type]
    return result


def pairs(folder: Path, after: LTSM) -> list[tuple[str, Tensor, Tensor]]:
    before = models.load("ttm", folder)
    return [
        (name, old.detach(), new.detach())
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
    ]


def twin(model: LTSM, seed: int, init: Any = "usable") -> dict[str, Tensor]:
    table = model.initial(init)
    return {
        name: start_of(table[name], theta.shape, seed=seed, name=name).double()
        for name, theta in model.named_parameters()
    }


# -- fields of sff ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["norms", "head", "attention"])
def test_a_part_with_alpha_1_keeps_its_bits_and_the_rest_is_sffs(
    small_ttm: Path, part: str
) -> None:
    excluded = prepared("sff", small_ttm, groups={part: 1.0})
    plain = dict(prepared("sff", small_ttm).named_parameters())
    parts = part_of(excluded)
    assert part in parts.values()
    for name, old, new in pairs(small_ttm, excluded):
        assert torch.equal(new, old if parts[name] == part else plain[name]), name


def test_every_group_is_mixed_by_its_own_alpha(small_ttm: Path) -> None:
    groups = {"head": 0.2, "norms": 0.0, "backbone.*.bias": 0.9}
    model = prepared("sff", small_ttm, alpha=0.6, groups=groups)
    drawn, parts = twin(model, SEED), part_of(model)
    for name, old, new in pairs(small_ttm, model):
        alpha = {"head": 0.2, "norms": 0.0}.get(parts[name], 0.6)
        if name.startswith("backbone.") and name.endswith(".bias"):
            alpha = 0.9
        expected = alpha * old.double() + (1 - alpha) * drawn[name]
        torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)


def test_the_twin_has_a_seed_of_its_own_where_one_is_given(small_ttm: Path) -> None:
    own = prepared("sff", small_ttm, twin_seed=11)
    drawn = twin(own, 11)
    for name, old, new in pairs(small_ttm, own):
        expected = 0.7 * old.double() + 0.3 * drawn[name]
        torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)
    same = prepared("sff", small_ttm, twin_seed=SEED)
    run = prepared("sff", small_ttm)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), run.parameters(), strict=True))


def test_a_twin_seed_leaves_the_order_of_the_data_to_the_run(fit: Fit) -> None:
    """With alpha = 1 the twin is gone, and what is left is the run's own seed."""
    one, two = fit("sff", alpha=1.0, twin_seed=3), fit("full")
    assert [p["train_loss"] for p in one.curve] == [p["train_loss"] for p in two.curve]
    first, second = (fit("sff", twin_seed=3, seed=seed) for seed in (0, 1))
    assert [p["train_loss"] for p in first.curve] != [p["train_loss"] for p in second.curve]


def test_the_published_initialisation_can_be_mixed_in() -> None:
    """TimesFM's published norm gains are 0, which `usable` replaces by 1."""
    pretrained = dict(models.load("timesfm:tiny").named_parameters())
    for init in ("usable", "published"):
        model = prepared("sff", None, models.load("timesfm:tiny"), init=init)
        drawn = twin(model, SEED, init)
        for name, new in model.named_parameters():
            expected = 0.7 * pretrained[name].detach().double() + 0.3 * drawn[name]
            torch.testing.assert_close(new.detach().double(), expected, rtol=1e-6, atol=1e-7)
    one, two = (twin(models.load("timesfm:tiny"), SEED, init) for init in ("usable", "published"))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_a_default_option_is_not_in_the_key_and_a_set_one_is() -> None:
    def fields(**given: Any) -> Any:
        return strategies.identity(strategies.get("sff", **given))["fields"]

    assert fields(init="usable", twin_seed=None, groups={}) == {"lr": None, "alpha": 0.7}
    assert fields(groups={"head": 1.0})["groups"] == {"head": 1.0}
    assert fields(twin_seed=0)["twin_seed"] == 0
    assert fields(init="published")["init"] == "published"


# -- strategies in the twin's place ----------------------------------------------------------------


def test_shrink_scales_every_parameter(small_ttm: Path) -> None:
    for _, old, new in pairs(small_ttm, prepared("shrink", small_ttm, alpha=0.4)):
        expected = torch.tensor([0.4 * x for x in old.double().flatten().tolist()])
        torch.testing.assert_close(new.flatten(), expected.float(), rtol=2e-7, atol=0.0)


def test_noise_goes_as_far_as_sff_and_elsewhere(small_ttm: Path) -> None:
    smoothed = dict(prepared("sff", small_ttm, alpha=0.4).named_parameters())
    moved = 0
    for name, old, new in pairs(small_ttm, prepared("sff-noise", small_ttm, alpha=0.4)):
        ours = new.double() - old.double()
        theirs = smoothed[name].detach().double() - old.double()
        assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-5, abs=1e-12)
        if ours.numel() > 100:
            moved += 1
            cosine = (ours * theirs).sum() / (ours.norm() * theirs.norm())
            assert abs(float(cosine)) < 5 / ours.numel() ** 0.5
    assert moved


def test_a_tensor_that_equals_its_twin_gets_no_noise(small_ttm: Path) -> None:
    model = models.load("ttm", small_ttm)
    norms = [name for name, part in part_of(model).items() if part == "norms"]
    table = model.initial()
    with torch.no_grad():
        for name, theta in model.named_parameters():
            if name in norms:
                theta.copy_(start_of(table[name], theta.shape, seed=0, name=name))
    kept = {name: theta.clone() for name, theta in model.named_parameters()}
    after = dict(prepared("sff-noise", None, model).named_parameters())
    assert norms
    assert all(torch.equal(after[name], kept[name]) for name in norms)


def test_the_permuted_twin_is_a_permutation(small_ttm: Path) -> None:
    changed = 0
    for _, old, new in pairs(small_ttm, prepared("sff-permuted", small_ttm, alpha=0.0)):
        assert torch.equal(new.flatten().sort().values, old.flatten().sort().values)
        changed += not torch.equal(new, old)
    assert changed


def test_the_permuted_twin_is_mixed_by_alpha(small_ttm: Path) -> None:
    model = prepared("sff-permuted", small_ttm, alpha=0.7)
    for name, old, new in pairs(small_ttm, model):
        order = torch.randperm(
            old.numel(), generator=stream(SEED, f"strategy/permutation of {name}")
        )
        flat = old.double().flatten().tolist()
        expected = [0.7 * x + 0.3 * flat[j] for x, j in zip(flat, order.tolist(), strict=True)]
        torch.testing.assert_close(
            new.double().flatten(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_rescaling_keeps_every_norm_and_sffs_direction(small_ttm: Path, alpha: float) -> None:
    smoothed = dict(prepared("sff", small_ttm, alpha=alpha).named_parameters())
    for name, old, new in pairs(small_ttm, prepared("sff-rescaled", small_ttm, alpha=alpha)):
        mixed = smoothed[name].detach().double()
        length = sum(x * x for x in old.double().flatten().tolist()) ** 0.5
        if float(mixed.norm()) == 0.0:  # nothing to give a norm to
            assert torch.equal(new.double(), mixed)
            continue
        assert float(new.double().norm()) == pytest.approx(length, rel=1e-6, abs=1e-12)
        expected = mixed * (length / float(mixed.norm()))
        torch.testing.assert_close(new.double(), expected, rtol=1e-6, atol=1e-7)


def test_gaussian_noise_is_scaled_by_each_tensors_own_spread(small_ttm: Path) -> None:
    for name, old, new in pairs(small_ttm, prepared("gaussian-noise", small_ttm, scale=0.3)):
        values = old.double().flatten().tolist()
        mean = sum(values) / len(values)
        std = (sum((x - mean) ** 2 for x in values) / len(values)) ** 0.5
        unit = sffkernels.Init.normal()
        drawn = sffkernels.draw(unit, old.shape, seed=SEED, name=f"gaussian-noise/{name}")
        torch.testing.assert_close(
            new.double(), old.double() + 0.3 * std * drawn.double(), rtol=1e-5, atol=1e-7
        )


CONTROLS: dict[str, dict[str, Any]] = {
    "shrink": {"alpha": 1.0},
    "sff-noise": {"alpha": 1.0},
    "sff-permuted": {"alpha": 1.0},
    "sff-rescaled": {"alpha": 1.0},
    "gaussian-noise": {"scale": 0.0},
    "shrink-and-perturb": {"alpha": 1.0, "times": 1},
}


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_control_that_is_off_is_full_bit_for_bit(fit: Fit, name: str) -> None:
    off, full = fit(name, **CONTROLS[name]), fit("full")
    for ours, theirs in zip(off.model.parameters(), full.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_control_that_is_on_repeats_its_bits_and_follows_the_seed(fit: Fit, name: str) -> None:
    first, again, other = (
        [p["train_loss"] for p in fit(name, seed=seed).curve] for seed in (1, 1, 2)
    )
    full = [p["train_loss"] for p in fit("full", seed=1).curve]
    assert first == again
    assert first not in (other, full)


# -- shrink and perturb ----------------------------------------------------------------------------


def test_shrink_and_perturb_once_is_sff_bit_for_bit(fit: Fit) -> None:
    once, sff = fit("shrink-and-perturb", times=1), fit("sff")
    for ours, theirs in zip(once.model.parameters(), sff.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_stretch_starts_with_a_twin_of_its_own(fit: Fit, monkeypatch: Any) -> None:
    from sffbench.strategies import shrink_and_perturb

    seen: list[tuple[int, dict[str, Tensor], dict[str, Tensor]]] = []
    mix = shrink_and_perturb.mix_with_random_twin

    def spy(model: LTSM, alpha: float, seed: int) -> None:
        before = {name: theta.detach().clone() for name, theta in model.named_parameters()}
        mix(model, alpha, seed)
        after = {name: theta.detach().clone() for name, theta in model.named_parameters()}
        seen.append((seed, before, after))

    monkeypatch.setattr(shrink_and_perturb, "mix_with_random_twin", spy)
    trained = fit("shrink-and-perturb", seed=4, protocol={"max_steps": 6})
    seeds = [seed for seed, _, _ in seen]
    assert seeds[0] == 4
    assert len(set(seeds)) == 3
    for seed, before, after in seen:
        drawn = twin(trained.model, seed)
        for name, old in before.items():
            expected = 0.7 * old.double() + 0.3 * drawn[name]
            torch.testing.assert_close(after[name].double(), expected, rtol=1e-6, atol=1e-7)


def test_a_budget_shorter_than_its_stretches_still_ends(fit: Fit) -> None:
    trained = fit("shrink-and-perturb", times=9, protocol={"max_steps": 2})
    assert trained.num_train_windows == 2 * 16
