"""Published checkpoint folders: find them, hash them, read them into a network.

A folder holds `config.json` and `model.safetensors` (or its index with shards), as the authors
publish it. Nothing here downloads, and nothing runs code from a checkpoint. Finding and hashing
(`find`, `describe`) import no torch, so that a plan over many runs stays instant.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sffbench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = Path(__file__).parent / "weights"
WEIGHTS = "model.safetensors"


def cache_folder() -> Path:
    """Where `sffbench fetch` puts checkpoints: `$SFFBENCH_CACHE` or `~/.cache/sffbench`."""
    return Path(os.environ.get("SFFBENCH_CACHE") or Path.home() / ".cache" / "sffbench")


def find(name: str, preset: str | None, source: str | os.PathLike[str] | None) -> Path:
    """The folder to load: the first that exists, else `InputError`.

    `source` if given; else `<name>-<preset>` in the package (`tiny`), in `$SFFBENCH_CHECKPOINTS` or
    in the cache.
    """
    if source is not None:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise InputError(f"no checkpoint folder at {str(source)!r}")
        return folder
    if preset is None:
        raise InputError(f"{name!r} needs a checkpoint folder or a preset, such as '{name}:tiny'")
    leaf = f"{name}-{preset}"
    shelf = os.environ.get("SFFBENCH_CHECKPOINTS")
    own = [Path(shelf).expanduser() / leaf] if shelf else []
    for folder in (PACKAGED / leaf, *own, cache_folder() / "models" / leaf):
        if folder.is_dir():
            return folder
    if preset == "tiny":
        raise InputError(
            f"no weights of {name}:tiny in this package yet: "
            f"make them with `sffbench pretrain {name}:tiny`"
        )
    raise InputError(
        f"no weights of {name}:{preset} on this machine: run `sffbench fetch {name}:{preset}`, "
        "or give the folder that holds them"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as a dictionary."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no config.json in {str(folder)!r}") from None
    except ValueError as error:
        raise InputError(f"config.json in {str(folder)!r} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"config.json in {str(folder)!r} must hold an object")
    return config


def weight_files(folder: Path, weights: str = WEIGHTS) -> list[Path]:
    """The file named `weights`, or the shards that `<weights>.index.json` lists."""
    path = folder / weights
    if path.is_file():
        return [path]
    index = folder / f"{weights}.index.json"
    if not index.is_file():
        raise InputError(f"no {weights} in {str(folder)!r}")
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for shard in shards:
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise InputError(f"{index.name} names {shard!r}, which is not in {str(folder)!r}")
    return [folder / shard for shard in shards]


def describe(folder: Path, config: Mapping[str, Any], weights: str = WEIGHTS) -> tuple[str, str]:
    """(config hash, weights hash): SHA-256 of canonical JSON and of the weight files' bytes."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256()
    for path in weight_files(folder, weights):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return hashlib.sha256(canonical.encode()).hexdigest(), digest.hexdigest()


def check_preset(name: str, expected: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """`InputError` naming the fields in which a folder's config is not the preset's."""
    wrong = [
        f"{key} is {config.get(key)!r}, not {value!r}"
        for key, value in expected.items()
        if not _agrees(value, config.get(key))
    ]
    if wrong:
        raise InputError(f"the folder is no {name}: {_few(wrong)}")


def _agrees(expected: Any, given: Any) -> bool:
    """Equal; a nested object may hold more fields than are expected of it."""
    if isinstance(expected, Mapping) and isinstance(given, Mapping):
        return all(_agrees(value, given.get(key)) for key, value in expected.items())
    return bool(expected == given)


def read_state(folder: Path, weights: str = WEIGHTS) -> dict[str, Tensor]:
    """All tensors of the weight files; a truncated or foreign file is an `InputError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in weight_files(folder, weights):
        if path.suffix != ".safetensors":
            raise InputError(f"{path.name}: only .safetensors weights are read")
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path.name} is truncated or no safetensors file ({error})") from None
    return state


def assign(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into `model`; `InputError` names missing, unexpected and mis-shaped keys."""
    own = model.state_dict()
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"missing {_few(missing)}")
    if unexpected := [key for key in state if key not in own]:
        problems.append(f"unexpected {_few(unexpected)}")
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if misshaped:
        problems.append(f"mis-shaped {_few(misshaped)}")
    if problems:
        raise InputError("the weights do not fit the network: " + "; ".join(problems))
    model.load_state_dict(dict(state))


def _few(items: Iterable[str], shown: int = 3) -> str:
    """The first few items, then how many more there are."""
    items = list(items)
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
