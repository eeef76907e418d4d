"""Every format that weights are published in loads as the same network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from saved import State, lightning, prefixed, pretraining, refused, shards, start

from sffbench import models
from sffbench.models import formats

FAMILIES = {
    "chronos-bolt": "chronos",
    "chronos-t5": "chronos",
    "moirai": "moirai",
    "moment": "moment",
    "sundial": "sundial",
    "timer": "timer",
    "timer_legacy": "timer",
    "timesfm-2.0": "timesfm",
    "ttm": "ttm",
    "units_pretrain": "units",
}

FORMATS: dict[str, Callable[[Path, State], object]] = {
    "model.safetensors": lambda f, s: save_file(s, f / "model.safetensors"),
    "sharded safetensors": lambda f, s: shards(f, s, "model.safetensors", save_file),
    "pytorch_model.bin": lambda f, s: torch.save(s, f / "pytorch_model.bin"),
    "sharded pytorch_model.bin": lambda f, s: shards(f, s, "pytorch_model.bin", torch.save),
    "torch_model.ckpt": lambda f, s: torch.save(s, f / "torch_model.ckpt"),
    "a pickle of old": lambda f, s: torch.save(
        s, f / "old.pth", _use_new_zipfile_serialization=False
    ),
    "Lightning, module.": lambda f, s: torch.save(lightning(s, "module."), f / "last.ckpt"),
    "Lightning, model.": lambda f, s: torch.save(lightning(s, "model."), f / "last.ckpt"),
    "DDP": lambda f, s: torch.save(prefixed(s, "module."), f / "checkpoint.pth"),
    "DDP inside Lightning": lambda f, s: torch.save(lightning(s, "model.module."), f / "last.ckpt"),
    "student": lambda f, s: torch.save(pretraining(s), f / "pretrain_checkpoint.pth"),
    "model_state_dict": lambda f, s: torch.save({"model_state_dict": s}, f / "best.pt"),
    "parameters": lambda f, s: torch.save(
        {k: torch.nn.Parameter(v) for k, v in s.items()}, f / "best.pt"
    ),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("golden", FAMILIES)
def test_each_format_gives_each_network_its_weights(golden: str, format: str, tmp_path: Path):
    state = start(golden, tmp_path)
    FORMATS[format](tmp_path, state)
    loaded = models.load(FAMILIES[golden], tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("format", FORMATS)
def test_the_weights_hash_is_that_of_the_bytes_of_the_files(format: str, tmp_path: Path):
    FORMATS[format](tmp_path, start("timer", tmp_path))
    files = sorted(path for path in tmp_path.iterdir() if path.suffix != ".json")
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert models.describe("timer", tmp_path)[1] == whole


def test_half_precision_in_a_pickle_becomes_float32(tmp_path: Path):
    state = start("timer", tmp_path)
    torch.save({k: v.bfloat16() for k, v in state.items()}, tmp_path / "pytorch_model.bin")
    loaded = models.load("timer", tmp_path).state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[key], state[key].bfloat16().float()) for key in state)


# -- which file of a folder ----------------------------------------------------------------------


def test_the_first_known_name_is_read_and_any_other_when_it_is_named(tmp_path: Path):
    state = start("timer", tmp_path)
    order = ["odd.pth", "torch_model.ckpt", "pytorch_model.bin", "model.safetensors"]
    for value, name in enumerate(order):
        marked = state | {"model.norm.bias": torch.full((32,), float(value))}
        save = save_file if name.endswith("safetensors") else torch.save
        save(marked, tmp_path / name)
        assert models.load("timer", tmp_path).model.norm.bias[0] == value, name
    for value, name in enumerate(order[:-1]):
        assert models.load("timer", tmp_path, weights=name).model.norm.bias[0] == value
        assert models.load("timer", tmp_path / name).model.norm.bias[0] == value


def test_several_files_of_unknown_names_are_a_question_not_a_guess(tmp_path: Path):
    state = start("timer_legacy", tmp_path)
    for name in ("Timer_forecast_1.0.ckpt", "Timer_imputation_1.0.ckpt"):
        torch.save(lightning(state, "model."), tmp_path / name)
    message = refused("timer", tmp_path)
    assert "Timer_forecast_1.0.ckpt, Timer_imputation_1.0.ckpt" in message
    assert "say which one with `weights`" in message
    models.load("timer", tmp_path, weights="Timer_imputation_1.0.ckpt")


def test_a_preset_knows_its_file_among_several(tmp_path: Path):
    for name in ("Timer_forecast_1.0.ckpt", "Timer_imputation_1.0.ckpt", "other.pth"):
        size = "1.0-imputation" if "imputation" in name else "tiny"
        model = models.create(f"timer:{size}", seed=1)
        torch.save(lightning(model.state_dict(), "model."), tmp_path / name)
    loaded = models.load("timer:1.0-imputation", tmp_path)
    assert loaded.config["patch_len"] == 24
    whole = (tmp_path / "Timer_imputation_1.0.ckpt").read_bytes()
    described = models.describe("timer:1.0-imputation", tmp_path)
    assert described[1] == hashlib.sha256(whole).hexdigest()


def test_weights_without_a_config_tell_which_preset_they_are(tmp_path: Path):
    model = models.create("timer:1.0-imputation", seed=3)
    torch.save(lightning(model.state_dict(), "model."), tmp_path / "some.ckpt")
    loaded = models.load("timer", tmp_path)
    assert loaded.config == model.config
    assert loaded.lookback == models.preset("timer:1.0-imputation").lookback
    assert models.describe("timer", tmp_path) == models.describe("timer:1.0-imputation", tmp_path)
    assert "its weights are no preset of ttm" in refused("ttm", tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert "its weights are no preset of timer" in refused("timer", tmp_path)


def test_the_pretraining_file_of_units_alone_tells_its_size(tmp_path: Path):
    state = models.create("units:x32", seed=1).state_dict()
    torch.save(pretraining(state), tmp_path / "units_x32_pretrain_checkpoint.pth")
    loaded = models.load("units", tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_weights_of_several_presets_without_a_config_ask_for_a_name(tmp_path: Path):
    state = models.create("ttm:r2-512-96").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    message = refused("ttm", tmp_path)
    assert "ttm:r1-512-96 or ttm:r2-512-96" in message
    assert models.load("ttm:r1-512-96", tmp_path).horizon == 96


def test_the_config_of_the_transformers_port_agrees_with_a_preset(tmp_path: Path):
    card = models.preset("timesfm:tiny")
    aliases = {
        "context_len": "context_length",
        "input_patch_len": "patch_length",
        "output_patch_len": "horizon_length",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "model_dims": "hidden_size",
    }
    port = {aliases.get(key, key): value for key, value in card.config.items()}
    (tmp_path / "config.json").write_text(json.dumps(port))
    save_file(models.create("timesfm:tiny", seed=5).state_dict(), tmp_path / "model.safetensors")
    assert models.load("timesfm:tiny", tmp_path).config["num_layers"] == card.config["num_layers"]
    (tmp_path / "config.json").write_text(json.dumps(port | {"num_hidden_layers": 9}))
    assert "num_layers is 9, not" in refused("timesfm:tiny", tmp_path)


def test_a_name_that_is_not_in_the_folder_is_said_with_those_that_are(tmp_path: Path):
    torch.save(start("timer", tmp_path), tmp_path / "other.pth")
    message = refused("timer", tmp_path, weights="best.pth")
    assert message == f"no best.pth in {str(tmp_path)!r}; it holds other.pth"
    (tmp_path / "other.pth").unlink()
    assert "no model.safetensors in" in refused("timer", tmp_path)
    (tmp_path / "a.pth").write_bytes(b"")
    assert "is the file a.pth, and weights='b.pth'" in refused(
        "timer", tmp_path / "a.pth", weights="b.pth"
    )
    assert "config.json is no file of weights" in refused("timer", tmp_path / "config.json")


def test_choosing_a_file_is_a_matter_of_names_alone():
    known = [
        "torch_model.ckpt",
        "pytorch_model.bin.index.json",
        "a.safetensors",
        "model.safetensors",
    ]
    assert formats.choose(known, where="here") == "model.safetensors"
    assert formats.choose(known[:3], where="here") == "pytorch_model.bin.index.json"
    assert formats.choose([known[0], known[2]], where="here") == "torch_model.ckpt"
    assert formats.choose(["README.md", "config.json", known[2]], where="here") == "a.safetensors"
    assert formats.choose(["a.pth", "b.pth"], where="here", preferred=lambda: ["b.pth"]) == "b.pth"


# -- tied tensors, aliases, names ----------------------------------------------------------------

EMBEDDINGS = ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")


@pytest.mark.parametrize("golden", ["chronos-bolt", "chronos-t5"])
@pytest.mark.parametrize("kept", [(0,), (1,), (2,), (0, 1, 2), (1, 2), (0, 1, 2, 3)])
def test_a_tied_embedding_may_be_stored_under_any_or_all_of_its_names(
    golden: str, kept: tuple[int, ...], tmp_path: Path
):
    state = start(golden, tmp_path)
    given = {key: tensor for key, tensor in state.items() if key != "shared.weight"}
    given |= {f"{EMBEDDINGS[i]}.weight": state["shared.weight"] for i in kept}
    torch.save(given, tmp_path / "pytorch_model.bin")
    loaded = models.load("chronos", tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_copies_of_a_tied_embedding_that_differ_are_an_error(tmp_path: Path):
    state = start("chronos-t5", tmp_path)
    other = state["shared.weight"].clone()
    other[3, 0] += 1
    torch.save(state | {"lm_head.weight": other}, tmp_path / "pytorch_model.bin")
    message = refused("chronos", tmp_path)
    assert (
        message == "shared.weight and lm_head.weight should be one tensor, but their values differ"
    )


def wrapped(state: State) -> State:
    """What fine-tuning Timer 1.0 saves: every tensor twice."""
    twice = prefixed(state, "backbone.")
    twice |= {
        key.replace("patch_embedding.", "enc_embedding."): tensor for key, tensor in state.items()
    }
    return twice


@pytest.mark.parametrize("prefix", ["", "module.", "timer.", "model.timer.module."])
def test_the_wrapper_of_timer_1_0_with_its_aliases_loads(prefix: str, tmp_path: Path):
    state = start("timer_legacy", tmp_path)
    torch.save(prefixed(wrapped(state), prefix), tmp_path / "checkpoint.pth")
    loaded = models.load("timer", tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_aliases_of_timer_1_0_that_differ_are_an_error(tmp_path: Path):
    state = start("timer_legacy", tmp_path)
    torch.save(wrapped(state) | {"proj.bias": state["proj.bias"] + 1}, tmp_path / "checkpoint.pth")
    message = refused("timer", tmp_path)
    assert "proj.bias and backbone.proj.bias should be one tensor" in message


def test_positions_of_timer_1_0_may_be_missing_and_nothing_else(tmp_path: Path):
    state = start("timer_legacy", tmp_path)
    pe = "patch_embedding.position_embedding.pe"
    torch.save({k: v for k, v in state.items() if k != pe}, tmp_path / "checkpoint.pth")
    loaded = models.load("timer", tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    torch.save({k: v for k, v in state.items() if k != "proj.bias"}, tmp_path / "checkpoint.pth")
    assert "missing proj.bias" in refused("timer", tmp_path)


def test_missing_unexpected_and_misshaped_names_are_said_without_the_prefix(tmp_path: Path):
    state = start("moirai", tmp_path)
    shape = tuple(state["mask_encoding.weight"].shape)
    del state["encoder.norm.weight"]
    state["mask_encoding.weight"] = torch.zeros(1, 3)
    state["ema.weight"] = torch.zeros(1)
    torch.save(lightning(state, "module."), tmp_path / "last.ckpt")
    message = refused("moirai", tmp_path)
    assert "missing encoder.norm.weight" in message
    assert "unexpected ema.weight" in message
    assert f"mis-shaped mask_encoding.weight (1, 3) instead of {shape}" in message


def test_integers_in_the_place_of_weights_are_refused(tmp_path: Path):
    state = start("timer", tmp_path)
    state["model.norm.weight"] = state["model.norm.weight"].to(torch.int8)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "mis-shaped model.norm.weight of int8" in refused("timer", tmp_path)
