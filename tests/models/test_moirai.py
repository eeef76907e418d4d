"""MOIRAI 1.x against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._moirai_distribution import Mixture
from sffbench.models._moirai_packing import location_scale, pack, unpack
from sffbench.models.moirai import Moirai

GOLDEN = Path(__file__).parents[1] / "golden"
ATOL, ATOL_LOG_PROB = 5e-5, 2e-4  # the README's tolerances
GROUPS = [("uni", 8), ("multi", 4)]
INPUTS = {"past_is_pad", "past_observed", "past_target", "future_observed", "future_target"}


def close(golden, name, actual, atol=ATOL, rtol=0.0):
    golden.check(name, actual, rtol=rtol, atol=atol)


def windows(gold, group):
    """past, future and their masks, [B, C, time]."""
    names = ("past_target", "future_target", "past_observed", "future_observed")
    past, future, seen, known = (gold.by_channel(f"{group}.{name}") for name in names)
    return past, future, seen.float(), known.float()


def wide(values, to=8):
    """Patches filled up to the largest patch size with 0, as the official packing does."""
    return F.pad(values, (0, to - values.shape[-1]))


def in_official_order(values):
    """[B, C, ..., H] -> [B, ..., H, C], without the last axis where C = 1."""
    moved = values.movedim(1, -1)
    return moved.squeeze(-1)


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden, stages, monkeypatch):
    gold = golden("moirai")
    for group, size in GROUPS:
        model = models.load("moirai", gold.folder, patch_size=size)
        packing(gold, group, size)
        network(gold, group, model, stages)
        scores(gold, group, model)
        with monkeypatch.context() as patched:
            sampling(gold, group, model, size, patched)
    auto = gold.by_channel("auto.past_target")
    with torch.no_grad():
        close(gold, "auto.val_loss", model.patch_errors(auto, 22, None), ATOL_LOG_PROB)
    model = models.load("moirai", gold.folder, patch_size=8)
    past, future, seen, known = windows(gold, "uni")
    model.loss(past, future, past_mask=seen, future_mask=known).backward()
    close(gold, "grad_in_proj", model.in_proj.weight.grad)
    close(gold, "grad_q0", model.encoder.layers[0].self_attn.q_proj.weight.grad)
    given = {f"{group}.{name}" for group, _ in GROUPS for name in INPUTS}
    given |= {f"{group}.{name}" for group, _ in GROUPS for name in DRAWS} | {"auto.past_target"}
    assert gold.compared == set(gold.io) - given


DRAWS = {"sample_components", "sample_index"}


def packing(gold, group, size):
    past, _, seen, _ = windows(gold, group)
    packed = pack(past, 22, size, seen)
    num_rows = len(past)
    close(gold, f"{group}.packed.target", wide(packed.target))
    close(gold, f"{group}.packed.observed_mask", wide(packed.observed))
    close(gold, f"{group}.packed.sample_id", packed.real.int())
    close(gold, f"{group}.packed.time_id", packed.time)
    close(gold, f"{group}.packed.variate_id", packed.variate.expand(num_rows, -1))
    close(gold, f"{group}.packed.prediction_mask", packed.wanted.expand(num_rows, -1))
    close(gold, f"{group}.loc", packed.loc)
    close(gold, f"{group}.scale", packed.scale)
    train_targets(gold, group, size, packed)


def train_targets(gold, group, size, packed):
    """The official window with its future is our context beside our unpacked future."""
    _, future, _, known = windows(gold, group)
    context = ~packed.wanted
    for name, before, after in (
        ("target", packed.target, future),
        ("observed_mask", packed.observed, known),
    ):
        official = gold.io[f"{group}.train.{name}"].float()
        found = unpack(official[:, packed.wanted], future.shape[1], size, 22)
        torch.testing.assert_close(found, after, rtol=0, atol=0)
        both = torch.where(context[:, None], wide(before.float()), official)
        close(gold, f"{group}.train.{name}", both.to(gold.io[f"{group}.train.{name}"].dtype))
    close(gold, f"{group}.train.sample_id", packed.real.int())


@torch.no_grad()
def network(gold, group, model, stages):
    past, _, seen, _ = windows(gold, group)
    size = model.sizes[model.which]
    packed = pack(past, 22, size, seen)
    hidden = []
    noted = stages(model, lambda: hidden.append(model.encode(packed, model.which)))
    close(gold, f"{group}.in_proj", noted["in_proj"])
    close(gold, f"{group}.encoder_out", noted["encoder"])
    mixture = model.param_proj(hidden[0], model.which)
    close(gold, f"{group}.params.weights_logits", mixture.logits)
    for number, component in enumerate(mixture.components):
        for field, values in zip(component.fields, component.params, strict=False):
            close(gold, f"{group}.params.components.{number}.{field}", values)
    loc, scale = packed.loc, packed.scale
    close(gold, f"{group}.distr_mean", loc + scale * mixture.mean)
    # Up to 1e4, where float32 itself is coarser than the tolerance: ten of its roundings.
    variance = scale.square() * mixture.variance
    close(gold, f"{group}.distr_variance", variance, rtol=1e-5)
    target = gold.io[f"{group}.train.target"]
    log_prob = mixture.log_prob((target - loc) / scale) - scale.log()
    valid = gold.io[f"{group}.train.observed_mask"]
    expected = gold.io[f"{group}.train.log_prob"]
    name = f"{group}.train.log_prob"
    close(gold, name, torch.where(valid, log_prob, expected), ATOL_LOG_PROB)


@torch.no_grad()
def scores(gold, group, model):
    past, future, seen, known = windows(gold, group)
    loss = model.loss(past, future, past_mask=seen, future_mask=known)
    close(gold, f"{group}.loss_nll", loss, ATOL_LOG_PROB)
    each = model.errors(past, future, seen, known, model.which)
    close(gold, f"{group}.sample_nll", each.sum(1), ATOL_LOG_PROB)
    mean = model.train()._forecast(past, 22, seen)
    close(gold, f"{group}.point_forecast_mean", in_official_order(mean))
    model.eval()


def sampling(gold, group, model, size, monkeypatch):
    """The official draws of all components and their choice, in place of our own draws."""
    past, _, seen, _ = windows(gold, group)
    parts, index = (gold.io[f"{group}.{name}"] for name in sorted(DRAWS))
    chosen = parts.gather(-1, index[..., None])[..., 0]
    wanted = gold.io[f"{group}.packed.prediction_mask"][0]
    steps = [unpack(draw[:, wanted], past.shape[1], size, 22) for draw in chosen]
    monkeypatch.setattr(Mixture, "draw", lambda self, number, generator: torch.stack(steps))
    call = {"past_mask": seen, "generator": torch.Generator()}
    samples = model.sample(past, 22, 9, **call)
    close(gold, f"{group}.samples", in_official_order(samples))
    median = model.forecast(past, 22, num_samples=9, **call)
    close(gold, f"{group}.point_forecast_median", in_official_order(median))


def test_location_and_scale_are_the_unbiased_ones_of_the_observed_values():
    past, seen = 1e4 + torch.randn(2, 3, 40), torch.rand(2, 3, 40) > 0.3
    seen[0, 0] = False
    seen[0, 1] = False
    seen[0, 1, 7] = True
    loc, scale = location_scale(past, seen)
    assert loc[0, 0] == 0
    assert loc[0, 1, 0] == past[0, 1, 7]
    assert scale[0, :2].flatten().tolist() == pytest.approx([1e-5**0.5] * 2)
    values = past[1, 2][seen[1, 2]].double()
    assert loc[1, 2].item() == pytest.approx(values.mean().item(), rel=1e-7)
    assert scale[1, 2].item() == pytest.approx((values.var() + 1e-5).sqrt().item(), rel=1e-6)


def test_without_a_generator_a_forecast_repeats_itself_whatever_the_batch(golden):
    gold = golden("moirai")
    model, past = gold.model(), gold.by_channel("multi.past_target")
    whole = model.forecast(past, 22)
    assert torch.equal(model.forecast(past, 22), whole)
    torch.testing.assert_close(model.forecast(past[1:], 22), whole[1:], rtol=1e-4, atol=1e-4)
    samples = model.sample(past, 22, 100)
    assert samples.shape == (2, 3, 100, 22)
    assert torch.equal(samples.median(2).values, whole)
    moved = model.forecast(past, 22, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(moved, whole)
    again = model.forecast(past, 22, generator=torch.Generator().manual_seed(1))
    assert torch.equal(moved, again)


def test_quantiles_are_ordered_and_surround_the_forecast(golden):
    gold = golden("moirai")
    model, past = gold.model(), gold.by_channel("uni.past_target")
    low, middle, high = model.quantiles(past, 22, [0.1, 0.5, 0.9], num_samples=101).unbind(-2)
    assert low.shape == (2, 1, 22)
    assert bool(((low < middle) & (middle < high)).all())
    torch.testing.assert_close(middle, model.forecast(past, 22, num_samples=101))


@pytest.mark.parametrize(("row", "size"), [(0, 4), (1, 8)])
def test_the_automatic_patch_size_is_that_of_the_best_likelihood(golden, monkeypatch, row, size):
    gold = golden("moirai")
    past = gold.by_channel("auto.past_target")
    auto = models.load("moirai", gold.folder, patch_size="auto")
    errors = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    monkeypatch.setattr(Moirai, "patch_errors", lambda *_: errors)
    fixed = models.load("moirai", gold.folder, patch_size=size)
    expected = fixed.forecast(past[row : row + 1, :, 22:], 22)[0]
    torch.testing.assert_close(auto.forecast(past, 22)[row], expected)


def test_the_automatic_patch_size_needs_more_context_than_horizon(golden):
    model = models.load("moirai", golden("moirai").folder, patch_size="auto")
    past = torch.randn(2, 1, 22)
    with pytest.raises(InputError, match="more than the horizon's 22 values of context, given 22"):
        model.forecast(past, 22)
    assert model.loss(past, torch.randn(2, 1, 22)).isfinite()
    mask = torch.ones(2, 1, 30)
    assert model.forecast(torch.randn(2, 1, 30), 22, past_mask=mask).shape == (2, 1, 22)


def test_full_masks_change_neither_loss_nor_forecast(golden):
    gold = golden("moirai")
    model, (past, future, _, _) = gold.model(), windows(gold, "multi")
    ones = {"past_mask": torch.ones_like(past), "future_mask": torch.ones_like(future)}
    torch.testing.assert_close(model.loss(past, future, **ones), model.loss(past, future))
    masked = model.forecast(past, 22, past_mask=ones["past_mask"])
    torch.testing.assert_close(masked, model.forecast(past, 22))


def test_values_behind_the_masks_do_not_matter_even_nan(golden):
    gold = golden("moirai")
    model, (past, future, seen, known) = gold.model(), windows(gold, "multi")
    holes = past.masked_fill(seen == 0, float("nan"))
    expected = model.forecast(past, 22, past_mask=seen)
    assert torch.equal(model.forecast(holes, 22, past_mask=seen), expected)
    spoilt = future.masked_fill(known == 0, float("nan"))
    masks = {"past_mask": seen, "future_mask": known}
    assert torch.equal(model.loss(past, spoilt, **masks), model.loss(past, future, **masks))


def test_a_window_of_which_nothing_is_observed_is_still_finite(golden):
    model, past = golden("moirai").model(), torch.randn(2, 3, 30)
    mask = torch.ones_like(past)
    mask[0] = 0
    assert model.forecast(past, 10, past_mask=mask).isfinite().all()
    assert model.loss(past, torch.randn(2, 3, 10), past_mask=mask).isfinite()


@pytest.mark.parametrize("num_values", [1, 2, 7, 100])
def test_a_context_of_any_length_is_padded_on_the_left_to_whole_patches(golden, num_values):
    model, past = golden("moirai").model(), torch.randn(2, 2, num_values)
    assert model.forecast(past, 9).isfinite().all()
    padded, mask = F.pad(past, (8, 0)), F.pad(torch.ones_like(past), (8, 0))
    expected = model.forecast(past, 9)
    found = model.forecast(padded, 9, past_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_windows_are_independent_and_variables_are_not(golden):
    gold = golden("moirai")
    model, past = gold.model(), gold.by_channel("multi.past_target")
    whole = model.forecast(past, 22)
    moved = past.clone()
    moved[:, 0] = moved[:, 0].flip(-1)
    assert not torch.allclose(model.forecast(moved, 22)[:, 1:], whole[:, 1:], atol=1e-3)


def test_the_gradient_of_the_loss_does_not_depend_on_the_units(golden):
    gold = golden("moirai")
    past, future, _, _ = windows(gold, "uni")
    grads = []
    for factor in (1.0, 1000.0):
        model = gold.model()
        model.loss(factor * past, factor * future).backward()
        grads.append(model.mask_encoding.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-4)


def test_the_mean_has_a_gradient_in_training_mode(golden):
    gold = golden("moirai")
    model, past = gold.model().train(), gold.by_channel("uni.past_target")
    model._forecast(past, 22).square().mean().backward()
    assert model.in_proj.weight.grad.isfinite().all()
    used = model.in_proj.weight.grad[model.which].abs().sum()
    assert used > 0


def test_every_parameter_gets_a_gradient_and_those_of_other_patch_sizes_get_zero():
    model = models.create("moirai:tiny", seed=0, patch_sizes=[16, 32])
    model.train().loss(torch.randn(2, 2, 128), torch.randn(2, 2, 40)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.which == 1
    assert not model.in_proj.weight.grad[0].any()
    weights = model.param_proj.proj["weights_logits"].weight.grad
    assert weights[1].any()
    assert not weights[0].any()


def test_components_are_built_in_the_order_of_the_config(golden, tmp_path):
    gold = golden("moirai")
    config = json.loads((gold.folder / "config.json").read_text())
    state = load_file(gold.folder / "model.safetensors")
    config["distr_output"]["components"].reverse()
    turned = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if "components" in parts:
            parts[3] = str(3 - int(parts[3]))
        if "weights_logits" in parts:
            tensor = tensor.unflatten(1, (4, 8)).flip(1).flatten(1, 2)
        turned[".".join(parts)] = tensor.contiguous()
    (tmp_path / "config.json").write_text(json.dumps(config | {"patch_size": 8}))
    save_file(turned, tmp_path / "model.safetensors")
    past, future, seen, known = windows(gold, "uni")
    loss = models.load("moirai", tmp_path).loss(past, future, past_mask=seen, future_mask=known)
    assert loss.item() == pytest.approx(gold.io["uni.loss_nll"].item(), abs=ATOL_LOG_PROB)


def test_bfloat16_autocast_stays_near_float32(golden):
    gold = golden("moirai")
    model, (past, future, seen, known) = gold.model(), windows(gold, "multi")
    masks = {"past_mask": seen, "future_mask": known}
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(past, future, **masks)
        forecast = model.forecast(past, 22, past_mask=seen)
    assert rough.item() == pytest.approx(model.loss(past, future, **masks).item(), rel=0.05)
    assert forecast.isfinite().all()


def test_a_config_of_another_model_and_bad_windows_are_one_line_each(golden):
    with pytest.raises(InputError, match=r"moirai: config\.json lacks"):
        models.load("moirai", GOLDEN / "ttm")
    model = golden("moirai").model()
    for past, horizon, message in (
        (torch.randn(3, 30), 18, "rank 3"),
        (torch.full((1, 3, 30), float("nan")), 18, "NaN or infinite"),
        (torch.randn(1, 3, 30), 0, "horizon must be an integer >= 1"),
        (torch.randn(1, 3, 0), 4, "past is empty"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            model.forecast(past, horizon)
        assert "\n" not in str(caught.value)
