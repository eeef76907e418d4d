"""Weight files: which file of a folder is read, and the tensors in it.

    files = weight_files(folder)            # model.safetensors, or the first other known name
    state = read_state(folder)              # {name: tensor}, as the file names them

Safetensors, and whatever `torch.save` wrote: a state dict, or one inside a training checkpoint.
Everything is read with `weights_only`, so that no code of a checkpoint runs: a file that needs some
is refused. Choosing files imports no torch, and serves folders and listings of a hub alike.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sffbench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "model.safetensors"
# In this order, each followed by its index; then the only file with one of the suffixes.
KNOWN = (WEIGHTS, "pytorch_model.bin", "torch_model.ckpt")
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt")
# Where a training checkpoint keeps its state dict: Lightning, UniTS' pre-training, many loops.
WRAPPERS = ("state_dict", "student", "model_state_dict")
# A record of command-line arguments: it holds values and runs nothing. UniTS' files have one.
INERT = (argparse.Namespace,)


def choose(
    present: Iterable[str],
    weights: str = WEIGHTS,
    *,
    where: str,
    preferred: Callable[[], Iterable[str]] = tuple,
) -> str:
    """The name to read among those `present`: a weight file or an index of shards.

    `weights` if it is another than the default; else the first of `KNOWN` or of their indices; else
    the only name with a weight file's suffix; else the only one of `preferred`, which is asked only
    then. `InputError` says which names a choice remains between, or that there is none.
    """
    names = set(present)
    known = KNOWN if weights == WEIGHTS else (weights,)
    for name in (each for stem in known for each in (stem, index_of(stem))):
        if name in names:
            return name
    others = sorted(name for name in names if name.endswith(SUFFIXES))
    if weights != WEIGHTS:
        raise InputError(f"no {weights} in {where}{_holding(others)}")
    if len(others) > 1:
        others = [name for name in others if name in set(preferred())] or others
    if not others:
        raise InputError(f"no {WEIGHTS} in {where}, nor another file of weights")
    if len(others) > 1:
        raise InputError(
            f"no {WEIGHTS} in {where}, but {', '.join(others)}: say which one with `weights`"
        )
    return others[0]


def index_of(weights: str) -> str:
    """The name of the index that lists the shards of `weights`."""
    return f"{weights}.index.json"


def _holding(names: list[str]) -> str:
    return f"; it holds {', '.join(names)}" if names else ""


def weight_files(
    folder: Path, weights: str = WEIGHTS, preferred: Callable[[], Iterable[str]] = tuple
) -> list[Path]:
    """The files that hold the weights: one, or the shards that an index lists, sorted."""
    present = [weights] if (folder / weights).exists() else (path.name for path in folder.iterdir())
    path = folder / choose(present, weights, where=repr(str(folder)), preferred=preferred)
    if not path.name.endswith(".index.json"):
        return [path]
    shards = sorted(set(weight_map(path).values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{path.name} names {shard!r}, which is not in {str(folder)!r}")
    return [folder / shard for shard in shards]


def weight_map(index: Path) -> dict[str, str]:
    """{tensor: shard} of an index of shards."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if found and all(isinstance(shard, str) for shard in found.values()):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise InputError(f"{index.name} is damaged: it has no `weight_map` of tensors to files")


def read_state(
    folder: Path, weights: str = WEIGHTS, preferred: Callable[[], Iterable[str]] = tuple
) -> dict[str, Tensor]:
    """All tensors of the weight files; what is no sound weight file is an `InputError`."""
    files = weight_files(folder, weights, preferred)
    state: dict[str, Tensor] = {}
    for path in files:
        part = _read(path)
        if again := [key for key in part if key in state]:
            raise InputError(f"{path.name} holds {again[0]!r}, and so does a shard before it")
        state.update(part)
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if complaint := _no_weights(path):
        raise InputError(f"{path.name} {complaint}")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _no_weights(path: Path) -> str | None:
    """What a file is instead of weights, where its first bytes tell."""
    if path.is_dir():
        return "is a folder, not a file of weights"
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not start:
        return "is truncated or no file of weights: it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "is an HTML page, no file of weights: download the file itself"
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        what = f"truncated or no safetensors file ({_first_line(error)})"
        raise InputError(f"{path.name} is {what}") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    import torch

    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # older ones are pickles that nothing can map
    try:
        with torch.serialization.safe_globals(list(INERT)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the age of a file: reading it is what counts
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path.name} {_refusal(str(error))}") from None
    return _state_dict(path, loaded)


def _refusal(message: str) -> str:
    """Why `torch.load` would not read a file, in words about the file."""
    if "TorchScript" in message:
        return (
            "is a TorchScript archive, which is code, and none is run: where you trust it, save "
            "its tensors alone with `torch.save(torch.jit.load(FILE).state_dict(), NEW)`"
        )
    if needed := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"needs code to be read ({needed[1]}), and none is run: where you trust it, save its "
            "tensors alone with `torch.save(state_dict, NEW)`"
        )
    first = message.strip().splitlines()[:1] or ["no more bytes"]
    detail = "no pickle of tensors" if first[0].startswith("Weights only") else first[0]
    return f"is truncated or no PyTorch checkpoint ({detail.rstrip('.')[:120]})"


def _state_dict(path: Path, loaded: Any) -> dict[str, Tensor]:
    """The tensors of what a file held: all of a state dict, or of the one that is wrapped in it."""
    import torch

    if isinstance(loaded, Mapping):
        inside = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if len(inside) > 1:
            raise InputError(f"{path.name} holds several state dicts: {', '.join(inside)}")
        state = loaded[inside[0]] if inside else loaded
        wrong = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
        if state and not wrong:
            return {str(key): value for key, value in state.items()}
        problem = f"{wrong[0]!r} is {type(state[wrong[0]]).__name__}" if wrong else "it is empty"
    else:
        problem = f"it is {type(loaded).__name__}"
    raise InputError(f"{path.name} holds no state dict, tensors by name: {problem}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
