"""Parts of a network: every parameter in one, words and patterns, what is refused."""

from collections import Counter

import pytest

from sffbench import models, strategies
from sffbench.errors import InputError
from sffbench.strategies.groups import PARTS, part_of, values_by_name

EXAMPLES = {
    ("chronos", "output_patch_embedding.hidden_layer.bias"): "head",
    ("chronos", "shared.weight"): "embeddings",
    (
        "chronos",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ): "attention",
    ("chronos", "decoder.block.0.layer.1.EncDecAttention.q.weight"): "attention",
    ("chronos", "encoder.final_layer_norm.weight"): "norms",
    ("moirai", "encoder.layers.0.self_attn.q_norm.weight"): "norms",
    ("moirai", "encoder.layers.0.ffn.fc_gate.weight"): "ffn",
    ("moirai", "mask_encoding.weight"): "embeddings",
    ("moment", "head.linear.weight"): "head",
    ("moment", "encoder.block.0.layer.1.DenseReluDense.wo.weight"): "ffn",
    ("sundial", "flow_loss.net.res_blocks.0.in_ln.weight"): "head",
    ("timer", "model.layers.0.ffn_layer.up_proj.weight"): "ffn",
    ("timesfm", "stacked_transformer.layers.0.self_attn.scaling"): "attention",
    ("timesfm", "stacked_transformer.layers.0.mlp.layer_norm.bias"): "norms",
    ("timesfm", "input_ff_layer.output_layer.weight"): "embeddings",
    ("ttm", "backbone.encoder.patcher.weight"): "embeddings",
    ("ttm", "decoder.decoder_block.mixers.0.patch_mixer.mlp.fc1.weight"): "ffn",
    (
        "ttm",
        "decoder.decoder_block.mixers.0.feature_mixer.gating_block.attn_layer.bias",
    ): "attention",
    ("units", "prompt_tokens.synthetic"): "embeddings",
    ("units", "blocks.0.seq_att_block.ls1.gate.weight"): "attention",
    ("units", "blocks.0.dynamic_mlp.mlp.fc1.weight"): "ffn",
}


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_of_every_model_is_in_one_part(name: str) -> None:
    model = models.load(f"{name}:tiny")
    parts = part_of(model)
    assert parts.keys() == dict(model.named_parameters()).keys()
    counts = Counter(parts.values())
    assert set(counts) <= set(PARTS)
    assert all(counts[part] for part in ("head", "norms", "attention", "ffn", "embeddings"))
    assert counts["other"] <= 0.1 * len(parts), [n for n, part in parts.items() if part == "other"]


@pytest.mark.parametrize(("model", "parameter"), list(EXAMPLES), ids="/".join)
def test_a_parameter_is_where_a_reader_of_its_name_would_look(model: str, parameter: str) -> None:
    assert part_of(models.load(f"{model}:tiny"))[parameter] == EXAMPLES[model, parameter]


def test_a_pattern_outranks_a_word_whatever_the_order() -> None:
    model = models.load("ttm:tiny")
    one = {"norms": 0.2, "decoder.*": 0.9}
    values = values_by_name(model, one)
    assert values == values_by_name(model, dict(reversed(one.items())))
    parts = part_of(model)
    for name, part in parts.items():
        if name.startswith("decoder."):
            assert values[name] == 0.9
        elif part == "norms":
            assert values[name] == 0.2
        else:
            assert name not in values


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"decoder.*": 0.5, "*.bias": 0.6}, r"'\*.bias' and 'decoder.\*' both claim 'decoder"),
        ({"encoder.*": 0.5}, r"group 'encoder.\*': ttm has no such parameter"),
    ],
)
def test_a_table_that_does_not_fit_the_model_is_refused(
    groups: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        values_by_name(models.load("ttm:tiny"), groups)


def test_two_patterns_that_agree_may_overlap() -> None:
    groups = {"decoder.*": 0.5, "*.bias": 0.5}
    assert set(values_by_name(models.load("ttm:tiny"), groups).values()) == {0.5}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"norm": 1.0}, "unknown group of parameters 'norm'; did you mean 'norms'"),
        ({"norms": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_wrong_word_or_alpha_is_one_line(groups: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        strategies.get("sff", groups=groups)
    assert "\n" not in str(caught.value)
