"""LoRA by the peft library: what it trains, what it merges, where its random numbers are from."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sffkernels
from sffbench import models, strategies
from sffbench.context import Batches, Context, StepBudget, stream
from sffbench.data.windows import Windows
from sffbench.errors import InputError
from sffbench.strategies.adapters import adapted, merge, target_modules
from sffbench.tasks import Forecast
from sffbench.training import Trained

pytest.importorskip("peft")
Fit = Callable[..., Trained]


def _context(seed: int = 0, horizon: int = 8) -> Context:
    windows = Windows(torch.randn(600, 1, generator=torch.Generator().manual_seed(0)), 32, 8)
    return Context(
        task=Forecast(horizon),
        seed=seed,
        train=Batches(windows, 4, stream(0, "order")),
        budget=StepBudget(1, 4, 1, 1),
        clip_norm=1.0,
        reload=dict,
        score=lambda model: 0.0,
        lr=1e-3,
    )


def _moved(model: Any) -> None:
    """Every trainable weight somewhere else, so that no adapter is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


def test_lora_is_its_formula_by_hand(
    double_fit: Fit, by_hand: Any, cosine: Any, assert_close: Any
) -> None:
    """float64 oracle without the library: W + (alpha / r) B A as the weight of every map."""
    plain, rank, alpha = by_hand(), 3, 12
    maps = {n: m for n, m in plain.model.named_modules() if isinstance(m, torch.nn.Linear)}
    maps = {n: m for n, m in maps.items() if not n.startswith("head.")}
    base = {n: m.weight.detach().clone() for n, m in maps.items()}
    factors = {}
    for name, module in maps.items():
        bound = module.in_features**-0.5
        init = sffkernels.Init("uniform", -bound, bound)
        a = sffkernels.draw(
            init, (rank, module.in_features), seed=0, name=f"{name}.lora_A", dtype=torch.float64
        )
        b = torch.zeros(module.out_features, rank, dtype=torch.float64)
        factors[name] = (a.requires_grad_(), b.requires_grad_())
        del module.weight
    for parameter in plain.model.parameters():
        parameter.requires_grad_(False)
    head = list(plain.model.head.parameters())
    for parameter in head:
        parameter.requires_grad_(True)
    trained_by_hand = [*head, *(factor for pair in factors.values() for factor in pair)]
    optimizer = plain.adamw(trained_by_hand)
    for step in range(4):
        for name, (a, b) in factors.items():
            maps[name].weight = base[name] + (alpha / rank) * (b @ a)
        optimizer.zero_grad()
        plain.loss().backward()
        norm = sum(float(p.grad.square().sum()) for p in trained_by_hand) ** 0.5
        for parameter in trained_by_hand:
            parameter.grad.mul_(min(1.0, 1.0 / (norm + 1e-6)))
        optimizer.param_groups[0]["lr"] = 0.02 * cosine(step, 4)
        optimizer.step()
    for name, (a, b) in factors.items():
        del maps[name].weight
        maps[name].weight = torch.nn.Parameter((base[name] + (alpha / rank) * (b @ a)).detach())
    trained = double_fit("lora", r=rank, alpha=alpha, lr=0.005, lr_factor=4.0)
    expected = dict(plain.model.named_parameters())
    for name, value in trained.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_the_tested_model_is_a_plain_one_with_the_official_names(fit: Fit, small_ttm: Any) -> None:
    before = models.load("ttm", small_ttm)
    trained = fit("lora").model
    assert type(trained) is type(before)
    assert list(trained.state_dict()) == list(before.state_dict())
    assert [type(m) for m in trained.modules()] == [type(m) for m in before.modules()]
    again = models.load("ttm", small_ttm)
    again.load_state_dict(trained.state_dict(), strict=True)
    past = torch.randn(2, 1, 32)
    assert torch.equal(again.forecast(past, 8), trained.forecast(past, 8))


