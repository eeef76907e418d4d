"""Chronos-2 against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._chronos_2 import PATHS, Chronos2, shares, weighted_quantile
from sffbench.models.chronos import location_scale

FOLDER = Path(__file__).parents[1] / "golden" / "chronos-2"


def close(gold, name, actual):
    """The README's tolerance: rtol 1e-4, atol 1e-5 times the largest expected magnitude."""
    gold.check(name, actual, rtol=1e-4, atol=1e-5 * gold.io[name].abs().max().item())


def observed(values):
    """Values with 0 for NaN, and where they are no NaN, both [B, 1, L]."""
    return values.nan_to_num()[:, None], (~values.isnan()).float()[:, None]


@pytest.fixture
def gold(golden):
    return golden("chronos-2")


@pytest.fixture
def model():
    return models.load("chronos", FOLDER)


def grouped(values):
    """The golden rows as windows: the first two are the variables of one."""
    return values[:2].transpose(0, 1), values[2:]


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, model):
    past, seen = observed(gold.io["in/context"])
    future, wanted = observed(gold.io["in/future_target"])
    masks = {"past_mask": seen, "future_mask": wanted}
    gradients(model, model.loss(past, future, **masks))
    with torch.no_grad():
        close(gold, "train/loss", model.loss(past, future, **masks))
        quantiles = model.quantiles(past, 24, model.levels, past_mask=seen)
        close(gold, "forward/quantile_preds_indep", quantiles)
        apart = [
            model.quantiles(values, 24, model.levels, past_mask=mask).flatten(0, 1)
            for values, mask in zip(grouped(past), grouped(seen), strict=True)
        ]
        close(gold, "forward/quantile_preds_grouped", torch.cat(apart))
        quantiles = model.quantiles(past, 40, model.levels, past_mask=seen)
        close(gold, "predict/quantiles_h40", quantiles)
        hidden(gold, model, past[:, 0], seen[:, 0])
        covariates(gold, model, past, seen, future, wanted)
    given = {name for name in gold.io if name.startswith("in/")}
    assert gold.compared == set(gold.io) - given


def gradients(model, loss):
    """A variable alone has one key in its group: what chooses among keys has no gradient there."""
    loss.backward()
    expected = load_file(FOLDER / "grads.safetensors")
    assert expected.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        largest = expected[name].abs().max().item()
        if ".layer.1.self_attention.q." in name or ".layer.1.self_attention.k." in name:
            assert max(largest, parameter.grad.abs().max().item()) < 1e-5, name  # rounding
        else:
            torch.testing.assert_close(
                parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * largest, msg=name
            )


def hidden(gold, model, past, seen):
    """Upstream mixes the batch into tokens of padding, which nobody sees: they are left out."""
    loc, scale = location_scale(past, seen)
    close(gold, "forward/loc", loc)
    close(gold, "forward/scale", scale)
    unknown = torch.zeros(4, 24)
    found, visible = model.encode(model.normed(past, loc, scale), seen, unknown, unknown, 1)
    number = torch.tensor(found.shape[1] - 1 - 3)  # without the closing token and the future
    close(gold, "forward/num_context_patches", number)
    name = "forward/encoder_hidden"
    assert visible.sum() == visible.numel() - 3
    close(gold, name, torch.where(visible[..., None], found, gold.io[name]))


def covariates(gold, model, past, seen, future, wanted):
    """One group's second variable has a known future, which is not scored."""
    known, given = observed(gold.io["in/future_covariates"])
    rows, losses = [], []
    for values, mask, ahead, told, target, scored in zip(
        *(grouped(part) for part in (past, seen, known, given, future, wanted)), strict=True
    ):
        quantiles, loc, scale = model.predict(values, mask, ahead, told)
        rows.append((quantiles.sinh() * scale[..., None] + loc[..., None]).flatten(0, 1))
        series = torch.where(told > 0, ahead, target)
        losses.append(model.patches_loss(values, series, mask, scored, told))
    close(gold, "forward/quantile_preds_grouped_cov", torch.cat(rows))
    close(gold, "train/loss_grouped_cov", torch.stack(losses).mean())


