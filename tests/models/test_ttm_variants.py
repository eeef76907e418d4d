"""TTM that mixes channels, reconciles forecasts, knows a frequency; and what its config may ask."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from sffbench import models, planning, runner
from sffbench.errors import InputError
from sffbench.models._ttm_layers import ChannelMixer
from sffbench.models._ttm_reconcile import Reconciler
from sffbench.models.ttm import TTM

CPU = torch.device("cpu")
SMALL = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "d_model": 16,
    "decoder_d_model": 12,
    "adaptive_patching_levels": 2,
    "num_layers": 1,
    "decoder_num_layers": 1,
}
MIXED = {"decoder_mode": "mix_channel", "num_input_channels": 3}
RECONCILED = {"enable_forecast_channel_mixing": True, "num_input_channels": 3}
KNOWN = RECONCILED | {"exogenous_channel_indices": [1], "fcm_use_mixer": True}
PREFIXED = {"resolution_prefix_tuning": True, "frequency_token_vocab_size": 10}
VARIANTS = {
    "decoder": MIXED,
    "both": MIXED | {"mode": "mix_channel"},
    "reconciled": RECONCILED,
    "exogenous": KNOWN,
    "picked": {"num_input_channels": 3, "prediction_channel_indices": [2, 0]},
    "prefixed": PREFIXED,
    "all": KNOWN | MIXED | PREFIXED | {"mode": "mix_channel", "prediction_filter_length": 5},
}


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return TTM(SMALL | fields).eval()


def save(model, folder):
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config))
    return str(folder)


@pytest.fixture(params=VARIANTS)
def variant(request):
    return build(**VARIANTS[request.param])


def windows(number=4, length=32):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(number, 3, length, generator=generator)


def known(model, future):
    return {"future": future} if model.known else {}


# -- what mixes, and what does not ----------------------------------------------------------------


def test_channel_mixing_is_its_formula_in_float64():
    torch.manual_seed(0)
    mixer = ChannelMixer(5, 3, 2, dropout=0.0, gated=True, eps=1e-5).double()
    hidden = torch.randn(2 * 3, 4, 5, dtype=torch.float64)
    mixed = mixer(hidden).view(2, 3, 4, 5)
    for window in range(2):
        for patch in range(4):
            for feature in range(5):
                here = mixer.norm["norm"](hidden.view(2, 3, 4, 5))[window, :, patch, feature]
                weights = torch.softmax(mixer.gating_block["attn_layer"](here), 0)
                change = mixer.mlp["fc2"](
                    torch.nn.functional.gelu(mixer.mlp["fc1"](here * weights))
                )
                expected = hidden.view(2, 3, 4, 5)[window, :, patch, feature] + change
                torch.testing.assert_close(mixed[window, :, patch, feature], expected)


@pytest.mark.parametrize("prepend", [True, False])
@pytest.mark.parametrize("offset", [None, 4])
def test_reconciling_forecasts_is_its_formula_in_float64(prepend, offset):
    torch.manual_seed(0)
    fields = {"fcm_context_length": 2, "fcm_prepend_past": prepend, "head_dropout": 0.0}
    fields |= {"fcm_prepend_past_offset": offset, "fcm_use_mixer": False, "fcm_gated_attn": True}
    block = Reconciler(fields, num_targets=2, num_known=1).double()
    forecast, past, later = (
        torch.randn(4, channels, length, dtype=torch.float64)
        for channels, length in ((2, 6), (3, 20), (1, 6))
    )
    found = block(forecast, past, later)
    end = 20 - (offset or 0)
    for step in range(6):
        window = torch.zeros(4, 3, 5, dtype=torch.float64)
        for place in range(5):
            at = step + place - 2
            if 0 <= at < 6:
                window[:, :2, place], window[:, 2, place] = forecast[..., at], later[:, 0, at]
            elif at < 0 and prepend:
                window[..., place] = past[..., end + at]
        flat = window.flatten(1)
        flat = flat * torch.softmax(block.fcm_gating_block["attn_layer"](flat), -1)
        torch.testing.assert_close(found[..., step], forecast[..., step] + block.mlp(flat))


def test_only_networks_that_say_so_let_channels_see_each_other(variant):
    past, future = windows(), windows(length=8)
    changed = past.clone()
    changed[:, 0] = 3 * changed[:, 0].flip(-1) + 1
    before, after = (
        variant.forecast(values, 5, **known(variant, future)) for values in (past, changed)
    )
    others = [i for i, channel in enumerate(variant.targets) if channel != 0]
    if variant.num_channels is None:
        others = [1, 2]
    assert torch.equal(before[:, others], after[:, others]) != variant.mixes_channels


def test_windows_of_a_variant_are_independent(variant):
    past, future = windows(), windows(length=8)
    whole = variant.forecast(past, 8, **known(variant, future))
    alone = variant.forecast(past[1:2], 8, **known(variant, future[1:2]))
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_variant_reaches_every_parameter(variant):
    variant.train().loss(windows(), windows(length=8)).backward()
    for name, parameter in variant.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_variant_survives_saving_loading_and_copying(variant, tmp_path):
    loaded = models.load("ttm", save(variant, tmp_path))
    past, future = windows(), windows(length=8)
    expected = variant.forecast(past, 8, **known(variant, future))
    for other in (loaded, copy.deepcopy(variant)):
        assert torch.equal(other.forecast(past, 8, **known(other, future)), expected)


def test_a_variant_stays_near_float32_under_bfloat16_autocast(variant):
    past, future = windows(), windows(length=8)
    exact = variant.forecast(past, 8, **known(variant, future))
    with torch.autocast("cpu", torch.bfloat16):
        rough = variant.forecast(past, 8, **known(variant, future))
    assert rough.isfinite().all()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_initial_of_a_variant_is_what_torch_itself_draws(variant):
    table = variant.initial()
    assert list(table) == [name for name, _ in variant.named_parameters()]
    for name, parameter in variant.named_parameters():
        if "freq_mod.0" in name:
            assert (table[name].kind, table[name].a, table[name].b) == ("normal", 0.0, 1.0)
        elif table[name].kind == "constant":
            assert parameter.unique().tolist() == [table[name].a]
        else:
            assert table[name].kind == "uniform"
            assert parameter.abs().max() <= table[name].b
            assert parameter.numel() < 50 or parameter.abs().max() > 0.8 * table[name].b


@pytest.mark.parametrize(
    ("rule", "kind", "bound"),
    [("normal", "normal", 0.3), ("uniform", "uniform", 1.0), ("xavier_uniform", "uniform", None)],
)
def test_post_init_names_the_law_of_linear_maps(rule, kind, bound):
    fields = {"post_init": True, "init_linear": rule, "init_embed": rule, "init_std": 0.3}
    table = build(**PREFIXED, **fields).initial("published")
    weight, embedding = table["decoder.adapter.weight"], table["backbone.encoder.freq_mod.0.weight"]
    assert (weight.kind, embedding.kind) == (kind, kind)
    assert weight.b == pytest.approx(bound or (6 / (12 + 16)) ** 0.5)
    assert table["decoder.adapter.bias"].kind == "constant"


# -- channels that are picked, known, or wrong in number ------------------------------------------


def test_only_the_chosen_channels_are_forecast_and_scored():
    model, whole = build(**VARIANTS["picked"]), build()
    past, future = windows(), windows(length=8)
    expected = whole.forecast(past, 8)[:, [0, 2]]
    torch.testing.assert_close(model.forecast(past, 8), expected)
    error = (expected.double() - future[:, [0, 2]].double()).square().mean()
    assert model.loss(past, future).item() == pytest.approx(error.item(), rel=1e-5)


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_window_of_other_channels_is_one_clear_line(variant, number):
    past = torch.randn(2, number, 32)
    if variant.num_channels is None:
        assert variant.forecast(past, 8).shape == (2, number, 8)
        return
    message = f"takes windows of 3 channels, given {number}"
    with pytest.raises(InputError, match=message) as caught:
        variant.forecast(past, 8)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        variant.loss(past, torch.randn(2, number, 8))


def test_a_longer_horizon_feeds_forecasts_and_known_values_back():
    model, past, future = build(**KNOWN), windows(), windows(length=20)
    first = model.forecast(past, 8, future=future)
    fed = torch.stack([first[:, 0], future[:, 1, :8], first[:, 1]], dim=1)
    second = model.forecast(torch.cat([past, fed], -1), 8, future=future[..., 8:])
    whole = model.forecast(past, 20, future=future)
    torch.testing.assert_close(whole[..., :16], torch.cat([first, second], -1))
    assert torch.equal(model.forecast(past, 5, future=future), first[..., :5])


def test_known_values_after_the_last_given_step_count_as_zero():
    model, past, future = build(**KNOWN), windows(), windows(length=8)
    padded = torch.cat([future[..., :5], torch.zeros(4, 3, 3)], -1)
    short = model.forecast(past, 5, future=future[..., :5])
    assert torch.equal(short, model.forecast(past, 5, future=padded))
    assert not torch.equal(short, model.forecast(past, 5, future=future))


def test_the_future_of_a_forecast_channel_is_never_read():
    model, past, future = build(**KNOWN), windows(), windows(length=16)
    hidden = future.clone()
    hidden[:, [0, 2]] = float("nan")
    expected = model.forecast(past, 16, future=future)
    assert torch.equal(model.forecast(past, 16, future=hidden), expected)


@pytest.mark.parametrize(
    ("fields", "horizon", "future", "message"),
    [
        (KNOWN, 8, None, r"channels \[1\] are exogenous: give their values as future"),
        (KNOWN, 8, torch.zeros(4, 3, 7), r"future is \(4, 3, 7\), not \(4, 3, 8\)"),
        (KNOWN, 8, torch.zeros(4, 1, 8), r"future is \(4, 1, 8\)"),
        (KNOWN, 8, torch.zeros(3, 8), "future must have rank 3"),
        (
            KNOWN,
            8,
            torch.full((4, 3, 8), float("nan")),
            r"NaN or infinite values in channels \[1\]",
        ),
        (MIXED, 8, torch.zeros(4, 3, 8), "no exogenous channel"),
        (VARIANTS["picked"], 9, None, r"channels \[1\] are neither forecast nor known"),
    ],
)
def test_a_future_that_does_not_fit_is_one_clear_line(fields, horizon, future, message):
    with pytest.raises(InputError, match=message) as caught:
        build(**fields).forecast(windows(), horizon, future=future)
    assert "\n" not in str(caught.value)


def test_the_loss_reads_known_channels_whatever_its_mask_says():
    model, past, future = build(**KNOWN), windows(), windows(length=8)
    mask = torch.ones(4, 3, 8)
    mask[:, 1] = 0
    assert torch.equal(model.loss(past, future, future_mask=mask), model.loss(past, future))
    with pytest.raises(InputError, match="future_mask is"):
        model.loss(past, future, future_mask=mask[:, :2])


# -- losses and filters ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"loss": "mae"}, lambda e: e.abs()),
        ({"loss": "pinball", "quantile": 0.8}, lambda e: torch.where(e > 0, 0.8 * e, -0.2 * e)),
        (
            {"loss": "huber", "huber_delta": 0.4},
            lambda e: torch.where(e.abs() < 0.4, e * e / 2, 0.4 * (e.abs() - 0.2)),
        ),
    ],
)
def test_each_loss_is_its_formula_in_float64(fields, error):
    model, past, future = build(**fields), windows(), windows(length=8)
    expected = error(future.double() - model.forecast(past, 8).double()).mean()
    assert model.loss(past, future).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_filter_cuts_the_forecast_and_what_the_loss_looks_at():
    model, whole = build(prediction_filter_length=5), build()
    past, future = windows(), windows(length=8)
    first = whole.forecast(past, 5)
    assert model.horizon == 5
    assert torch.equal(model.forecast(past, 5), first)
    error = (first.double() - future[..., :5].double()).square().mean()
    assert model.loss(past, future).item() == pytest.approx(error.item(), rel=1e-5)
    again = model.forecast(torch.cat([past, first], -1), 5)
    torch.testing.assert_close(model.forecast(past, 10), torch.cat([first, again], -1))


# -- the frequency --------------------------------------------------------------------------------


def test_a_frequency_is_one_for_all_windows_or_one_each(tmp_path):
    folder, past = save(build(**PREFIXED), tmp_path), windows(3)
    single = [models.load("ttm", folder, freq_token=token).forecast(past, 8) for token in (0, 7, 9)]
    each = models.load("ttm", folder, freq_token=[9, 0, 7]).forecast(past, 8)
    expected = torch.stack([single[2][0], single[0][1], single[1][2]])
    torch.testing.assert_close(each, expected)
    assert not torch.allclose(single[0], single[1])
    assert torch.equal(models.load("ttm", folder).forecast(past, 8), single[0])


@pytest.mark.parametrize(
    ("frequency", "token"),
    [("h", 7), ("1h", 7), ("min", 1), ("15min", 5), ("10min", 4), ("D", 8), ("W", 9), ("7s", 0)],
)
def test_the_frequency_of_a_data_set_is_the_authors_class(frequency, token):
    model = build(**PREFIXED)
    model.at_frequency(frequency)
    past = windows()
    assert torch.equal(
        model.forecast(past, 8), build(**PREFIXED, freq_token=token).forecast(past, 8)
    )


def test_a_frequency_outside_the_vocabulary_is_unknown_and_a_given_one_is_kept():
    short = build(resolution_prefix_tuning=True, frequency_token_vocab_size=8)
    short.at_frequency("W")
    assert short.config["freq_token"] == 0
    given = build(**PREFIXED, freq_token=3)
    given.at_frequency("h")
    assert given.config["freq_token"] == 3
    plain = build()
    plain.at_frequency("h")
    assert plain.config["freq_token"] is None


def test_frequencies_of_another_number_of_windows_are_one_clear_line():
    model = build(**PREFIXED, freq_token=[1, 2])
    with pytest.raises(InputError, match="freq_token has 2 values for 4 windows"):
        model.forecast(windows(), 8)


# -- in suites ------------------------------------------------------------------------------------


def test_a_run_tells_the_model_the_frequency_of_its_data_set(cells_of, tmp_path):
    folder = save(build(**PREFIXED), tmp_path)
    scores = []
    for options in ({}, {"freq_token": 7}, {"freq_token": 0}):
        entry = {"name": "ttm", "source": folder, "options": options}
        (spec,) = cells_of(models=[entry], strategies=["zero-shot"], datasets=["ETTh1"])
        record = runner.run(spec, CPU)
        assert record["status"] == "ok", record["reason"]
        scores.append(record["metrics"]["mse"])
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("fields", [MIXED, KNOWN, VARIANTS["picked"]])
def test_a_checkpoint_of_several_channels_is_not_applicable_in_a_suite(cells_of, tmp_path, fields):
    folder = save(build(**fields), tmp_path)
    (spec,) = cells_of(models=[{"name": "ttm", "source": folder}])
    assert planning.overview([spec], tmp_path)["counts"] == {"missing": 1}
    record = runner.run(spec, CPU)
    assert (record["status"], record["metrics"]) == ("n/a", {})
    assert record["reason"] == "this ttm takes windows of 3 channels, suites cut windows of one"
