"""UniTS: what checkpoints and configs may hold, and how a fresh network is drawn."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sffbench import models
from sffbench.errors import InputError
from sffbench.models._units_layers import DynamicLinear

GOLDEN = Path(__file__).parents[1] / "golden"


def changed(folder, target, edit=None, **fields):
    """A golden folder with other config fields and tensors, `edit` working on the latter."""
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    state = load_file(folder / "model.safetensors")
    if edit is not None:
        edit(state)
    save_file(state, target / "model.safetensors")
    return target


@pytest.mark.parametrize("num_channels", [1, 2, 5])
def test_prompts_are_averaged_where_the_window_has_other_channels(golden, tmp_path, num_channels):
    folder = golden("units").folder

    def average(state):
        for key in ("prompt_tokens.A", "mask_tokens.A"):
            state[key] = state[key].mean(1, keepdim=True).repeat(1, num_channels, 1, 1)

    fields = json.loads((folder / "config.json").read_text())["configs_list"]
    for _, task in fields:
        task["enc_in"] = num_channels
    equal = models.load("units", changed(folder, tmp_path, average, configs_list=fields))
    past = torch.randn(2, num_channels, 30)
    expected = equal.forecast(past, 18)
    torch.testing.assert_close(golden("units").model().forecast(past, 18), expected)


def test_the_option_dataset_chooses_the_prompts_and_none_means_all(golden, tmp_path):
    folder, past = golden("units").folder, golden("units").by_channel("input")

    def second(state):
        state["prompt_tokens.B"] = torch.randn(1, 5, 3, 16)
        state["mask_tokens.B"] = torch.randn(1, 5, 1, 16)

    changed(folder, tmp_path, second)
    plain = golden("units").model().forecast(past, 18)
    first = models.load("units", tmp_path, dataset="A").forecast(past, 18)
    other = models.load("units", tmp_path, dataset="B").forecast(past, 18)
    mixed = models.load("units", tmp_path)
    assert torch.equal(first, plain)
    assert not torch.allclose(other, plain)
    with torch.no_grad():
        for family in (mixed.prompt_tokens, mixed.mask_tokens):
            both = (family["A"].mean(1) + family["B"].mean(1))[:, None] / 2
            family["A"].copy_(both.expand(-1, 3, -1, -1))
            family["B"].copy_(both.expand(-1, 5, -1, -1))
    expected = mixed.forecast(past, 18)
    torch.testing.assert_close(models.load("units", tmp_path).forecast(past, 18), expected)
    with pytest.raises(InputError, match=r"unknown dataset of units 'C' .*allowed: A, B"):
        models.load("units", tmp_path, dataset="C")
    with pytest.raises(InputError, match="prompts are shared"):
        models.load("units", golden("units_zeroshot").folder, dataset="A")


def test_prompts_that_the_config_declares_must_be_in_the_checkpoint(golden, tmp_path):
    def gone(state):
        del state["prompt_tokens.A"]

    with pytest.raises(InputError, match=r"missing prompt_tokens\.A"):
        models.load("units", changed(golden("units").folder, tmp_path, gone))


def test_a_pretraining_head_may_be_in_the_checkpoint_or_not(golden, tmp_path):
    def gone(state):
        for key in [key for key in state if key.startswith(("pretrain_head.", "cls_tokens."))]:
            del state[key]

    folder, past = golden("units_pretrain").folder, golden("units_pretrain").by_channel("input")
    expected = models.load("units", folder).forecast(past, 10)
    (tmp_path / "without").mkdir()
    (tmp_path / "with").mkdir()
    without = models.load("units", changed(folder, tmp_path / "without", gone))
    assert torch.equal(without.forecast(past, 10), expected)
    kept = models.load("units", changed(folder, tmp_path / "with", pretrain=False))
    assert torch.equal(kept.forecast(past, 10), expected)
    with pytest.raises(InputError, match="no pre-training head"):
        without.rebuild(past, torch.zeros(2, 8))


@pytest.mark.parametrize(
    "shape",
    [
        {"e_layers": 1, "n_heads": 4},
        {"d_model": 48, "n_heads": 6, "prompt_num": 4},
        {"patch_len": 8, "stride": 8},
        {"pretrain": True},
    ],
)
def test_other_shapes_of_the_network_survive_a_round_trip(tmp_path, shape):
    model = models.create("units:tiny", seed=3, **shape)
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    past = torch.randn(2, 3, 100)
    again = models.load("units", tmp_path)
    assert torch.equal(again.forecast(past, 96), model.forecast(past, 96))
    assert (again.lookback, again.horizon) == (512, 96)


def test_initial_is_the_authors_random_start():
    model = models.create("units:x32", seed=0, pretrain=True)
    for name, parameter in model.named_parameters():
        values, count = parameter.detach(), parameter.numel()
        if name.startswith("mask_tokens."):
            assert not values.any(), name
        elif name.startswith(("prompt_tokens.", "cls_tokens.")):
            assert values.std().item() == pytest.approx(0.02, abs=5 * 0.02 / (2 * count) ** 0.5)
        elif name == "position_embedding.pe":
            place, rate = 4999, 10_000.0 ** (-2 * 5 / values.shape[-1])
            found = values[0, 0, place, 10:12].tolist()
            assert found == pytest.approx(
                [math.sin(place * rate), math.cos(place * rate)], abs=1e-3
            )
        elif "norm" in name:
            assert values.unique().tolist() == [float(name.endswith("weight"))], name
        else:
            bound = fan_in(model, name) ** -0.5
            assert values.abs().max() <= bound, name
            near = 5 * bound / (3 * count) ** 0.5
            assert abs(values.mean().item()) < near, name
            if count > 500:
                assert values.abs().max() > 0.99 * bound, name
                spread = pytest.approx(bound / 3**0.5, rel=5 / (2 * count) ** 0.5)
                assert values.std().item() == spread, name
    assert list(model.initial()) == [name for name, _ in model.named_parameters()]
    assert model.initial("published") == model.initial("usable")


@pytest.mark.parametrize(
    "shape",
    [
        {"e_layers": 1, "n_heads": 4, "d_model": 32},
        {"d_model": 48, "n_heads": 6, "prompt_num": 4},
        {"d_model": 16, "patch_len": 8, "stride": 8, "pretrain": False},
    ],
)
def test_shared_prompts_survive_a_round_trip_and_serve_any_number_of_channels(tmp_path, shape):
    model = models.create("units:x64-zeroshot", seed=3, **shape)
    (tmp_path / "config.json").write_text(json.dumps(model.config | {"shared_tokens": False}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = models.load("units", tmp_path)  # the keys decide, whatever the config says
    assert again.state_dict().keys() == model.state_dict().keys()
    for num_channels in (1, 2, 5):
        past = torch.randn(2, num_channels, 100)
        assert torch.equal(again.forecast(past, 96), model.forecast(past, 96))


def test_shared_prompts_are_prompts_of_a_data_set_that_all_channels_share(golden, tmp_path):
    folder, past = golden("units_zeroshot").folder, golden("units").by_channel("input")

    def spread(state):
        for key in ("prompt_token", "mask_token"):
            state[f"{key}s.A"] = state.pop(key).repeat(1, 3, 1, 1)
        del state["cls_token"]

    shared = models.load("units", folder).forecast(past, 18)
    own = models.load("units", changed(folder, tmp_path, spread)).forecast(past, 18)
    torch.testing.assert_close(own, shared)


@pytest.mark.parametrize("token", ["mask_token", "cls_token"])
def test_a_missing_shared_token_is_named(golden, tmp_path, token):
    folder = golden("units_zeroshot").folder
    with pytest.raises(InputError, match=f"missing {token}"):
        models.load("units", changed(folder, tmp_path, lambda state: state.pop(token)))


def test_initial_of_shared_tokens_is_that_of_the_authors():
    model = models.create("units:x64-zeroshot", seed=0)
    table = model.initial()
    assert list(table) == [name for name, _ in model.named_parameters()]
    assert not model.mask_token.any()
    for name in ("prompt_token", "cls_token"):
        assert (table[name].kind, table[name].a, table[name].b) == ("normal", 0.0, 0.02)
    spread = model.prompt_token.std().item()
    assert spread == pytest.approx(0.02, abs=5 * 0.02 / (2 * model.prompt_token.numel()) ** 0.5)


def test_the_loss_reaches_shared_tokens_and_all_but_the_idle_parameters():
    model = models.create("units:x64-zeroshot", seed=0, d_model=16, e_layers=1, pretrain=False)
    model.loss(torch.randn(2, 3, 96), torch.randn(2, 3, 96)).backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"prompt_token", "mask_token"} <= reached
    idle = {name for name, _ in model.named_parameters()} - reached
    assert all(any(fnmatch(name, pattern) for pattern in model.unused) for name in idle)


def fan_in(model, name):
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, DynamicLinear):
        return owner.weights.shape[1]
    return owner.weight[0].numel()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 2}, "stride=2 must equal patch_len=4"),
        ({"n_heads": 5}, "d_model=16 must be a multiple of 5 heads"),
        ({"prompt_num": 40}, "prompt_num=40 must lie between 1 and 31"),
        ({"configs_list": [["X", {"dataset": "A"}]]}, "task 'X' of configs_list lacks task_name"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_field(golden, tmp_path, fields, message):
    with pytest.raises(InputError, match=message) as caught:
        models.load("units", changed(golden("units").folder, tmp_path, **fields))
    assert "\n" not in str(caught.value)