def test_the_settings_choose_the_network_of_the_family(model):
    assert type(model) is Chronos2
    card = models.preset("chronos:2")
    entry = json.loads((FOLDER / "published_shapes.json").read_text())[card.hub]
    assert card.config["chronos_config"] == entry["chronos_config"]
    assert {key: card.config[key] for key in card.config if key in entry["config"]} == {
        key: entry["config"][key] for key in card.config if key in entry["config"]
    }
    assert card.horizon == 1024


@torch.no_grad()
def test_a_longer_horizon_continues_nine_paths_whose_variables_stay_together(model):
    past = torch.randn(2, 2, 50).cumsum(-1)
    first = model.quantiles(past, 24, model.levels)
    paths = []
    for level in PATHS:
        own = first[:, :, model.levels.index(level)]
        paths.append(model.quantiles(torch.cat([past, own], dim=-1), 8, model.levels))
    found = model.quantiles(past, 30, model.levels)
    weights = torch.outer(shares(PATHS), shares(model.levels)).flatten()
    second = weighted_quantile(torch.cat(paths, dim=2), weights, model.levels)
    torch.testing.assert_close(found[..., :24], first)
    torch.testing.assert_close(found[..., 24:], second[..., :6], rtol=1e-4, atol=1e-4)


def test_quantiles_of_weighted_values_are_those_of_their_distribution_in_float64():
    values, levels = torch.tensor([3.0, 1.0, 2.0, 7.0]), [0.01, 0.2, 0.3, 0.65, 0.99]
    weights = torch.tensor([0.3, 0.2, 0.1, 0.4])
    found = weighted_quantile(values[None, None, :, None], weights, levels).flatten()
    # The distribution reaches 0.2 at 1, 0.3 at 2, 0.6 at 3 and 1 at 7.
    expected = torch.tensor([1.0, 1.0, 2.0, 3.5, 6.9])
    torch.testing.assert_close(found, expected)
    assert shares([0.1, 0.5, 0.9]).tolist() == pytest.approx([0.25 / 0.9, 0.4 / 0.9, 0.25 / 0.9])


