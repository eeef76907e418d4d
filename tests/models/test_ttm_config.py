"""The fields of TTM's config: computed, or refused in one line that names them."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._ttm_config import DEFAULTS, REQUIRED, SUPPORTED, complete

SIZES = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "d_model": 16,
    "decoder_d_model": 12,
}
RECONCILED = {"enable_forecast_channel_mixing": True, "num_input_channels": 3}
PREFIXED = {"resolution_prefix_tuning": True, "frequency_token_vocab_size": 10}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("categorical_vocab_size_list", [4, 2]),
        ("decoder_adaptive_patching_levels", 2),
        ("decoder_mode", "mix_channels"),
        ("decoder_raw_residual", True),
        ("decompose", True),
        ("enable_base_norm_always", True),
        ("fft_length", 3),
        ("gate_mode", "sigmoid"),
        ("init_linear", "zeros"),
        ("loss", "nll"),
        ("masked_context_length", 44),
        ("minimum_scale", 1e-3),
        ("mode", "flatten"),
        ("multi_quantile_head", True),
        ("multi_scale", True),
        ("norm_mlp", "BatchNorm"),
        ("num_patches", 5),
        ("patch_last", False),
        ("patch_stride", 4),
        ("prediction_filter_length", 13),
        ("prediction_filter_length", 0),
        ("register_tokens", 2),
        ("scaling", "mean"),
        ("scaling", None),
        ("self_attn", True),
        ("use_decoder", False),
        ("use_positional_encoding", True),
        ("use_register_context_gating", True),
        ("prediction_channel_indices", [0, 1]),  # of one channel
        ("exogenous_channel_indices", [0]),
        ("freq_token", 1),  # without a prefix
    ],
)
def test_a_field_that_is_not_computed_is_refused_by_name(golden, tmp_path, field, value):
    config = json.loads((golden("ttm").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(InputError, match=field) as caught:
        models.load("ttm", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 22, "adaptive_patching_levels": 3}, "d_model=22 must be a multiple of 4"),
        (RECONCILED | {"fcm_context_length": 0}, "fcm_context_length=0 must be 1 or more"),
        (PREFIXED | {"freq_token": 10}, "freq_token=10 must lie between 0 and 9"),
        (PREFIXED | {"freq_token": "h"}, "freq_token='h' must lie between"),
        (PREFIXED | {"freq_token": [1, -1]}, r"freq_token=\[1, -1\] must lie between"),
        (
            {
                **RECONCILED,
                "exogenous_channel_indices": [1],
                "prediction_channel_indices": [0, 1],
            },
            r"channels \[1\] stand in prediction_channel_indices and in exogenous_channel_indices",
        ),
        (
            {**RECONCILED, "prediction_channel_indices": [2, 2]},
            r"prediction_channel_indices=\[2, 2\] must be different channels",
        ),
    ],
)
def test_a_config_that_contradicts_itself_is_one_clear_line(fields, message):
    with pytest.raises(InputError, match=message):
        complete(SIZES | fields)


@pytest.mark.parametrize("folder", ["ttm", "ttm-mix", "ttm-freq"])
def test_every_field_of_a_published_config_is_known_by_name(golden, folder):
    """A field of the schema is computed, refused, or one of these, which forecasts do not read."""
    idle = {"architectures", "model_type", "torch_dtype", "transformers_version"}
    idle |= {"distribution_output", "num_parallel_samples"}  # of the likelihood, which is refused
    idle |= {"mask_value", "init_processing"}  # of masked prediction; of upstream's constructor
    idle |= {"positional_encoding_type", "self_attn_heads"}  # of switches that are refused
    config = json.loads((golden(folder).folder / "config.json").read_text())
    assert set(config) <= {*DEFAULTS, *REQUIRED, *SUPPORTED, *idle, "num_patches", "patch_stride"}


def test_a_checkpoint_of_other_channels_than_its_config_says_so(golden, tmp_path):
    folder = golden("ttm-mix").folder
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_input_channels": 5}))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"mis-shaped .*channel_feature_mixer"):
        models.load("ttm", tmp_path)
