"""Chronos-T5 against the tensors of the official implementation, and its own rules."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._chronos_t5 import ChronosT5


def close(golden, name, actual):
    """The README's tolerance: rtol 1e-4, atol 1e-5 times the largest expected magnitude."""
    finite = golden.io[name].double()
    atol = 1e-5 * finite[finite.isfinite()].abs().max().item()
    golden.check(name, actual.to(golden.io[name].dtype), rtol=1e-4, atol=atol)


def observed(values):
    """Values with 0 for NaN, and where they are no NaN, both [M, L]."""
    return values.nan_to_num(), (~values.isnan()).float()


@pytest.fixture
def gold(golden):
    return golden("chronos-t5")


@pytest.fixture
def model(gold):
    return models.load("chronos", gold.folder)


@torch.no_grad()
def test_every_documented_tensor_of_the_golden_folder_is_reproduced(gold, model):
    assert isinstance(model, ChronosT5)
    past, seen = observed(gold.io["tok/context"])
    words, attended, scale = model.tokens(past, seen)
    tokeniser(gold, model, words, attended, scale)
    context = model.encode(words, attended)
    close(gold, "forward/encoder_last_hidden", context)
    given = gold.io["forward/decoder_input_ids"]
    shifted = torch.nn.functional.pad(gold.io["train/labels"][:, :-1], (1, 0)).clamp_min(0)
    close(gold, "forward/decoder_input_ids", shifted)
    close(gold, "forward/logits", model.scores(given, context, attended))

    steps = []

    def greedy(scores):
        steps.append(scores)
        return scores.argmax(-1)

    drawn = model.decode(context, attended, 1, 8, greedy)
    close(gold, "greedy/tokens", drawn)
    close(gold, "greedy/scores", torch.stack(steps, 1))
    close(gold, "greedy/values", model.values(drawn) * scale[..., None])
    close(gold, "sample/step0_probs_T1_k50_p1", model.probabilities(steps[0]))
    cooler = models.load("chronos", gold.folder, temperature=0.7, top_k=20, top_p=0.9)
    close(gold, "sample/step0_probs_T0.7_k20_p0.9", cooler.probabilities(steps[0]))
    recorded_draws(gold, model, past, seen)
    target, wanted = observed(gold.io["tok/label"])
    masks = {"past_mask": seen[:, None], "future_mask": wanted[:, None]}
    close(gold, "train/loss_ce", model.loss(past[:, None], target[:, None], **masks))
    assert gold.compared == set(gold.io) - {"tok/context", "tok/label", "tok/long_context"}


def tokeniser(gold, model, words, attended, scale):
    close(gold, "tok/centers", model.centers(scale))
    close(gold, "tok/boundaries", model.edges(scale))
    assert torch.equal(model.edges(scale), gold.io["tok/boundaries"])
    close(gold, "tok/input_ids", words)
    close(gold, "tok/attention_mask", attended)
    close(gold, "tok/scale", scale)
    every = torch.arange(96).expand(4, 1, -1)
    close(gold, "tok/decode_all_ids", model.values(every) * scale[..., None])
    target, wanted = observed(gold.io["tok/label"])
    labels = model.labels(target / scale, wanted)
    close(gold, "train/labels", labels)
    close(gold, "tok/label_ids", labels.masked_fill(labels == -100, 0))
    close(gold, "tok/label_mask", labels != -100)
    words, _, scale = model.tokens(gold.io["tok/long_context"], None)
    close(gold, "tok/long_input_ids", words)
    close(gold, "tok/long_scale", scale)


def recorded_draws(gold, model, past, seen):
    """Replays the drawn words through `generate`: everything else must follow."""
    blocks = [gold.io[f"sample/block{i}/tokens"] for i in range(3)]
    replayed = iter(
        [block[..., step].flatten() for block in blocks for step in range(block.shape[2])]
    )
    logprobs, inputs = [], []
    tokens = model.tokens

    def choose(scores):
        words = next(replayed)
        logprobs.append(scores.log_softmax(-1).gather(1, words[:, None])[:, 0])
        return words

    def noted(*given):
        inputs.append(tokens(*given))
        return inputs[-1]

    model.tokens = noted
    samples = model.generate(past, 20, 6, seen, choose)
    model.tokens = tokens
    close(gold, "sample/forecast_samples", samples)
    close(gold, "sample/median", samples.median(1).values)
    close(gold, "sample/mean", samples.mean(1))
    levels = models.base.quantile(samples, [0.1, 0.5, 0.9], dim=1).transpose(1, 2)
    close(gold, "sample/quantiles_0.1_0.5_0.9", levels)
    for i, block in enumerate(blocks):
        words, attended, scale = inputs[i]
        close(gold, f"sample/block{i}/input_ids", words)
        close(gold, f"sample/block{i}/attention_mask", attended)
        assert scale.shape == (4, 1)
        gold.compared.add(f"sample/block{i}/tokens")  # replayed
        # Recorded teacher-forced and before the ban of EOS: the same words, given at once.
        given = torch.nn.functional.pad(block.flatten(0, 1)[:, :-1], (1, 0))
        scores = model.scores(given, model.encode(words, attended), attended)
        raw = scores.log_softmax(-1).gather(2, block.flatten(0, 1)[..., None])
        close(gold, f"sample/block{i}/token_logprob_raw", raw)
    assert len(logprobs) == 20


def test_every_gradient_of_the_golden_folder_is_reproduced(gold, model):
    past, seen = observed(gold.io["tok/context"])
    target, wanted = observed(gold.io["tok/label"])
    masks = {"past_mask": seen[:, None], "future_mask": wanted[:, None]}
    model.loss(past[:, None], target[:, None], **masks).backward()
    expected = load_file(gold.folder / "grads.safetensors")
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(expected)
    for name, parameter in model.named_parameters():
        atol = 1e-5 * expected[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=atol)


