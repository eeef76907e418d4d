"""MOIRAI 2 against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._moirai_2 import Moirai2
from sffbench.models._moirai_packing import carried
from sffbench.models.moirai import Moirai

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDER = GOLDEN / "moirai2"
ATOL = 5e-5  # the README's tolerance
LEVELS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
GROUPS = [("short", 7), ("long", 21), ("multi", 7)]
INPUTS = ("past_is_pad", "past_observed", "past_target")


@pytest.fixture
def gold(golden):
    return golden("moirai2")


@pytest.fixture
def model():
    return models.load("moirai", FOLDER)


def close(gold, name, actual):
    gold.check(name, actual, rtol=0.0, atol=ATOL)


def context(gold, group):
    past, seen = (gold.by_channel(f"{group}.{name}") for name in INPUTS[:0:-1])
    return past, seen.float()


@torch.no_grad()
def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, model):
    for group, horizon in GROUPS:
        past, seen = context(gold, group)
        packed = model._pack(past, horizon, seen)
        packing(gold, group, packed)
        predicted = model.decode(model.hidden(packed)).flatten(-3)
        close(gold, f"{group}.preds_scaled", predicted)
        close(gold, f"{group}.preds", predicted * packed.scale + packed.loc)
        quantiles = model.quantiles(past, horizon, LEVELS, past_mask=seen)
        close(gold, f"{group}.quantile_forecast", quantiles.permute(0, 2, 3, 1))
        forecast = model.forecast(past, horizon, past_mask=seen)
        close(gold, f"{group}.point_forecast_median", forecast.transpose(1, 2))
    teacher(gold, model)
    given = {f"{group}.{name}" for group, _ in GROUPS for name in INPUTS}
    assert gold.compared == set(gold.io) - given


def packing(gold, group, packed):
    num_rows = len(packed.target)
    close(gold, f"{group}.packed.target", packed.target)
    close(gold, f"{group}.packed.observed_mask", packed.observed)
    close(gold, f"{group}.packed.sample_id", packed.real.int())
    close(gold, f"{group}.packed.time_id", packed.time)
    close(gold, f"{group}.packed.variate_id", packed.variate.expand(num_rows, -1))
    close(gold, f"{group}.packed.prediction_mask", packed.wanted.expand(num_rows, -1))
    close(gold, f"{group}.loc", packed.loc)
    close(gold, f"{group}.scale", packed.scale)
    close(gold, f"{group}.scaled_target", (packed.target - packed.loc) / packed.scale)


def teacher(gold, model):
    """The official window shows the network even what its mask marks as missing."""
    official, observed = gold.io["train.target"], gold.io["train.observed_mask"]
    past, future = official[:, :5].reshape(2, 1, 20), official[:, 5:].reshape(2, 1, 12)
    known = observed[:, 5:].reshape(2, 1, 12)
    masked = model.teacher(past, future.masked_fill(~known, float("nan")), None, known.float())
    close(gold, "train.observed_mask", masked.observed)
    packed = model.teacher(past, future, None, None)._replace(observed=masked.observed)
    close(gold, "train.target", packed.target)
    close(gold, "train.sample_id", packed.real.long())
    close(gold, "train.time_id", packed.time)
    close(gold, "train.variate_id", packed.variate.expand(2, -1))
    close(gold, "train.prediction_mask", packed.wanted.expand(2, -1))
    close(gold, "train.scaled_target", (packed.target - packed.loc) / packed.scale)
    close(gold, "train.preds_scaled", model.decode(model.hidden(packed)).flatten(-3))
    slots = model.slot_errors(packed)
    close(gold, "train.loss_per_slot", slots.mean((1, 2)))
    close(gold, "train.loss_mean", slots.mean())


def test_the_config_chooses_the_network_of_the_family():
    assert type(models.load("moirai", FOLDER)) is Moirai2
    assert type(models.load("moirai", GOLDEN / "moirai")) is Moirai
    assert models.get("moirai").variant(models.preset("moirai:2.0-small").config) is Moirai2


def test_the_preset_has_the_heads_and_the_shape_of_the_published_checkpoint():
    card = models.preset("moirai:2.0-small")
    entry = json.loads((FOLDER / "published_shapes.json").read_text())[card.hub]
    with torch.device("meta"):
        model = Moirai2(card.config)
    assert model.config["num_heads"] == entry["num_heads"]
    assert {key: model.config[key] for key in entry["config"]} == entry["config"]
    assert model.levels == LEVELS
    assert card.horizon == model.block == 64


@pytest.mark.slow
def test_the_published_size_forecasts_and_takes_a_training_step():
    model, past = models.create("moirai:2.0-small", seed=0), torch.randn(2, 1, 256)
    assert model.forecast(past, 96).isfinite().all()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.train().loss(past, past[..., -96:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


@torch.no_grad()
def test_the_loss_is_the_pinball_loss_of_every_token_in_float64(model):
    past, future = torch.randn(2, 2, 10) * 5, torch.randn(2, 2, 7) * 5
    seen, known = torch.ones(2, 2, 10), torch.ones(2, 2, 7)
    seen[0, :, :5] = 0  # a token and the padding before it: no variable is there yet
    seen[1, 1, 6] = known[1, 0, 2] = 0
    packed = model.teacher(past, future, seen, known)
    predicted = model.decode(model.hidden(packed)).double()
    target = ((packed.target - packed.loc) / packed.scale).double()
    total = 0.0
    for slot in (1, 2):
        for window in range(2):
            for variate in range(2):
                rows = [t for t in range(10) if packed.variate[t] == variate]
                errors = [
                    max(level * e, (level - 1.0) * e)
                    for first, second in zip(rows, rows[slot:], strict=False)
                    for step in range(4)
                    for place, level in enumerate(LEVELS)
                    if packed.observed[window, second, step] and packed.real[window, first]
                    for e in [
                        target[window, second, step].item()
                        - predicted[window, first, slot - 1, place, step].item()
                    ]
                ]
                total += sum(errors) / len(errors) / 8
    loss = model.loss(past, future, past_mask=seen, future_mask=known)
    assert loss.item() == pytest.approx(total, rel=1e-5)


@torch.no_grad()
def test_a_longer_horizon_continues_each_quantile_path(model):
    past = torch.randn(2, 1, 30).cumsum(-1)
    first = model.quantiles(past, 8, LEVELS)
    paths = []
    for place in range(9):
        continued = torch.cat([past, first[:, :, place]], dim=-1)
        paths.append(model.quantiles(continued, 8, LEVELS))
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    second = torch.quantile(torch.cat(paths, dim=2).double(), levels, dim=2).movedim(0, 2)
    found = model.quantiles(past, 13, LEVELS)
    torch.testing.assert_close(found[..., :8], first)
    torch.testing.assert_close(found[..., 8:].double(), second[..., :5], rtol=1e-5, atol=1e-5)


def test_variables_see_each_other_in_one_pass_and_are_alone_in_the_recursion(model):
    past = torch.randn(2, 3, 30)
    for horizon, mixed in ((8, True), (9, False)):
        whole = model.forecast(past, horizon)
        alone = torch.cat([model.forecast(past[:, c : c + 1], horizon) for c in range(3)], dim=1)
        assert torch.allclose(whole, alone, atol=1e-5) != mixed
        window = model.forecast(past[1:], horizon)
        torch.testing.assert_close(whole[1:], window, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_no_token_sees_what_comes_after_it(model):
    past, future = torch.randn(2, 2, 20), torch.randn(2, 2, 12)
    packed = model.teacher(past, future, None, None)
    moved = packed._replace(target=packed.target.clone())
    moved.target[packed.time == 6] += 1.0
    before, after = model.hidden(packed), model.hidden(moved)
    earlier = packed.time < 6
    assert torch.equal(before[earlier], after[earlier])
    assert not torch.isclose(before[~earlier], after[~earlier]).all(-1).any()


def test_a_missing_value_is_the_last_observed_one_and_0_before_the_first():
    values = torch.tensor([[[float("nan"), 2.0, 3.0, float("nan"), float("nan"), 6.0]]])
    expected = torch.tensor([[[0.0, 2.0, 3.0, 3.0, 3.0, 6.0]]])
    assert torch.equal(carried(values, values.isfinite()), expected)


def test_levels_between_the_trained_ones_are_interpolated_and_outer_ones_are_cut(gold, model):
    past, _ = context(gold, "short")
    low, first, between, second, high, last = model.quantiles(
        past, 9, [0.01, 0.1, 0.125, 0.2, 0.99, 0.9]
    ).unbind(2)
    assert torch.equal(low, first)
    assert torch.equal(high, last)
    torch.testing.assert_close(between, 0.75 * first + 0.25 * second)
    assert torch.equal(model.forecast(past, 9), model.quantiles(past, 9, [0.5])[:, :, 0])


@pytest.mark.parametrize("num_values", [1, 3, 4, 17, 100])
def test_a_context_of_any_length_is_padded_on_the_left_to_whole_patches(model, num_values):
    past = torch.randn(2, 2, num_values)
    padded, mask = F.pad(past, (8, 0)), F.pad(torch.ones_like(past), (8, 0))
    for horizon in (7, 21):
        expected = model.forecast(past, horizon)
        assert expected.isfinite().all()
        found = model.forecast(padded, horizon, past_mask=mask)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("horizon", [8, 20])
def test_values_behind_the_masks_do_not_matter_even_nan(gold, model, horizon):
    past, seen = context(gold, "multi")
    holes = past.masked_fill(seen == 0, float("nan"))
    expected = model.forecast(past, horizon, past_mask=seen)
    assert torch.equal(model.forecast(holes, horizon, past_mask=seen), expected)
    full = model.forecast(past, horizon, past_mask=torch.ones_like(past))
    torch.testing.assert_close(full, model.forecast(past, horizon))
    future = torch.randn(2, 2, horizon)
    known = (torch.rand(2, 2, horizon) > 0.5).float()
    spoilt = future.masked_fill(known == 0, float("nan"))
    masks = {"past_mask": seen, "future_mask": known}
    assert torch.equal(model.loss(holes, spoilt, **masks), model.loss(past, future, **masks))


def test_a_constant_context_and_one_without_any_value_are_still_finite(model):
    past = torch.full((2, 1, 30), 7.0)
    forecast = model.forecast(past, 21)
    assert (forecast - 7.0).abs().max() < 1.0  # its deviation is sqrt(1e-5)
    mask = torch.ones_like(past)
    mask[0] = 0
    assert model.forecast(past, 21, past_mask=mask).isfinite().all()
    assert model.loss(past, torch.randn(2, 1, 10), past_mask=mask).isfinite()


def test_forecast_and_loss_follow_the_units_of_a_context_of_whole_patches(model):
    past, future = torch.randn(2, 1, 32), torch.randn(2, 1, 21)
    forecast = model.forecast(past, 21)
    moved = model.forecast(1000.0 * past + 50.0, 21)
    torch.testing.assert_close(moved, 1000.0 * forecast + 50.0, rtol=1e-3, atol=1.0)
    assert model.loss(1000.0 * past, 1000.0 * future).item() == pytest.approx(
        model.loss(past, future).item(), rel=1e-3
    )


@pytest.mark.parametrize("num_values", [4, 40])
def test_the_loss_reaches_every_parameter_and_is_a_mean_over_windows(model, num_values):
    past, future = torch.randn(3, 2, num_values), torch.randn(3, 2, 13)
    loss = model.train().loss(past, future)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        each = [model.loss(past[i : i + 1], future[i : i + 1]).double() for i in range(3)]
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-5)


def test_slots_beyond_a_short_window_are_left_out(model):
    past, future = torch.randn(2, 1, 4), torch.randn(2, 1, 3)
    packed = model.teacher(past, future, None, None)
    assert model.slot_errors(packed).shape == (1, 2, 1)
    assert model.loss(past, future).isfinite()


def test_the_forecast_has_a_gradient_in_training_mode(model):
    model.train()._forecast(torch.randn(2, 1, 30), 21).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bfloat16_autocast_stays_near_float32(gold, model):
    past, seen = context(gold, "long")
    future = torch.randn(2, 1, 21)
    exact, expected = model.loss(past, future), model.forecast(past, 21, past_mask=seen)
    with torch.autocast("cpu", torch.bfloat16):
        loss, rough = model.loss(past, future), model.forecast(past, 21, past_mask=seen)
    assert loss.item() == pytest.approx(exact.item(), rel=0.05)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_layers": 1, "d_ff": 30, "num_heads": 4},
        {"d_model": 128, "num_heads": None},
        {"patch_size": 5, "num_predict_token": 3},
        {"quantile_levels": [0.05, 0.25, 0.6], "num_predict_token": 1},
        {"scaling": False},
    ],
)
def test_other_shapes_of_the_network_survive_a_round_trip(tmp_path, shape):
    config = json.loads((FOLDER / "config.json").read_text()) | shape
    torch.manual_seed(0)
    model = Moirai2(config).eval()
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    past = torch.randn(2, 2, 33)
    for horizon in (3, 40):
        expected = model.forecast(past, horizon)
        assert expected.isfinite().all()
        assert torch.equal(models.load("moirai", tmp_path).forecast(past, horizon), expected)
    assert model.loss(past, torch.randn(2, 2, 9)).isfinite()


def test_a_config_with_published_defaults_left_out_is_completed(tmp_path):
    config = json.loads((FOLDER / "config.json").read_text())
    for key in ("quantile_levels", "scaling", "attn_dropout_p", "dropout_p"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(FOLDER / "model.safetensors"), tmp_path / "model.safetensors")
    past = torch.randn(2, 1, 33)
    expected = models.load("moirai", FOLDER).forecast(past, 9)
    assert torch.equal(models.load("moirai", tmp_path).forecast(past, 9), expected)


def test_initial_is_the_authors_random_start():
    model = models.create("moirai:2.0-small", seed=0, num_layers=1)
    for name, parameter in model.named_parameters():
        values, count = parameter.detach(), parameter.numel()
        if "norm" in name:
            assert values.unique().tolist() == [1.0], name
        elif name.endswith("emb.weight"):
            assert values.std().item() == pytest.approx(1.0, abs=5 / (2 * count) ** 0.5), name
        else:
            layer = model.get_submodule(name.rpartition(".")[0])
            bound = layer.in_features**-0.5
            assert values.abs().max() <= bound, name
            spread = pytest.approx(bound / 3**0.5, rel=5 / (2 * count) ** 0.5)
            assert values.std().item() == spread, name
    assert list(model.initial()) == [name for name, _ in model.named_parameters()]
    assert model.initial("published") == model.initial("usable")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "d_model=32 must be a multiple of 64, or num_heads"),
        ({"num_heads": None}, "d_model=32 must be a multiple of 64, or num_heads"),
        ({"patch_size": "auto"}, "patch_size='auto' must be an integer >= 1"),
        ({"num_predict_token": 0}, "num_predict_token=0 must be an integer >= 1"),
        ({"quantile_levels": [0.5, 0.1]}, "must increase between 0 and 1"),
        ({"quantile_levels": []}, "must increase between 0 and 1"),
        ({"num_layers": 3}, "missing encoder.layers.2"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field(tmp_path, fields, message):
    config = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    save_file(load_file(FOLDER / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        models.load("moirai", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_config_without_its_fields_names_them(tmp_path):
    (tmp_path / "config.json").write_text('{"patch_size": 4, "d_model": 32}')
    with pytest.raises(InputError, match=r"moirai: config\.json lacks d_ff, num_layers"):
        models.load("moirai", tmp_path)


def test_options_samples_and_bad_windows_are_refused_in_one_line_each(model):
    past = torch.randn(1, 1, 30)
    for call, message in (
        (lambda: models.load("moirai", FOLDER, patch_size=8), "unknown option of moirai 'patch_s"),
        (lambda: model.sample(past, 9, 5), "has quantiles, it draws no samples"),
        (lambda: model.forecast(past, 9, num_samples=5), "has quantiles, it draws no samples"),
        (lambda: model.quantiles(past, 9, [1.5]), "levels must lie between 0 and 1"),
        (lambda: model.forecast(past[0], 9), "rank 3"),
        (lambda: model.forecast(past * float("nan"), 9), "NaN or infinite"),
        (lambda: model.forecast(past, 0), "horizon must be an integer >= 1"),
        (lambda: model.forecast(past[..., :0], 9), "past is empty"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    dropped = models.load("moirai", FOLDER, dropout_p=0.5)
    assert torch.equal(dropped.forecast(past, 9), model.forecast(past, 9))
    assert dropped.train().loss(past, past) != model.loss(past, past)
