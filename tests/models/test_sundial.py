"""Sundial against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models.sundial import statistics

ATOL = 5e-5  # the README's tolerance; samples have twice as much


def close(gold, name, actual, atol=ATOL):
    gold.check(name, actual, rtol=0.0, atol=atol)


@pytest.fixture
def gold(golden):
    return golden("sundial")


@pytest.fixture
def recorded(gold, monkeypatch):
    """Draw the recorded noise of the blocks instead of new one."""

    def use():
        blocks = iter(gold.io["gen_noise"])
        monkeypatch.setattr(
            "sffbench.models.sundial.random", lambda law, shape, *_: next(blocks).view(shape)
        )

    return use


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, stages, recorded):
    model, series = gold.model(), gold.io["input"]
    seen = stages(model, lambda: model.model(series))
    close(gold, "hidden_embed", seen["model.embed_layer"])
    close(gold, "hidden_layer1", seen["model.layers.0"])
    close(gold, "hidden_last", seen["model"])
    last = seen["model"][:, -1]
    seen = stages(model, lambda: model.model(gold.io["input_ragged"]))
    close(gold, "hidden_embed_ragged", seen["model.embed_layer"])
    close(gold, "hidden_last_ragged", seen["model"])
    with torch.no_grad():
        net = model.flow_loss["net"](gold.io["net_x"], gold.io["net_t"], gold.io["net_c"])
        close(gold, "net_out", net)
        for name, noise in (("sample_out", "sample_noise"), ("fwd_no_revin", "fwd_noise")):
            drawn = model.flow(last, gold.io[noise].view(5, 3, 12))
            close(gold, name, drawn.transpose(0, 1), atol=1e-4)
    training(gold, model)

    generator = torch.Generator()  # windows have noise of their own where one is given
    cases = [("gen_samples", "input", 30), ("gen_short", "input", 7)]
    for name, given, horizon in [*cases, ("gen_ragged_samples", "input_ragged", 30)]:
        recorded()
        drawn = model.sample(gold.io[given][:, None], horizon, 5, generator)
        close(gold, name, drawn, atol=1e-4)
    recorded()
    mean = model.forecast(series[:, None], 30, num_samples=5, generator=generator)
    close(gold, "point_forecast_mean", mean, atol=1e-4)
    recorded()
    drawn = model.sample(series[:, None], 30, 5, generator)
    close(gold, "point_forecast_median", drawn.median(2).values, atol=1e-4)
    inputs = {"input", "input_ragged", "labels", "loss_masks", "mask_y", "loss_noise", "loss_t"}
    inputs |= {"net_x", "net_t", "net_c", "sample_noise", "fwd_noise", "gen_noise"}
    assert gold.compared == set(gold.io) - inputs


def training(gold, model):
    """Losses for the recorded draws, and two gradients; masks in upstream's tiling order."""
    series, labels = gold.io["input"], gold.io["labels"]
    noise, time = gold.io["loss_noise"].view(2, 18, 12), gold.io["loss_t"].view(2, 18)

    def errors(loc, scale, weight):
        condition = model.model((series - loc) / scale).flatten(0, 1)
        target = ((labels - loc) / scale).unfold(1, 12, 4).flatten(0, 1)
        return model.errors(condition, target, noise, time, weight)

    ones = torch.ones(12)
    close(gold, "loss_no_revin", errors(0.0, 1.0, ones).mean())
    mean, std = statistics(series, None)
    loss = errors(mean, std, ones).mean()
    close(gold, "loss", loss)
    loss.backward()
    close(gold, "grad_final_linear", model.flow_loss["net"].final_layer.linear.weight.grad)
    close(gold, "grad_q0", model.model.layers[0].self_attn.q_proj.weight.grad)
    tiled = gold.io["mask_y"].repeat(12, 1).view(2, 18, 12)
    rows, counted = errors(mean, std, tiled), gold.io["loss_masks"].flatten()
    close(gold, "loss_masked_official", (rows * counted).sum() / (2 * counted.sum()))


def test_a_state_dict_survives_loading(gold):
    original, state = load_file(gold.folder / "model.safetensors"), gold.model().state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


def test_the_preset_has_the_keys_and_shapes_of_the_published_checkpoint(gold):
    published = json.loads((gold.folder / "published_shapes.json").read_text())
    expected = published["thuml/sundial-base-128m"]
    with torch.device("meta"):
        model = models.get("sundial")(models.preset("sundial:base-128m").config)
    shapes = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert shapes == {key: entry["shape"] for key, entry in expected["keys"].items()}
    assert sum(p.numel() for p in model.parameters()) == expected["parameters"]