def test_only_adapted_maps_and_the_head_change(fit: Fit, small_ttm: Any) -> None:
    before = models.load("ttm", small_ttm)
    maps = {f"{name}.weight" for name in target_modules(before)}
    head = {n for n, _ in before.named_parameters() if n.startswith("head.")}
    pairs = zip(before.named_parameters(), fit("lora").model.parameters(), strict=True)
    changed = {name for (name, old), new in pairs if not torch.equal(old, new)}
    assert maps
    assert changed == maps | head


def test_the_count_of_trained_parameters_is_of_adapters_and_head(fit: Fit, small_ttm: Any) -> None:
    model = models.load("ttm", small_ttm)
    maps = [model.get_submodule(name) for name in target_modules(model)]
    expected = sum(2 * (m.in_features + m.out_features) for m in maps)
    expected += sum(p.numel() for p in model.head.parameters())
    trained = fit("lora", r=2)
    assert trained.num_trained == expected
    assert sum(p.numel() for p in trained.model.parameters()) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize("name", models.names())
def test_every_model_takes_adapters_and_gives_them_back(name: str) -> None:
    model, plain = models.load(f"{name}:tiny"), models.load(f"{name}:tiny")
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(3, 1, model.lookback, generator=generator)
    future = torch.randn(3, 1, 24, generator=generator)

    def forecast(of: Any) -> torch.Tensor:
        return of.forecast(past, 24, generator=torch.Generator().manual_seed(1))

    reference = forecast(model)
    strategies.get("lora").prepare(model, _context(horizon=24))
    assert len(adapted(model)) == len(target_modules(plain)) > 0
    torch.testing.assert_close(forecast(model), reference, rtol=0, atol=1e-6)  # B = 0
    model.train().loss(past, future).backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, p in model.named_parameters() if p.requires_grad}
    _moved(model)
    with_adapters = forecast(copy.deepcopy(model))
    merge(model)
    assert not torch.allclose(with_adapters, reference, atol=1e-3)
    torch.testing.assert_close(forecast(model), with_adapters, rtol=1e-6, atol=1e-6)
    assert list(model.state_dict()) == list(plain.state_dict())
    maps = {f"{target}.weight" for target in target_modules(plain)}
    for (key, new), old in zip(model.named_parameters(), plain.parameters(), strict=True):
        is_kept = key not in maps and not key.startswith(plain.head_prefixes)
        assert torch.equal(new, old) == is_kept, key


def test_no_adapter_stands_beside_a_weight_that_the_head_shares() -> None:
    """Chronos-T5's output map is its embedding: an adapter merged into it would change both."""
    model = models.create("chronos:t5-tiny", seed=0)
    head = {id(p) for n, p in model.named_parameters() if n.startswith(model.head_prefixes)}
    targets = target_modules(model)
    assert targets
    assert not any(id(model.get_submodule(name).weight) in head for name in targets)


def test_adapters_depend_on_the_seed_and_on_nothing_global(small_ttm: Any) -> None:
    drawn = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        model = strategies.get("lora").prepare(models.load("ttm", small_ttm), _context(seed))
        assert torch.equal(torch.get_rng_state(), before)
        drawn.append({n: p for n, p in model.named_parameters() if "lora_A" in n})
    assert drawn[0]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in drawn[0])


def test_two_runs_of_one_seed_give_the_same_bits(fit: Fit) -> None:
    first, second = fit("lora", dropout=0.1), fit("lora", dropout=0.1)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize(("fields", "expected"), [({}, 0.02), ({"lr": 0.003}, 0.003)])
def test_a_rate_of_its_own_is_taken_as_it_is(
    small_ttm: Any, fields: dict[str, float], expected: float
) -> None:
    strategy, ctx = strategies.get("lora", **fields), _context()
    model = strategy.prepare(models.load("ttm", small_ttm), ctx)
    ctx.lr = fields.get("lr", 0.002)
    (group,) = strategy.parameters(model, ctx)
    assert group["lr"] == pytest.approx(expected)  # type: ignore[index]


def test_without_the_library_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'sffbench\[peft\]'") as caught:
        strategies.get("lora")
    assert "\n" not in str(caught.value)
