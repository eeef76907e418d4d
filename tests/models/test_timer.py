"""Timer (base-84m family) against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sffbench import models
from sffbench.errors import InputError

ATOL = 2e-5  # the README's tolerance, values of order 10


def close(golden, name, actual):
    golden.check(name, actual, rtol=0.0, atol=ATOL)


def standardised(values):
    mean, std = values.mean(1, keepdim=True), values.std(1, keepdim=True)
    return (values - mean) / std, mean, std


def test_every_documented_tensor_of_the_golden_folder_is_reproduced(golden, stages):
    gold = golden("timer")
    model, series = gold.model(), gold.io["input"]
    tokens = {}
    seen = stages(model, lambda: tokens.update(all=model.network(series)))
    close(gold, "hidden_embed", seen["model.embed_layer.emb"])
    close(gold, "hidden_layer1", seen["model.layers.0"])
    close(gold, "hidden_last", seen["model"])
    close(gold, "all_token_pred", tokens["all"])
    close(gold, "loss_logits", tokens["all"])
    close(gold, "pred_no_revin", tokens["all"][:, -8:])
    close(gold, "pred_revin", model.forecast(series[:, None], 8))
    close(gold, "point_forecast", model.forecast(series[:, None], 28))
    normed, _, _ = standardised(series)
    close(gold, "generate_normed_revin_false", model.forecast(normed[:, None], 28))

    errors = (tokens["all"] - gold.io["labels"]).square()
    close(gold, "loss", errors.mean())
    weights = gold.io["loss_masks"]
    token_errors = errors.unflatten(1, (-1, 8)).mean(2)
    close(gold, "loss_masked", (token_errors * weights).sum() / weights.sum())
    F.mse_loss(model.network(series), gold.io["labels"]).backward()
    close(gold, "grad_embed", model.model.embed_layer["emb"].weight.grad)
    close(gold, "grad_q0", model.model.layers[0].self_attn.q_proj.weight.grad)
    quirks(gold, model)
    assert gold.compared == set(gold.io) - {"input", "labels", "loss_masks"}


@torch.no_grad()
def quirks(gold, model):
    """Upstream's `revin=True` unrolling, which the model does not do, from its building blocks."""
    cache, chunk, blocks = [], gold.io["input"], []
    for _ in range(4):  # each chunk normalised by its own statistics, keys cached under older ones
        normed, mean, std = standardised(chunk)
        chunk = model.network(normed, cache)[:, -8:] * std + mean
        blocks.append(chunk)
    unrolled = torch.cat(blocks, 1)[:, :28]
    close(gold, "generate_raw_revin_default", unrolled)
    close(gold, "generate_raw_revin_true_cached", unrolled)
    series = gold.io["input"]
    for _ in range(4):
        normed, mean, std = standardised(series)
        series = torch.cat([series, model.network(normed)[:, -8:] * std + mean], 1)
    close(gold, "generate_raw_revin_true_nocache", series[:, 48:76])


def test_the_cache_changes_nothing(golden):
    gold = golden("timer")
    model, series = gold.model(), gold.io["input"]
    cache = []
    with torch.no_grad():
        model.network(series[:, :24], cache)
        torch.testing.assert_close(
            model.network(series[:, 24:], cache), model.network(series)[:, 24:], rtol=0, atol=ATOL
        )


@pytest.mark.parametrize("num_values", [24, 48, 20])
def test_the_loss_is_next_token_error_in_units_of_the_context(golden, num_values):
    gold = golden("timer")
    model, series = gold.model(), gold.io["input"]
    future = torch.randn(3, num_values)
    _, mean, std = standardised(series.double())
    whole = ((torch.cat([series, future], 1) - mean) / std).float()
    num_tokens = 6 + -(-num_values // 8) - 1
    with torch.no_grad():
        predicted = model.network(whole[:, : num_tokens * 8])[:, : whole.shape[1] - 8]
    expected = (predicted.double() - whole[:, 8:]).square().mean()
    loss = model.loss(series[:, None], future[:, None])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_full_masks_change_neither_loss_nor_forecast(golden):
    gold = golden("timer")
    model, past, future = gold.model(), gold.io["input"][:, None], torch.randn(3, 1, 20)
    ones = torch.ones_like(past), torch.ones_like(future)
    masked = model.loss(past, future, past_mask=ones[0], future_mask=ones[1])
    torch.testing.assert_close(masked, model.loss(past, future))
    torch.testing.assert_close(
        model.forecast(past, 20, past_mask=ones[0]), model.forecast(past, 20)
    )


def test_masked_future_values_carry_no_loss(golden):
    gold = golden("timer")
    model, past = gold.model(), gold.io["input"][:, None]
    future, mask = torch.randn(3, 1, 8), torch.ones(3, 1, 8)
    mask[..., 5:] = 0
    spoilt = future.masked_fill(mask == 0, 1e6)
    assert torch.equal(
        model.loss(past, future, future_mask=mask), model.loss(past, spoilt, future_mask=mask)
    )


@pytest.mark.parametrize("level", [0.0, 0.1, -3e6])
def test_a_constant_context_is_forecast_as_that_constant(golden, level):
    model = golden("timer").model()
    past = torch.full((2, 1, 48), level)
    torch.testing.assert_close(model.forecast(past, 20), torch.full((2, 1, 20), level))
    assert model.loss(past, past[..., :8]).isfinite()


def test_the_context_is_cut_on_the_left_to_whole_tokens(golden):
    gold = golden("timer")
    model, past = gold.model(), gold.io["input"][:, None]
    longer = torch.cat([torch.randn(3, 1, 5), past], dim=-1)
    assert torch.equal(model.forecast(longer, 8), model.forecast(past, 8))


def test_less_than_one_token_of_context_is_refused(golden):
    with pytest.raises(InputError, match="at least one token, 8 values, given 7"):
        golden("timer").model().forecast(torch.randn(1, 1, 7), 8)


def test_a_second_head_is_refused_by_field_name():
    with pytest.raises(InputError, match="output_token_lens"):
        models.create("timer:tiny", output_token_lens=[96, 192])


@pytest.mark.parametrize(
    ("act", "formula"),
    [
        ("silu", lambda x: x / (1 + torch.exp(-x))),
        ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5))),
        ("relu", lambda x: x.clamp_min(0)),
    ],
)
def test_the_feed_forward_map_takes_the_config_s_activation(act, formula):
    model = models.get("timer")(
        {
            **models.preset("timer:tiny").config,
            "hidden_size": 12,
            "hidden_act": act,
            "num_attention_heads": 3,
        }
    )
    part = model.model.layers[0].ffn_layer.double()
    hidden = torch.randn(5, 12, dtype=torch.float64)
    gate, up = hidden @ part.gate_proj.weight.T, hidden @ part.up_proj.weight.T
    expected = (formula(gate) * up) @ part.down_proj.weight.T
    torch.testing.assert_close(part(hidden), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_act", "tanh", "timer: hidden_act='tanh' is not supported, allowed: silu, gelu"),
        ("num_attention_heads", 5, "hidden_size=64 must be an even multiple of num_attention"),
    ],
)
def test_a_config_beyond_this_file_is_one_clear_line(field, value, message):
    config = {**models.preset("timer:tiny").config, field: value}
    with pytest.raises(InputError, match=message):
        models.get("timer")(config)
