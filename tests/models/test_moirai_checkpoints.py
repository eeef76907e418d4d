"""MOIRAI: what checkpoints and configs may hold, and how a fresh network is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sffbench import models
from sffbench.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("preset", ["1.1-small", "1.1-base", "1.1-large"])
def test_a_preset_has_the_heads_and_the_config_of_the_published_checkpoint(preset):
    card = models.preset(f"moirai:{preset}")
    entry = json.loads((GOLDEN / "moirai" / "published_shapes.json").read_text())[card.hub]
    with torch.device("meta"):
        model = models.get("moirai")(card.config)
    assert model.config["num_heads"] == entry["num_heads"]
    assert {key: card.config[key] for key in entry["config"]} == entry["config"]


@pytest.mark.parametrize(
    "shape",
    [
        {"num_layers": 1, "num_heads": 4},
        {"d_model": 128, "num_heads": None},
        {"patch_sizes": [4, 12, 24, 48]},
        {"scaling": False},
    ],
)
def test_other_shapes_of_the_network_survive_a_round_trip(tmp_path, shape):
    model = models.create("moirai:tiny", seed=3, **shape)
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    past = torch.randn(2, 3, 100)
    expected = model.forecast(past, 50)
    assert torch.equal(models.load("moirai", tmp_path).forecast(past, 50), expected)
    for patch in model.sizes:
        other = models.load("moirai", tmp_path, patch_size=patch)
        assert other.forecast(past, 50).isfinite().all()


def test_initial_is_the_authors_random_start():
    model = models.create("moirai:1.1-small", seed=0, num_layers=1, patch_sizes=[8, 16, 32])
    for name, parameter in model.named_parameters():
        values, count = parameter.detach(), parameter.numel()
        if "norm" in name:
            assert values.unique().tolist() == [1.0], name
        elif name.endswith("emb.weight") or name == "mask_encoding.weight":
            assert values.std().item() == pytest.approx(1.0, abs=5 / (2 * count) ** 0.5), name
        elif not name.startswith(("in_proj", "param_proj")):
            fan_in = values.shape[-1]
            assert values.abs().max() <= fan_in**-0.5, name
            spread = pytest.approx((3 * fan_in) ** -0.5, rel=5 / (2 * count) ** 0.5)
            assert values.std().item() == spread, name
    assert list(model.initial()) == [name for name, _ in model.named_parameters()]
    assert model.initial("published") == model.initial("usable")


def test_each_patch_size_starts_with_its_own_number_of_inputs_and_what_it_does_not_use_with_0():
    model = models.create("moirai:1.1-small", seed=0, num_layers=1, patch_sizes=[8, 16, 32])
    logits = model.param_proj.proj["weights_logits"]
    for which, size in enumerate(model.sizes):
        parts = [
            (model.in_proj.weight[which], (slice(None), slice(size)), size),
            (model.in_proj.bias[which], (slice(None),), size),
            (logits.weight[which], (slice(4 * size),), 384),
            (logits.bias[which], (slice(4 * size),), 384),
        ]
        for values, used, fan_in in parts:
            values = values.detach().clone()
            spread = pytest.approx((3 * fan_in) ** -0.5, rel=5 / (2 * values[used].numel()) ** 0.5)
            assert values[used].std().item() == spread
            assert values[used].abs().max() <= fan_in**-0.5
            values[used] = 0.0
            assert not values.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 5}, r"patch_size=5 is not one of \[4, 8\], nor 'auto'"),
        ({"num_heads": 5}, "d_model=32 must be a multiple of 64, or num_heads"),
        ({"num_heads": None}, "d_model=32 must be a multiple of 64, or num_heads"),
        ({"patch_sizes": []}, "patch_sizes"),
        ({"distr_output": {"_target_": "uni2ts.distribution.student_t.StudentTOutput"}}, "Mixture"),
        (
            {"distr_output": {"_target_": "a.MixtureOutput", "components": [{"_target_": "b.X"}]}},
            "'X'",
        ),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field(golden, tmp_path, fields, message):
    folder = golden("moirai").folder
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(InputError, match=message) as caught:
        models.load("moirai", tmp_path)
    assert "\n" not in str(caught.value)
