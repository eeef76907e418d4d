"""Large time series models by name: `names`, `load`, `create`, `preset`, `describe`.

`load("ttm:tiny")` gives packaged weights, `load("ttm", folder)` a published checkpoint folder, and
`create("timer:base-84m", seed=0)` a randomly initialised network. Every file here is one
model, found by its name and imported when it is asked for, except those in `_SHARED` and parts of a
model, whose names start with an underscore. Importing this package costs no torch.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

from sffbench.errors import InputError, unknown
from sffbench.models import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sffbench.models.base import LTSM, InitName, Preset

__all__ = ["LTSM", "check_options", "create", "describe", "get", "load", "names", "parse", "preset"]

_SHARED = frozenset({"base", "blocks", "checkpoint"})
Source = str | os.PathLike[str] | None


def __getattr__(attribute: str) -> Any:
    if attribute in {"LTSM", "Preset"}:
        return getattr(importlib.import_module("sffbench.models.base"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")


def names() -> list[str]:
    """Sorted model names: this folder's files, and subclasses of `LTSM` defined elsewhere."""
    files = {module.name for module in pkgutil.iter_modules(__path__)}
    found = {name for name in files - _SHARED if not name.startswith("_")}
    base = sys.modules.get("sffbench.models.base")  # nobody has subclassed what nobody imported
    return sorted(found | set(base.REGISTRY if base else ()))


def parse(name: str) -> tuple[str, str | None]:
    """`"ttm:tiny"` -> `("ttm", "tiny")`, `"ttm"` -> `("ttm", None)`; else `InputError`."""
    model, _, preset_name = name.partition(":")
    if model not in names():
        raise unknown("model", model, names())
    return model, preset_name or None


def get(name: str) -> type[LTSM]:
    """The class of a model (`"ttm"` or `"ttm:tiny"`)."""
    model, _ = parse(name)
    base = importlib.import_module("sffbench.models.base")
    if model not in base.REGISTRY:
        importlib.import_module(f"{__name__}.{model}")
    found: type[LTSM] = base.REGISTRY[model]
    return found


def preset(name: str) -> Preset:
    """The preset `"model:preset"`; an unknown one is an error naming the nearest."""
    model, preset_name = parse(name)
    presets = get(model).presets
    if preset_name not in presets:
        raise unknown(f"preset of {model}", preset_name or "", list(presets))
    return presets[preset_name]


def describe(
    name: str, source: Source = None, *, weights: str = checkpoint.WEIGHTS
) -> tuple[str, str]:
    """(config hash, weights hash) of what `load` would read; builds nothing, imports no torch."""
    folder = checkpoint.find(*parse(name), source)
    return checkpoint.describe(folder, _config(name, folder), weights)


def load(
    name: str,
    source: Source = None,
    *,
    horizon: int | None = None,
    lookback: int | None = None,
    weights: str = checkpoint.WEIGHTS,
    **options: Any,
) -> LTSM:
    """A pretrained model in eval mode, float32, on the CPU.

    `source` is a folder as the authors publish it; without one the packaged (`tiny`) or fetched
    weights are used, and nothing is ever downloaded. A preset beside a source must agree with the
    folder's config, and stands in for it where the folder holds weights alone. `lookback` and
    `horizon` override the native ones where the network allows it, `options` are config fields
    that change no shape. Raises `InputError` with one line.
    """
    model, preset_name = parse(name)
    cls = get(model)
    expected = preset(name) if preset_name else None
    folder = checkpoint.find(model, preset_name, source)
    config = _config(name, folder)
    if expected:
        checkpoint.check_preset(name, expected.config, config)
        lookback = lookback or expected.lookback
        horizon = horizon or expected.horizon
    _check_options(model, cls.variant(config), options)
    built = _empty(cls, config | options, lookback, horizon)
    checkpoint.assign(built, built.accept(checkpoint.read_state(folder, weights)))
    return built.eval()


def check_options(name: str, source: Source, options: Mapping[str, Any]) -> None:
    """Raise the error that `load` would raise over `options`; builds nothing."""
    model, preset_name = parse(name)
    config = _config(name, checkpoint.find(model, preset_name, source))
    _check_options(model, get(name).variant(config), options)


def _config(name: str, folder: Path) -> dict[str, Any]:
    """The folder's config; without one, that of a named preset (which costs torch)."""
    if parse(name)[1] and not (folder / "config.json").is_file():
        return dict(preset(name).config)
    return checkpoint.read_config(folder)


def _check_options(model: str, cls: type[LTSM], options: Mapping[str, Any]) -> None:
    for option in options:
        if option not in cls.options:
            raise unknown(f"option of {model}", option, sorted(cls.options))


def create(
    name: str,
    seed: int = 0,
    init: InitName = "usable",
    *,
    horizon: int | None = None,
    lookback: int | None = None,
    **config: Any,
) -> LTSM:
    """A randomly initialised model, each parameter drawn from its own stream (seed, name).

    `config` overrides fields of the preset's config, so any size can be made, and sets the model's
    options. The same seed gives the same weights on every machine, whatever the order of the
    parameters.
    """
    import sffkernels

    chosen = preset(name)
    allowed = chosen.config.keys() | get(name).variant(chosen.config).options
    if stray := [key for key in config if key not in allowed]:
        raise unknown(f"config field of {name}", stray[0], sorted(allowed))
    built = _empty(
        get(name),
        {**chosen.config, **config},
        lookback or chosen.lookback,
        horizon or chosen.horizon,
    )
    table, parameters = built.initial(init), dict(built.named_parameters())
    sffkernels.interpolate_(
        list(parameters.values()),
        0.0,
        init=[table[key] for key in parameters],
        c=1.0,
        seed=seed,
        names=list(parameters),
    )
    return built.eval()


def _empty(
    cls: type[LTSM], config: Mapping[str, Any], lookback: int | None, horizon: int | None
) -> LTSM:
    """The network of `config`, its weights unset: nothing is drawn only to be overwritten."""
    import torch

    for what, given in (("lookback", lookback), ("horizon", horizon)):
        if given is not None and given < 1:
            raise InputError(f"{what} must be >= 1, given {given}")
    with torch.device("meta"):
        built = cls.variant(config)(config, lookback=lookback, horizon=horizon)
    built.to_empty(device="cpu")
    built.reset_buffers()
    return built
