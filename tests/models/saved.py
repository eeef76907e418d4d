"""Checkpoints as training code saves them: prefixed, wrapped, in shards.

state = start("moirai", tmp_path)      # puts a golden config.json there; its tensors
torch.save(lightning(state, "module."), tmp_path / "last.ckpt")
message = refused("moirai", tmp_path)  # the one line that `load` refuses with
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sffbench import models
from sffbench.errors import InputError

GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def shards(folder: Path, state: State, name: str, save: Callable[[State, Path], object]) -> None:
    """Two shards and their index, named as `transformers` does."""
    stem, suffix = name.rsplit(".", 1)
    keys = list(state)
    parts = {f"{stem}-0000{i + 1}-of-00002.{suffix}": keys[i::2] for i in range(2)}
    for file, names in parts.items():
        save({key: state[key] for key in names}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file in parts for key in parts[file]}}
    (folder / f"{name}.index.json").write_text(json.dumps(index))


def lightning(state: State, prefix: str) -> dict[str, Any]:
    """What Lightning's trainer saves: more than weights."""
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": prefixed(state, prefix),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        "hyper_parameters": {"lr": 1e-3, "patch_len": 8},
    }


def pretraining(state: State) -> dict[str, Any]:
    """What UniTS' pre-training saves, its arguments included."""
    return {
        "student": prefixed(state, "module."),
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 4,
        "args": argparse.Namespace(d_model=16, is_training=1),
    }


def start(golden: str, target: Path) -> State:
    """The config of a golden folder alone, and its tensors."""
    shutil.copy(GOLDEN / golden / "config.json", target / "config.json")
    return load_file(GOLDEN / golden / "model.safetensors")


def refused(name: str, source: Path, **options: Any) -> str:
    """The line that `load` refuses with."""
    with pytest.raises(InputError) as caught:
        models.load(name, source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message
