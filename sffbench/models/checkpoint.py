"""Published checkpoint folders: find them, hash them, fit them into a network.

A folder holds weights in one of the formats of `formats.py` and perhaps a `config.json`, as the
authors publish it. Nothing here downloads, and nothing runs code from a checkpoint. Finding and
hashing (`find`, `describe`) import no torch, so that a plan over many runs stays instant.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sffbench.errors import InputError
from sffbench.models.formats import WEIGHTS, weight_files

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGED = Path(__file__).parent / "weights"


def cache_folder() -> Path:
    """Where `sffbench fetch` puts checkpoints: `$SFFBENCH_CACHE` or `~/.cache/sffbench`."""
    given = os.environ.get("SFFBENCH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "sffbench"


def leaf(name: str, preset: str) -> str:
    """The folder name of a preset's weights, on every shelf and in the cache."""
    return f"{name}-{preset}"


def shelved(name: str, preset: str) -> Path | None:
    """The folder of a preset's weights: in the package, `$SFFBENCH_CHECKPOINTS`, the cache."""
    shelf = os.environ.get("SFFBENCH_CHECKPOINTS")
    own = [Path(shelf).expanduser()] if shelf else []
    places = [place / leaf(name, preset) for place in (PACKAGED, *own, cache_folder() / "models")]
    return next((folder for folder in places if folder.is_dir()), None)


def find(name: str, preset: str | None, source: str | os.PathLike[str] | None) -> Path:
    """The folder to load: `source` if given, else that of the preset, else `InputError`."""
    if source is not None:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise InputError(f"no checkpoint folder at {str(source)!r}")
        return folder
    if preset is None:
        raise InputError(f"{name!r} needs a checkpoint folder or a preset, such as '{name}:tiny'")
    if found := shelved(name, preset):
        return found
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


def describe(
    folder: Path,
    config: Mapping[str, Any],
    weights: str = WEIGHTS,
    preferred: Callable[[], Iterable[str]] = tuple,
) -> tuple[str, str]:
    """(config hash, weights hash): SHA-256 of canonical JSON and of the weight files' bytes."""
    digest = hashlib.sha256()
    for path in weight_files(folder, weights, preferred):
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{path.name} cannot be read: {error.strerror}") from None
    return config_hash(config), digest.hexdigest()


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config's canonical JSON: sorted keys, no spaces."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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


def unwrap(
    state: Mapping[str, Tensor], own: Collection[str], prefixes: Iterable[str]
) -> dict[str, Tensor]:
    """The names without the prefixes that all of them share and that the network's `own` do not."""
    state, prefixes = dict(state), tuple(prefixes)
    while True:
        shared = [prefix for prefix in prefixes if _all_start(state, prefix)]
        if not shared or _all_start(own, shared[0]):
            return state
        state = {key.removeprefix(shared[0]): tensor for key, tensor in state.items()}


def _all_start(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def merge(state: dict[str, Tensor], aliases: Mapping[str, str]) -> None:
    """Rename in place what is stored as an alias {alias: name}; `InputError` where the two differ.

    A checkpoint may hold a tensor under its name, under an alias or under several of them: one is
    kept, and only if all of them are equal.
    """
    import torch

    for alias, name in aliases.items():
        if alias not in state:
            continue
        tensor = state.pop(alias)
        kept = state.setdefault(name, tensor)
        if kept.shape != tensor.shape or not torch.equal(kept.float(), tensor.float()):
            raise InputError(f"{name} and {alias} should be one tensor, but their values differ")


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
    misshaped += [
        f"{key} of {str(state[key].dtype).removeprefix('torch.')}"
        for key, tensor in own.items()
        if key in state and state[key].is_floating_point() != tensor.is_floating_point()
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
