"""What is no sound file of weights is refused in one line, and nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import pretraining, refused, shards, start

from sffbench import models
from sffbench.errors import InputError


class Hostile:
    """Unpickling this creates a file, if anything lets it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "pickle of old"])
@pytest.mark.parametrize("place", ["a value", "beside", "inside", "all of it"])
def test_a_hostile_checkpoint_is_refused_and_does_not_run(
    place: str, archive: bool, tmp_path: Path
):
    witness = tmp_path / "it ran"
    hostile, state = Hostile(witness), start("timer", tmp_path)
    content = {
        "a value": {**state, "model.norm.bias": hostile},
        "beside": {"state_dict": state, "callbacks": hostile},
        "inside": {"state_dict": {**state, "extra": [hostile]}},
        "all of it": hostile,
    }[place]
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    message = refused("timer", tmp_path)
    assert not witness.exists()
    assert message.startswith("model.ckpt needs code to be read (")
    assert "mkdir" in message
    assert "save its tensors alone with `torch.save(state_dict, NEW)`" in message
    torch.load(path, weights_only=False)  # the file is what it seems: without the guard it runs
    assert witness.exists()


def test_a_bare_hostile_pickle_is_refused_and_does_not_run(tmp_path: Path):
    start("timer", tmp_path)
    witness = tmp_path / "it ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Hostile(witness), protocol))
        message = refused("timer", tmp_path)
        assert message.startswith("model.ckpt ")
        assert not witness.exists()


def test_a_pickled_network_is_refused_by_the_class_that_it_needs(tmp_path: Path):
    start("timer", tmp_path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    assert "needs code to be read (torch.nn.modules.linear.Linear)" in refused("timer", tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit itself
def test_torchscript_is_refused_with_the_way_out(tmp_path: Path):
    start("timer_legacy", tmp_path)
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    script.save(str(tmp_path / "Timer_67M_UTSD_4G.pt"))
    message = refused("timer", tmp_path)
    assert message.startswith("Timer_67M_UTSD_4G.pt is a TorchScript archive")
    assert "torch.save(torch.jit.load(FILE).state_dict(), NEW)" in message


def test_arguments_beside_the_weights_do_not_make_others_welcome(tmp_path: Path):
    state = start("units_pretrain", tmp_path)
    content = pretraining(state) | {"args": PurePosixPath("a")}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert "needs code to be read (pathlib.PurePosixPath)" in refused("units", tmp_path)


PAGE = b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"


@pytest.mark.parametrize("name", ["model.safetensors", "torch_model.ckpt", "odd.pth"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or no file of weights: it is empty"),
        (PAGE, "is an HTML page"),
        (b"  <html>", "is an HTML page"),
        (POINTER, "is a Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04 a zip archive, say", "is truncated or no"),
        (b"\x80\x02 a pickle, say", "is truncated or no"),
        (b"\x89PNG\r\n\x1a\n", "is truncated or no"),
        (bytes(1000), "is truncated or no"),
        (b"{}", "is truncated or no"),
    ],
    ids=["empty", "page", "page 2", "pointer", "zip", "pickle", "png", "zeros", "json"],
)
def test_what_is_no_file_of_weights_is_named_for_what_it_is(
    name: str, content: bytes, message: str, tmp_path: Path
):
    start("timer", tmp_path)
    (tmp_path / name).write_bytes(content)
    assert re.match(f"{name} {message}", refused("timer", tmp_path))


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "pickle of old"])
def test_a_truncated_checkpoint_is_refused_wherever_it_ends(archive: bool, tmp_path: Path):
    state = start("timer", tmp_path)
    path = tmp_path / "torch_model.ckpt"
    torch.save(state, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    for length in (1, 3, 20, 200, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "torch_model.ckpt is truncated or no" in refused("timer", tmp_path)


def test_a_folder_in_the_place_of_weights_is_refused(tmp_path: Path):
    start("timer", tmp_path)
    (tmp_path / "model.safetensors").mkdir()
    assert refused("timer", tmp_path) == "model.safetensors is a folder, not a file of weights"
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
        models.describe("timer", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "it is list"),
        (torch.ones(2), "it is Tensor"),
        ({}, "it is empty"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' is int"),
        ({"state_dict": {"a": {"b": torch.ones(2)}}}, "'a' is dict"),
    ],
    ids=["list", "tensor", "empty", "a number", "nested"],
)
def test_a_checkpoint_without_a_state_dict_says_what_it_holds(
    content: Any, message: str, tmp_path: Path
):
    start("timer", tmp_path)
    torch.save(content, tmp_path / "odd.pth")
    found = refused("timer", tmp_path)
    assert found == f"odd.pth holds no state dict, tensors by name: {message}"


def test_two_state_dicts_in_one_file_are_a_question_not_a_guess(tmp_path: Path):
    state = start("timer", tmp_path)
    torch.save({"student": state, "state_dict": state}, tmp_path / "odd.pth")
    assert "holds several state dicts: state_dict, student" in refused("timer", tmp_path)


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 1}}'],
)
def test_a_damaged_index_of_shards_is_refused(index: str, tmp_path: Path):
    start("timer", tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert "pytorch_model.bin.index.json is damaged" in refused("timer", tmp_path)


def test_an_index_may_name_only_files_beside_it(tmp_path: Path):
    start("timer", tmp_path)
    for shard in ("gone.safetensors", "../outside.safetensors", "/etc/hostname"):
        index = {"weight_map": {"a": shard}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert f"names '{shard}', which is not in" in refused("timer", tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path):
    state = start("timer", tmp_path)
    shards(tmp_path, state, "model.safetensors", save_file)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"lm_heads.0.weight": torch.ones(2)}, second)
    first = load_file(tmp_path / "model-00001-of-00002.safetensors")
    save_file(
        first | {"lm_heads.0.weight": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors"
    )
    assert "holds 'lm_heads.0.weight', and so does a shard before it" in refused("timer", tmp_path)