def test_words_and_values_are_inverse_within_half_a_bin_and_saturate_beyond(model):
    values = torch.linspace(-14.9, 14.9, 1001)
    back = model.values(model.words(values, None, 0))
    assert (back - values).abs().max() <= 30 / 92 / 2 + 1e-5
    far = torch.tensor([-1e6, 1e6])
    assert model.values(model.words(far, None, 0)).tolist() == [-15.0, 15.0]


def test_samples_follow_the_generator_and_the_forecast_is_their_lower_median(model):
    past = torch.randn(2, 3, 40)
    first, again, other = (
        model.sample(past, 12, 6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (2, 3, 6, 12)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    point = model.forecast(past, 12, num_samples=6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(point, first.sort(2).values[:, :, 2])
    assert model.num_samples == 6
    default = model.forecast(past, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(default, point)


def test_quantiles_are_those_of_the_samples(model):
    past, seed = torch.randn(2, 3, 40), torch.Generator().manual_seed
    samples = model.sample(past, 5, 20, seed(1))
    levels = [0.1, 0.5, 0.93]
    expected = torch.quantile(samples.double(), torch.tensor(levels, dtype=torch.float64), dim=2)
    actual = model.quantiles(past, 5, levels, num_samples=20, generator=seed(1))
    torch.testing.assert_close(actual.double(), expected.movedim(0, 2), rtol=1e-5, atol=1e-6)


def test_draws_follow_the_probabilities(model):
    past = torch.randn(1, 1, 40)
    words, _, scale = model.tokens(past[0], None)
    with torch.no_grad():
        scores = model.scores(torch.zeros(1, 1, dtype=torch.long), model.encode(words))[:, 0]
    scores[:, 1] = float("-inf")
    expected = model.probabilities(scores)[0].double()
    drawn = model.sample(past, 1, 20_000, torch.Generator().manual_seed(0)).flatten() / scale
    bins = torch.bincount(model.words(drawn, None, 0)[0], minlength=96).double() / 20_000
    lowest = expected[:4].sum()  # the words below the first bin all mean its value
    assert bins[3].item() == pytest.approx(lowest.item(), abs=0.01)
    assert (bins[4:] - expected[4:]).abs().max() < 5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize(("number", "message"), [(0, "num_samples must be an integer >= 1")])
def test_a_number_of_samples_below_one_is_refused(model, number, message):
    with pytest.raises(InputError, match=message):
        model.sample(torch.randn(1, 1, 40), 8, number)


def test_masked_values_do_not_matter_and_a_window_of_nothing_is_forecast(gold, model):
    holes = gold.io["tok/context"][:, None]
    past, seen = holes.nan_to_num(), (~holes.isnan()).float()
    drawn = [
        model.forecast(x, 8, past_mask=seen, generator=torch.Generator().manual_seed(0))
        for x in (past, holes)
    ]
    assert torch.equal(*drawn)
    assert model.forecast(past, 8, past_mask=torch.zeros_like(past)).isfinite().all()


def test_a_longer_future_is_scored_in_blocks_given_the_true_values_before(model):
    past, future = torch.randn(2, 1, 40), torch.randn(2, 1, 12)
    series = torch.cat([past, future], -1)
    each = [model.loss(past, future[..., :8]), model.loss(series[..., :48], future[..., 8:])]
    torch.testing.assert_close(model.loss(past, future), torch.stack(each).mean())


def test_training_and_sampling_in_bfloat16_autocast_stay_near_float32(model):
    past, future = torch.randn(4, 2, 40), torch.randn(4, 2, 8)
    exact = model.loss(past, future).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(past, future).item() == pytest.approx(exact, rel=0.02)
        assert model.forecast(past, 12).isfinite().all()


def test_a_state_dict_survives_loading(gold, model):
    original, state = load_file(gold.folder / "model.safetensors"), model.state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[key], original[key]) for key in original)


@pytest.mark.parametrize("size", ["tiny", "mini", "small", "base", "large"])
def test_a_preset_has_the_keys_and_shapes_of_the_published_checkpoint(gold, size):
    entry = json.loads((gold.folder / "published_shapes.json").read_text())
    entry = entry[f"amazon/chronos-t5-{size}"]
    preset = models.preset(f"chronos:t5-{size}")
    with torch.device("meta"):
        model = ChronosT5(preset.config)
    assert {key: list(t.shape) for key, t in model.state_dict().items()} == entry["shapes"]
    assert sum(p.numel() for p in model.parameters()) == preset.num_parameters == entry["params"]


@pytest.mark.parametrize(("init", "factor"), [("published", 0.05), ("usable", 1.0)])
def test_initial_is_that_of_the_authors_times_the_factor(init, factor):
    model = models.create("chronos:t5-tiny", seed=0, init=init, num_layers=1, num_decoder_layers=1)
    assert list(model.initial(init)) == [name for name, _ in model.named_parameters()]
    for name, spread in (
        ("shared", 1.0),
        ("decoder.block.0.layer.1.EncDecAttention.q", 1 / 128),
        ("encoder.block.0.layer.1.DenseReluDense.wo", 1 / 32),
        ("encoder.final_layer_norm", 1.0),
    ):
        weight = model.get_parameter(f"{name}.weight")
        actual = weight.detach().square().mean().sqrt().item()
        assert actual == pytest.approx(factor * spread, rel=5 / (2 * weight.numel()) ** 0.5), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"chronos_config": {"tokenizer_class": "MeanScaleUniformBins"}}, "lacks context_length"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_field_name(gold, tmp_path, changes, message):
    config = json.loads((gold.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message):
        models.load("chronos", tmp_path)
