"""One conformance suite for all models: every rule of the contract, on every tiny network."""

from __future__ import annotations

import copy
from fnmatch import fnmatch

import pytest
import torch

from sffbench import models
from sffbench.errors import InputError

SMALL = {  # networks without a tiny preset, and the fields that make them small
    "timer:1.0-imputation": {},
    "timesfm:2.5-200m": {
        "stacked_transformers": {
            "num_layers": 2,
            "transformer": {"model_dims": 48, "hidden_dims": 32, "num_heads": 4},
        },
        "tokenizer": {},
        "output_projection_point": {},
        "output_projection_quantiles": {},
        "lookback": 512,
    },
}
NETWORKS = [*(f"{name}:tiny" for name in models.names()), *SMALL]


@pytest.fixture(params=NETWORKS)
def model(request):
    return models.create(request.param, seed=0, **SMALL.get(request.param, {}))


@pytest.fixture
def past(model):
    return torch.randn(3, 2, model.lookback, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("horizon", [1, 96, 250])
def test_a_forecast_has_the_asked_horizon_and_no_gradient(model, past, horizon):
    forecast = model.forecast(past, horizon)
    assert forecast.shape == (3, 2, horizon)
    assert forecast.isfinite().all()
    assert not forecast.requires_grad


def test_windows_are_independent_and_so_are_channels_unless_the_model_says_it_mixes_them(
    model, past
):
    whole = model.forecast(past, 96)
    torch.testing.assert_close(whole[1:2], model.forecast(past[1:2], 96), rtol=1e-4, atol=1e-4)
    alone = model.forecast(past[1:2, 1:2], 96)
    assert torch.allclose(whole[1:2, 1:2], alone, rtol=1e-4, atol=1e-4) != model.mixes_channels


def test_a_forecast_ignores_dropout_and_leaves_the_mode_of_each_module(model, past):
    expected = model.forecast(past, 96)
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(model.forecast(past, 96), expected)
    assert [module.training for module in model.modules()] == modes


def test_the_loss_reaches_every_parameter_but_frozen_ones_and_those_named_unused(model, past):
    model.train().loss(past, torch.randn(3, 2, 96)).backward()
    reached = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in reached.values())
    assert reached.keys() == {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not any(fnmatch(name, idle) for idle in model.unused)
    }


def test_the_loss_of_a_batch_is_the_mean_over_its_windows(model, past, not_applicable):
    if model.random_loss:
        not_applicable("its loss draws noise of its own at each call")
    future = torch.randn(3, 2, 96)
    channels = [slice(None)] if model.mixes_channels else [slice(0, 1), slice(1, 2)]
    with torch.no_grad():
        each = [
            model.loss(past[i : i + 1, c], future[i : i + 1, c]).double()
            for i in range(3)
            for c in channels
        ]
        whole = model.loss(past, future)
    assert whole.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_only_a_loss_that_says_it_is_random_differs_between_two_calls(model, past):
    future = torch.randn(3, 2, 96)
    with torch.no_grad():
        first, second = model.loss(past, future), model.loss(past, future)
    assert torch.equal(first, second) != model.random_loss


def test_masked_values_do_not_enter_the_loss_even_as_nan(model, past):
    future, wanted = torch.randn(3, 2, 96), torch.ones(3, 2, 96)
    wanted[..., 40:50] = 0
    losses = []
    for hidden in (float("nan"), 1e6):
        torch.manual_seed(0)
        masked = future.masked_fill(wanted == 0, hidden)
        losses.append(model.loss(past, masked, future_mask=wanted))
    assert losses[0].isfinite()
    assert torch.equal(losses[0], losses[1])


def test_a_few_steps_of_training_lower_the_loss(model, past):
    future = past[..., -96:] * 0.5 + 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        torch.manual_seed(0)  # a loss that draws noise draws the same one
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
    torch.manual_seed(0)
    exact = model.loss(past, future).item()
    torch.manual_seed(0)
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
        ("samples", "num_samples must be"),
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
            call["num_samples"] = 0 if "probabilistic" in model.capabilities else 20
    with pytest.raises(InputError, match=message) as caught:
        model.forecast(call.pop("past"), call.pop("horizon"), **call)
    assert "\n" not in str(caught.value)


def test_past_and_future_of_different_channels_are_refused(model, past):
    with pytest.raises(InputError, match="differ in"):
        model.loss(past, torch.randn(3, 1, 96))
