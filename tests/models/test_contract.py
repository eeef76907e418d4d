"""One conformance suite for all models: every rule of the contract, on every tiny network."""

from __future__ import annotations

import copy
import json
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import save_file

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


@pytest.mark.parametrize("horizon", [-1, 0, 1.5, True, "96", None])
def test_a_horizon_is_a_whole_number_above_0(model, past, horizon):
    with pytest.raises(InputError, match="horizon must be an integer >= 1, given"):
        model.forecast(past, horizon)


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_a_lookback_is_long_enough_to_forecast_or_refused_in_one_line(model, past, length):
    refused = None
    try:
        assert model.forecast(past[..., :length], 5).isfinite().all()
    except InputError as error:
        refused = str(error)
    allowed = "past is empty" if length == 0 else "a lookback of at least"
    assert refused is None or (allowed in refused and "\n" not in refused)
    assert refused is not None or length > 0


def test_a_window_without_any_value_and_a_constant_one_are_forecast_finite(model, past):
    absent = model.forecast(past, 5, past_mask=torch.zeros_like(past))
    assert absent.isfinite().all()
    assert model.forecast(torch.full_like(past, 3.3), 5).isfinite().all()


@pytest.mark.parametrize("levels", [[], [0.0], [0.5, 1.0], [-0.1], [float("nan")]])
def test_quantile_levels_lie_between_0_and_1(model, past, levels):
    match = "levels" if "probabilistic" in model.capabilities else "is a point model"
    with pytest.raises(InputError, match=match):
        model.quantiles(past, 5, levels)


@pytest.mark.parametrize("which", ["past", "future"])
def test_a_loss_of_nothing_is_refused(model, past, which):
    values = {"past": past, "future": torch.randn(3, 2, 8)}
    values[which] = values[which][..., :0]
    with pytest.raises(InputError, match="nothing to learn from"):
        model.loss(**values)


def test_past_and_future_of_different_channels_are_refused(model, past):
    with pytest.raises(InputError, match="differ in"):
        model.loss(past, torch.randn(3, 1, 96))


@pytest.mark.parametrize("name", models.names())
def test_an_unknown_preset_names_the_nearest(name):
    with pytest.raises(InputError, match=f"unknown preset of {name} 'tinny'.*'tiny'"):
        models.create(f"{name}:tinny")


@pytest.fixture
def folder(model, tmp_path):
    """The network saved as its authors publish it, and its family's name."""
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return model.name, tmp_path


def test_truncated_weights_are_one_line(folder):
    name, path = folder
    weights = path / "model.safetensors"
    for length in (0, 7, 100, weights.stat().st_size - 4):
        whole = weights.read_bytes()
        weights.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.safetensors") as caught:
            models.load(name, path)
        assert "\n" not in str(caught.value)
        weights.write_bytes(whole)


def test_foreign_weights_are_one_line_that_names_keys(folder):
    name, path = folder
    save_file({"foreign.weight": torch.ones(2, 2)}, path / "model.safetensors")
    with pytest.raises(InputError, match=r"(missing|unexpected|lacks|no ).*") as caught:
        models.load(name, path)
    assert "\n" not in str(caught.value)


def test_every_field_of_a_preset_refuses_another_kind_and_is_named(model):
    """Numbers below 0, words where numbers stand, nothing at all: no network comes of them."""
    cls, fields = type(model), models.get(model.name).presets["tiny"].config
    if set(fields) - set(model.config):
        pytest.skip("a variant whose fields are others than those of tiny")
    for key, like in fields.items():
        bad = [None, object()] if isinstance(like, bool) else [None, -1, "x", [], {}]
        for value in bad:
            if isinstance(like, str) and isinstance(value, str):
                continue
            if (model.name, key, value) == ("moirai", "num_heads", None):  # d_model // 64
                continue
            with pytest.raises(InputError, match=f"^{model.name}: ") as caught:
                models._empty(cls, {**model.config, key: value}, None, None)
            assert "\n" not in str(caught.value)