def test_forecasts_without_a_generator_are_the_same_however_windows_are_batched(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    whole = model.forecast(past, 30)
    assert torch.equal(model.forecast(past, 30), whole)
    torch.testing.assert_close(model.forecast(past[1:2], 30), whole[1:2])


def test_a_generator_gives_each_window_samples_of_its_own_and_the_seed_decides(gold):
    model, past = gold.model(), gold.io["input"][:1, None].expand(2, 3, -1)
    first, again, other = (
        model.sample(past, 20, 7, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (2, 3, 7, 20)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0, 0], first[1, 2])
    generator = torch.Generator().manual_seed(1)
    mean = model.forecast(past, 20, num_samples=7, generator=generator)
    torch.testing.assert_close(mean, first.mean(2))


def test_quantiles_are_those_of_the_samples(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    found = model.quantiles(past, 9, [0.1, 0.5, 0.9], num_samples=50)
    drawn = model.sample(past, 9, 50).double()
    expected = drawn.quantile(torch.tensor([0.1, 0.5, 0.9]).double(), dim=2).movedim(0, 2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("num_past", "num_future"), [(24, 12), (22, 5), (24, 31), (23, 25)])
def test_the_loss_is_the_harmonic_error_of_the_clean_target_after_each_token(
    gold, num_past, num_future
):
    model, past = gold.model(), gold.io["input"][:, None, -num_past:]
    future = torch.randn(3, 1, num_future)
    loss = model.loss(past, future, generator=torch.Generator().manual_seed(3))
    mean, std = past[:, 0].double().mean(1), past[:, 0].double().std(1, correction=0)
    whole = torch.cat([past, future], dim=-1)[:, 0].double()
    whole = (whole - mean[:, None]) / std[:, None]
    counted = min(num_future, 12)
    num_inputs = num_past + -(-(num_future - counted) // 4) * 4
    num_tokens = -(-num_inputs // 4)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 3, num_tokens, 12, generator=generator)
    time = torch.rand(2, 3, num_tokens, generator=generator)
    hidden = model.model(whole[:, :num_inputs].float()).detach()
    total, net = 0.0, model.flow_loss["net"]
    for draw in range(2):
        for row in range(3):
            for token in range(num_tokens):
                start = num_inputs - 4 * (num_tokens - 1 - token)
                target = torch.zeros(12, dtype=torch.float64)
                known = whole[row, start : start + 12]
                target[: len(known)] = known
                t, e = time[draw, row, token], noise[draw, row, token]
                noised = (t * target + (1 - t) * e).float()
                with torch.no_grad():
                    found = net(noised[None], t[None], hidden[row, token][None])[0].double()
                size = min(counted, len(known))
                each = (found - target)[:size].square() / torch.arange(1, size + 1)
                total += each.sum().item()
    assert loss.item() == pytest.approx(total / (2 * 3 * num_tokens), rel=1e-4)


def test_masks_of_ones_change_neither_loss_nor_forecast(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    future = torch.randn(3, 1, 20)
    masks = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    losses = [
        model.loss(past, future, generator=torch.Generator().manual_seed(0), **given)
        for given in ({}, masks)
    ]
    torch.testing.assert_close(*losses)
    full = model.forecast(past, 20, past_mask=masks["past_mask"])
    torch.testing.assert_close(full, model.forecast(past, 20))


def test_missing_values_in_front_are_what_a_shorter_context_leaves_out(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    mask = torch.ones_like(past)
    mask[..., :2] = 0.0
    spoilt = past.masked_fill(mask == 0, float("nan"))
    shorter = model.forecast(past[..., 2:], 20)
    torch.testing.assert_close(model.forecast(spoilt, 20, past_mask=mask), shorter)


def test_masked_future_values_carry_no_loss(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    future, mask = torch.randn(3, 1, 12), torch.ones(3, 1, 12)
    mask[..., 5:] = 0.0
    losses = [
        model.loss(past, given, future_mask=mask, generator=torch.Generator().manual_seed(0)).item()
        for given in (future, future.masked_fill(mask == 0, 1e6))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("level", [0.0, 0.1, -3e6])
def test_a_constant_context_is_forecast_near_that_constant(gold, level):
    model = gold.model()
    past = torch.full((2, 1, 24), level)
    expected = torch.full((2, 1, 20), level)
    torch.testing.assert_close(model.forecast(past, 20), expected, rtol=1e-6, atol=1e-3)
    assert model.loss(past, past[..., :8]).isfinite()


def test_dropout_acts_in_training_alone_and_follows_the_option(gold):
    past, future = gold.io["input"][:, None], torch.randn(3, 1, 12)

    def losses(model):
        torch.manual_seed(0)
        found = [
            model.loss(past, future, generator=torch.Generator().manual_seed(0)) for _ in range(2)
        ]
        return [loss.item() for loss in found]

    first, second = losses(gold.model().train())
    assert first != second
    still = models.load("sundial", gold.folder, dropout_rate=0.0)
    assert len({*losses(still.train()), *losses(still.eval())}) == 1


def test_fewer_sampling_steps_are_an_option(gold):
    past = gold.io["input"][:, None]
    quick = models.load("sundial", gold.folder, num_sampling_steps=1)
    assert not torch.allclose(quick.forecast(past, 9), gold.model().forecast(past, 9))


def test_initial_is_normal_with_the_configured_spread():
    model = models.create("sundial:tiny", seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            error = 5 * 0.02 / (2 * parameter.numel()) ** 0.5
            assert parameter.std().item() == pytest.approx(0.02, abs=error), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / parameter.numel() ** 0.5
        else:
            gain = name.endswith("weight")
            assert parameter.unique().tolist() == [float(gain)], name


def test_bfloat16_autocast_stays_near_float32(gold):
    model, past = gold.model(), gold.io["input"][:, None]
    exact = model.forecast(past, 30)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 30)
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_config_beyond_this_file_is_one_clear_line(gold):
    config = json.loads((gold.folder / "config.json").read_text())
    with pytest.raises(InputError, match="hidden_act='tanh' is not supported, allowed: silu"):
        models.get("sundial")(config | {"hidden_act": "tanh"})
    del config["flow_loss_depth"]
    with pytest.raises(InputError, match=r"sundial: config\.json lacks flow_loss_depth"):
        models.get("sundial")(config)


def test_a_number_of_samples_below_one_is_refused(gold):
    past = gold.io["input"][:, None]
    for call in (
        lambda: gold.model().sample(past, 8, 0),
        lambda: gold.model().forecast(past, 8, num_samples=0),
    ):
        with pytest.raises(InputError, match="num_samples must be an integer >= 1, given 0"):
            call()