@pytest.mark.parametrize("horizon", [8, 30])
def test_variables_of_a_window_see_each_other_and_windows_do_not(model, horizon):
    past = torch.randn(3, 2, 50)
    whole = model.forecast(past, horizon)
    window = model.forecast(past[1:2], horizon)
    torch.testing.assert_close(whole[1:2], window, rtol=1e-4, atol=1e-4)
    alone = model.forecast(past[:, :1], horizon)
    assert not torch.allclose(whole[:, :1], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_values", [1, 8, 53, 200])
def test_a_context_of_any_length_is_cut_or_filled_up_with_missing_values(model, num_values):
    past = torch.randn(2, 2, num_values)
    assert model.lookback == 64
    expected = model.forecast(past[..., -64:], 30)
    assert expected.isfinite().all()
    torch.testing.assert_close(model.forecast(past, 30), expected)
    if num_values < 64:
        padded, mask = F.pad(past, (8, 0)), F.pad(torch.ones_like(past), (8, 0))
        found = model.forecast(padded, 8, past_mask=mask)
        assert found.isfinite().all()


def test_values_behind_the_masks_do_not_matter_even_nan(model):
    past, future = torch.randn(2, 2, 50), torch.randn(2, 2, 30)
    seen, known = (torch.rand_like(past) > 0.3).float(), (torch.rand_like(future) > 0.3).float()
    holes = past.masked_fill(seen == 0, float("nan"))
    spoilt = future.masked_fill(known == 0, float("nan"))
    expected = model.forecast(past, 30, past_mask=seen)
    assert torch.equal(model.forecast(holes, 30, past_mask=seen), expected)
    masks = {"past_mask": seen, "future_mask": known}
    assert torch.equal(model.loss(holes, spoilt, **masks), model.loss(past, future, **masks))


def test_a_constant_context_and_one_without_any_value_are_still_finite(model):
    past = torch.full((2, 2, 50), 7.0)
    forecast = model.forecast(past, 30)
    assert (forecast - 7.0).abs().max() < 0.1  # its deviation is 1e-5
    mask = torch.ones_like(past)
    mask[0] = 0
    assert model.forecast(past, 30, past_mask=mask).isfinite().all()
    assert model.loss(past, torch.randn(2, 2, 10), past_mask=mask).isfinite()


@torch.no_grad()
def test_a_long_future_is_scored_in_blocks_each_given_the_true_values_before_it(model):
    past, future = torch.randn(2, 1, 50), torch.randn(2, 1, 30)
    first = model.loss(past, future[..., :24])
    second = model.loss(torch.cat([past, future[..., :24]], dim=-1), future[..., 24:])
    assert model.loss(past, future).item() == pytest.approx((first + second).item() / 2, rel=1e-6)


def test_levels_between_the_trained_ones_are_interpolated_and_outer_ones_are_cut(model):
    low, first, between, second = model.quantiles(
        torch.randn(2, 1, 50), 8, [0.001, 0.01, 0.02, 0.05]
    ).unbind(2)
    assert torch.equal(low, first)
    torch.testing.assert_close(between, 0.75 * first + 0.25 * second)


def test_bfloat16_autocast_stays_near_float32(model):
    past, future = torch.randn(2, 2, 50), torch.randn(2, 2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        loss, forecast = model.loss(past, future), model.forecast(past, 40)
    assert loss.item() == pytest.approx(model.loss(past, future).item(), rel=0.05)
    assert forecast.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ({"num_layers": 1, "num_heads": 3, "d_ff": 30}, {}),
        ({"d_kv": 6}, {"quantiles": [0.1, 0.5, 0.9], "max_output_patches": 2}),
        ({}, {"input_patch_size": 4, "input_patch_stride": 4, "output_patch_size": 4}),
        ({}, {"use_reg_token": False, "use_arcsinh": False}),
    ],
)
def test_other_shapes_of_the_network_survive_a_round_trip(tmp_path, shape, settings):
    config = json.loads((FOLDER / "config.json").read_text()) | shape
    config["chronos_config"] |= settings
    torch.manual_seed(0)
    made = Chronos2(config).eval()
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    past = torch.randn(2, 2, 50)
    expected = made.forecast(past, 40)
    assert expected.isfinite().all()
    assert torch.equal(models.load("chronos", tmp_path).forecast(past, 40), expected)


def test_initial_is_the_authors_random_start():
    model = models.create("chronos:2", seed=0, num_layers=1, d_model=96, d_ff=200)
    published = model.initial("published")
    for name, parameter in model.named_parameters():
        values, count = parameter.detach(), parameter.numel()
        if values.ndim == 1:
            assert values.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
            assert published[name].a == (0.0 if name.endswith("bias") else 0.05)
            continue
        spread = values.shape[-1] ** -0.5
        spread = {"q": (96 * 64) ** -0.5, "shared": 1.0}.get(name.split(".")[-2], spread)
        assert values.std().item() == pytest.approx(spread, rel=5 / (2 * count) ** 0.5), name
        assert published[name].b == pytest.approx(0.05 * spread)
    assert set(model.initial()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_patch_size": 4}, "output_patch_size=4 is not supported, allowed: 8"),
        ({"input_patch_stride": 4}, "input_patch_stride=4 is not supported, allowed: 8"),
    ],
)
def test_settings_that_cannot_be_built_are_refused_by_field(tmp_path, settings, message):
    config = json.loads((FOLDER / "config.json").read_text())
    config["chronos_config"] |= settings
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message) as caught:
        models.load("chronos", tmp_path)
    assert "\n" not in str(caught.value)


def test_options_samples_and_bad_windows_are_refused_in_one_line_each(model):
    past = torch.randn(1, 1, 30)
    for call, message in (
        (lambda: models.load("chronos", FOLDER, top_k=8), "unknown option of chronos 'top_k'"),
        (lambda: model.forecast(past, 9, num_samples=5), "has quantiles, it draws no samples"),
        (lambda: model.forecast(past[0], 9), "rank 3"),
        (lambda: model.forecast(past * float("nan"), 9), "NaN or infinite"),
        (lambda: model.forecast(past, 0), "horizon must be an integer >= 1"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
