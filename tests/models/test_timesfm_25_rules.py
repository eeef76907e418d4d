"""TimesFM 2.5's own rules: contexts, statistics, recursion, the authors' options, the loss."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._timesfm_25_inputs import running_statistics

PLAIN = {"force_flip_invariance": False, "infer_is_positive": False}


@pytest.fixture
def gold(golden):
    return golden("timesfm-2.5")


def load(gold, **options):
    return models.load("timesfm", gold.folder, **options)


def other_size(patch=4, block=12, spread=20, width=24, inner=40, heads=3, layers=3):
    """A network unlike the golden one in every size, with weights of unit spread."""

    def block_of(given, out):
        return {"input_dims": given, "hidden_dims": inner, "output_dims": out}

    config = {
        "context_limit": 40,
        "input_patch_len": patch,
        "output_patch_len": block,
        "output_quantile_len": spread,
        "quantiles": [0.2, 0.5, 0.8],
        "decode_index": 2,
        "tokenizer": block_of(2 * patch, width),
        "stacked_transformers": {
            "num_layers": layers,
            "transformer": {"model_dims": width, "hidden_dims": inner, "num_heads": heads},
        },
        "output_projection_point": block_of(width, 4 * block),
        "output_projection_quantiles": block_of(width, 4 * spread),
    }
    model = models.get("timesfm").variant(config)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 1.0
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    return model


def oracle(model, series, horizon):
    """The median recursion in float64, one patch and one head at a time, without a cache."""
    model, fields = copy.deepcopy(model).double(), model.fields
    state = dict(model.named_parameters())
    patch, heads = fields["input_patch_len"], fields["num_heads"]

    def norm(values, name):
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[name]

    def block(values, name):
        def linear(layer, values):
            return F.linear(
                values, state[f"{name}.{layer}.weight"], state.get(f"{name}.{layer}.bias")
            )

        return linear("output_layer", F.silu(linear("hidden_layer", values))) + linear(
            "residual_layer", values
        )

    def attend(hidden, name):
        parts = F.linear(hidden, state[f"{name}.qkv_proj.weight"]).chunk(3, -1)
        width = parts[0].shape[-1] // heads
        outs = []
        for head in range(heads):
            query, key, value = (part[:, head * width : (head + 1) * width] for part in parts)
            rate = 10000.0 ** (-torch.arange(width // 2).double() * 2 / width)
            angle = torch.arange(len(hidden))[:, None] * rate

            def turn(values, angle=angle):
                first, second = values.chunk(2, -1)
                cos, sin = angle.cos(), angle.sin()
                return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

            scale = F.softplus(state[f"{name}.per_dim_scale.per_dim_scale"]) / math.log(2)
            query = norm(turn(query), f"{name}.query_ln.scale") * scale / width**0.5
            scores = query @ norm(turn(key), f"{name}.key_ln.scale").T
            later = torch.ones_like(scores).triu(1).bool()
            outs.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ value)
        return F.linear(torch.cat(outs, -1), state[f"{name}.out.weight"])

    series, blocks = series.double(), []
    while sum(map(len, blocks)) < horizon:
        tokens = []
        for end in range(patch, len(series) + 1, patch):
            so_far = series[:end]
            normed = (so_far[-patch:] - so_far.mean()) / so_far.std(correction=0)
            tokens.append(torch.cat([normed, torch.zeros(patch)]))
        hidden = block(torch.stack(tokens), "tokenizer")
        for index in range(fields["num_layers"]):
            name = f"stacked_xf.{index}"
            mixed = attend(norm(hidden, f"{name}.pre_attn_ln.scale"), f"{name}.attn")
            hidden = hidden + norm(mixed, f"{name}.post_attn_ln.scale")
            inner = F.silu(
                F.linear(norm(hidden, f"{name}.pre_ff_ln.scale"), state[f"{name}.ff0.weight"])
            )
            change = F.linear(inner, state[f"{name}.ff1.weight"])
            hidden = hidden + norm(change, f"{name}.post_ff_ln.scale")
        outputs = block(hidden[-1], "output_projection_point").view(model.block, -1)
        blocks.append(outputs[:, model.point] * series.std(correction=0) + series.mean())
        series = torch.cat([series, blocks[-1]])
    return torch.cat(blocks)[:horizon].detach()


def test_a_network_of_other_sizes_forecasts_what_the_formulas_say_in_float64():
    model = other_size().eval()
    past = 5 + torch.randn(1, 1, 40, generator=torch.Generator().manual_seed(1))
    upright, flipped = (oracle(model, sign * past[0, 0], 50) for sign in (1, -1))
    expected = (upright - flipped) / 2
    if bool((past >= 0).all()):
        expected = expected.clamp_min(0.0)
    actual = model.forecast(past, 50)[0, 0]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


def test_a_short_context_is_padded_in_front_as_the_authors_pad_it(gold):
    model = load(gold)
    past = 5 + torch.randn(2, 1, 37)
    padded = F.pad(past, (27, 0))  # up to a max_context of 64
    mask = F.pad(torch.ones_like(past), (27, 0))
    alone = model.forecast(past, 40)
    torch.testing.assert_close(model.forecast(padded, 40, past_mask=mask), alone)
    assert model.forecast(past[..., :1], 40).isfinite().all()


def test_a_longer_context_is_cut_on_the_left_and_a_horizon_may_go_beyond_it():
    model = other_size()
    past = torch.randn(2, 1, 90)
    assert torch.equal(model.forecast(past, 24), model.forecast(past[..., -40:], 24))
    long = model.forecast(past, 200)
    assert long.isfinite().all()
    torch.testing.assert_close(long[..., :24], model.forecast(past, 24))


def test_missing_values_are_interpolated_as_numpy_does(gold):
    model = load(gold)
    past, mask = torch.randn(4, 1, 40), (torch.rand(4, 1, 40) > 0.4).float()
    mask[:, :, [0, 1, -1]] = 0.0
    mask[3] = 0.0
    for row in range(3):
        place = mask[row, 0].nonzero()[:, 0].numpy()
        filled = np.interp(np.arange(place[0], 40), place, past[row, 0, place].numpy())
        expected = model.forecast(torch.from_numpy(filled).float()[None, None], 20)[0]
        spoilt = past[row : row + 1].masked_fill(mask[row : row + 1] == 0, float("nan"))
        actual = model.forecast(spoilt, 20, past_mask=mask[row : row + 1])[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    nothing = model.forecast(past[3:], 20, past_mask=mask[3:])
    torch.testing.assert_close(nothing, model.forecast(torch.zeros(1, 1, 40), 20))


@pytest.mark.parametrize("level", [0.0, 0.1, -7.0, 3e3, 1e7])
def test_a_constant_context_is_forecast_as_itself_and_trains_without_nan(gold, level):
    model = load(gold)
    past = torch.full((2, 1, 60), level)
    torch.testing.assert_close(model.forecast(past, 40), torch.full((2, 1, 40), level))
    model.loss(past, past[..., :40] + 1.0).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("level", [0.0, 1e-3, -30.0, 1e4])
def test_running_statistics_are_those_of_all_observed_values_so_far(level):
    generator = torch.Generator().manual_seed(0)
    patches = level + torch.randn(5, 11, 8, generator=generator)
    patches[0, :3] = level  # a flat start
    patches[1, 5:] += 1e4  # a jump
    pads = torch.zeros_like(patches)
    pads[2, :3], pads[2, 3, :5], pads[3] = 1.0, 1.0, 1.0
    loc, scale = running_statistics(patches, pads)
    for row in range(5):
        for place in range(11):
            seen = patches[row, : place + 1][pads[row, : place + 1] == 0].double()
            expected = (seen.mean(), seen.std(correction=0)) if len(seen) else (0.0, 0.0)
            assert loc[row, place].item() == pytest.approx(float(expected[0]), rel=1e-6, abs=1e-6)
            assert scale[row, place].item() == pytest.approx(float(expected[1]), rel=1e-6, abs=1e-9)


def test_quantiles_are_the_networks_own_lines_between_and_the_outermost_beyond(gold):
    model = load(gold)
    past = torch.randn(2, 3, 64)
    with torch.no_grad():
        own = model._outputs(past, 40, None)[..., 1:].movedim(-1, 2)
    trained = model.quantiles(past, 40, [0.9, 0.5, 0.1])
    assert trained.shape == (2, 3, 3, 40)
    assert torch.equal(trained, own[:, :, [8, 4, 0]])
    assert torch.equal(trained[:, :, 1], model.forecast(past, 40))
    between = model.quantiles(past, 40, [0.25, 0.01, 0.99])
    torch.testing.assert_close(between[:, :, 0], (own[:, :, 1] + own[:, :, 2]) / 2)
    assert torch.equal(between[:, :, 1:], own[:, :, [0, 8]])


def test_a_series_upside_down_has_its_forecast_upside_down_unless_that_is_switched_off(gold):
    past = torch.randn(2, 1, 64)
    levels = [0.1, 0.3, 0.5, 0.8]
    mirrored = [1 - level for level in levels]
    model = load(gold)
    torch.testing.assert_close(
        model.quantiles(-past, 40, levels), -model.quantiles(past, 40, mirrored)
    )
    free = load(gold, force_flip_invariance=False)
    assert not torch.allclose(free.forecast(-past, 40), -free.forecast(past, 40), atol=0.1)


def test_only_a_context_without_negative_values_has_a_floor_of_0(gold):
    past = torch.rand(2, 1, 64)
    past[1, 0, 60] = -0.1
    free = load(gold, infer_is_positive=False).quantiles(past, 40, [0.1, 0.5])
    assert (free < 0).flatten(1).any(1).all()
    floored = load(gold).quantiles(past, 40, [0.1, 0.5])
    assert torch.equal(floored, torch.stack([free[0].clamp_min(0.0), free[1]]))


def test_quantiles_that_cross_are_put_in_order_around_the_median(gold):
    past = torch.randn(2, 1, 64)
    levels = [level / 10 for level in range(1, 10)]
    crossed = load(gold).quantiles(past, 40, levels)
    ordered = load(gold, fix_quantile_crossing=True).quantiles(past, 40, levels)
    assert (crossed.diff(dim=2) < 0).any()
    assert (ordered.diff(dim=2) >= 0).all()
    assert torch.equal(ordered[:, :, 4], crossed[:, :, 4])
    step = crossed[0, 0, :, 0].tolist()
    for place in (3, 2, 1, 0):
        step[place] = min(step[place], step[place + 1])
    for place in (5, 6, 7, 8):
        step[place] = max(step[place], step[place - 1])
    assert ordered[0, 0, :, 0].tolist() == step


def test_the_second_head_keeps_the_median_and_has_a_longest_horizon(gold):
    past = torch.randn(2, 1, 64)
    model = load(gold, use_continuous_quantile_head=True)
    torch.testing.assert_close(model.forecast(past, 48), load(gold).forecast(past, 48))
    assert model.unused == ()
    model.loss(past, torch.randn(2, 1, 48)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    message = "use_continuous_quantile_head reaches 48 steps, horizon is 49"
    with pytest.raises(InputError, match=message):
        model.quantiles(past, 49, [0.1])


@pytest.mark.parametrize("num_values", [5, 16, 40])
def test_the_loss_is_squared_error_of_the_median_plus_the_mean_pinball(gold, num_values):
    model = load(gold, **PLAIN)
    past, future = torch.randn(2, 3, 64), torch.randn(2, 3, num_values)
    with torch.no_grad():
        outputs = model._outputs(past, num_values, None).double()
    expected = (future.double() - outputs[..., 5]).square().mean()
    for place, level in enumerate(model.levels, start=1):
        error = future.double() - outputs[..., place]
        expected += torch.where(error > 0, level * error, (level - 1) * error).mean() / 9
    assert model.loss(past, future).item() == pytest.approx(expected.item(), rel=1e-5)
    assert load(gold).loss(past, future).item() == model.loss(past, future).item()
    wanted = torch.ones_like(future)
    wanted[..., 3:] = 0
    spoilt = future.masked_fill(wanted == 0, float("nan"))
    masked = model.loss(past, spoilt, past_mask=torch.ones_like(past), future_mask=wanted)
    assert masked.item() == pytest.approx(model.loss(past, future[..., :3]).item(), rel=1e-5)


def test_bfloat16_autocast_stays_near_float32(gold):
    model = load(gold)
    past = torch.randn(4, 1, 60)
    mask = torch.ones_like(past)
    mask[1, :, :20] = 0
    exact = model.forecast(past, 40, past_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.forecast(past, 40, past_mask=mask)
        loss = model.loss(past, torch.randn(4, 1, 40), past_mask=mask)
    loss.backward()
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
