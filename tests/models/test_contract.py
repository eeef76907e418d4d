"""One conformance suite for all models: every rule of the contract, on every tiny network."""

from __future__ import annotations

import copy

import pytest
import torch

from sffbench import models
from sffbench.errors import InputError

NETWORKS = [*(f"{name}:tiny" for name in models.names()), "timer:1.0-imputation"]


@pytest.fixture(params=NETWORKS)
def model(request):
    return models.create(request.param, seed=0)


@pytest.fixture
def past(model):
    return torch.randn(3, 2, model.lookback, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("horizon", [1, 96, 250])
def test_a_forecast_has_the_asked_horizon_and_no_gradient(model, past, horizon):
    forecast = model.forecast(past, horizon)
    assert forecast.shape == (3, 2, horizon)
    assert forecast.isfinite().all()
    assert not forecast.requires_grad


def test_channels_and_windows_are_independent(model, past):
    whole = model.forecast(past, 96)
    alone = model.forecast(past[1:2, 1:2], 96)
    torch.testing.assert_close(whole[1:2, 1:2], alone, rtol=1e-4, atol=1e-4)


def test_a_forecast_ignores_dropout_and_leaves_the_mode_of_each_module(model, past):
    expected = model.forecast(past, 96)
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.forecast(past, 96), expected)
    assert [module.training for module in model.modules()] == modes


def test_the_loss_reaches_every_parameter(model, past):
    model.train().loss(past, torch.randn(3, 2, 96)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_loss_of_a_batch_is_the_mean_over_its_windows(model, past):
    future = torch.randn(3, 2, 96)
    with torch.no_grad():
        each = [
            model.loss(past[i : i + 1, c : c + 1], future[i : i + 1, c : c + 1]).double()
            for i in range(3)
            for c in range(2)
        ]
        whole = model.loss(past, future)
    assert whole.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_a_few_steps_of_training_lower_the_loss(model, past):
    future = past[..., -96:] * 0.5 + 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = model.loss(past, future)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_model_can_be_copied_and_trained_after_it_forecast_in_inference_mode(model, past):
    with torch.inference_mode():
        model._forecast(past, 96)
    twin = copy.deepcopy(model)
    twin.loss(past, torch.randn(3, 2, 96)).backward()
    assert torch.equal(twin.forecast(past, 96), model.forecast(past, 96))


def test_training_in_bfloat16_autocast_stays_near_float32(model, past):
    future = torch.randn(3, 2, 96)
    exact = model.loss(past, future).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(past, future)
    assert loss.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank", "rank 3"),
        ("list", "must be a torch tensor"),
        ("integer", "floating point"),
        ("nan", "NaN or infinite"),
        ("infinite", "NaN or infinite"),
        ("empty", "empty"),
        ("mask", "past_mask is"),
        ("horizon", "horizon must be an integer >= 1, given 0"),
        ("samples", "num_samples must be None"),
    ],
)
def test_bad_input_is_one_clear_line(model, past, given, message):
    call = {"past": past, "horizon": 96}
    match given:
        case "rank":
            call["past"] = past[0]
        case "list":
            call["past"] = past.tolist()
        case "integer":
            call["past"] = past.long()
        case "nan" | "infinite":
            call["past"] = past.clone()
            call["past"][0, 0, 5] = float("nan" if given == "nan" else "inf")
        case "empty":
            call["past"] = past[:0]
        case "mask":
            call["past_mask"] = torch.ones(3, 2, 5)
        case "horizon":
            call["horizon"] = 0
        case "samples":
            call["num_samples"] = 20
    with pytest.raises(InputError, match=message) as caught:
        model.forecast(call.pop("past"), call.pop("horizon"), **call)
    assert "\n" not in str(caught.value)


def test_past_and_future_of_different_channels_are_refused(model, past):
    with pytest.raises(InputError, match="differ in"):
        model.loss(past, torch.randn(3, 1, 96))
