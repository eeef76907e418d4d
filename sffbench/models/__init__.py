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
from sffbench.models import checkpoint, fields, formats, places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sffbench.models.base import LTSM, InitName, Preset

__all__ = ["LTSM", "check_options", "create", "describe", "get", "load", "names", "parse", "preset"]

_SHARED = frozenset(
    {
        *("base", "blocks", "checkpoint", "fetch", "formats", "hub", "lockfile", "places"),
        *("fields", "recognise", "twin"),
    }
)
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
    name: str, source: Source = None, *, weights: str = formats.WEIGHTS
) -> tuple[str, str]:
    """(config hash, weights hash) of what `load` would read; builds nothing, imports no torch."""
    place = _resolve(name, source, weights)
    return checkpoint.describe(place.folder, _config(place), place.weights, place.preferred)


def load(
    name: str,
    source: Source = None,
    *,
    horizon: int | None = None,
    lookback: int | None = None,
    weights: str = formats.WEIGHTS,
    **options: Any,
) -> LTSM:
    """A pretrained model in eval mode, float32, on the CPU.

    `source` is a folder as the authors publish it, a file of weights in one, or the id of a
    repository that was fetched (`"amazon/chronos-bolt-small"`, perhaps with `@revision`); without
    one the packaged (`tiny`) or fetched weights of the preset are used. Nothing is ever downloaded.
    `weights` names the file to read; the default also stands for `pytorch_model.bin`,
    `torch_model.ckpt`, their indices, or the only file of weights, in that order. A preset beside a
    source must agree with the folder's config, and stands in for it where there is none; without a
    preset the weights must tell which one they are. `lookback` and `horizon` override the native
    ones where the network allows it, `options` are config fields that change no shape. Raises
    `InputError` with one line.
    """
    place = _resolve(name, source, weights)
    model, preset_name = parse(place.name)
    cls, config = get(model), _completed(place)
    expected = preset(place.name) if preset_name else None
    if expected and expected.any_size and (place.folder / "config.json").exists():
        expected = None  # the name says which network it is, the folder how large
    if expected:
        given = {key: value for key, value in expected.config.items() if key in config}
        checkpoint.check_preset(place.name, given, config)
        lookback = lookback or expected.lookback
        horizon = horizon or expected.horizon
    refuse_unknown_options(model, cls.variant(config), options)
    built = _empty(cls, config | options, lookback, horizon)
    if expected:  # what the folder leaves to a default, the network has completed
        checkpoint.check_preset(place.name, expected.config, {**built.config, **config})
    state = formats.read_state(place.folder, place.weights, place.preferred)
    state = checkpoint.unwrap(state, built.state_dict(), built.prefixes)
    checkpoint.assign(built, built.accept(state))
    return built.eval()


def check_options(
    name: str, source: Source, options: Mapping[str, Any], *, weights: str = formats.WEIGHTS
) -> None:
    """Raise the error that `load` would raise over `options`; builds nothing."""
    place = _resolve(name, source, weights)
    cls = get(place.name).variant(_completed(place))
    refuse_unknown_options(parse(place.name)[0], cls, options)


def _resolve(name: str, source: Source, weights: str = formats.WEIGHTS) -> places.Place:
    parse(name)
    return places.resolve(name, source, weights)


def _config(place: places.Place) -> dict[str, Any]:
    """The folder's config; without one, that of the preset (which costs torch)."""
    if (place.folder / "config.json").exists():
        return checkpoint.read_config(place.folder)
    return dict(preset(place.name).config)


def _completed(place: places.Place) -> dict[str, Any]:
    """What is built: the config under the presets' field names, filled up by a named preset.

    The preset fills up only a config that says nothing of the network (some authors fix it in
    code); any other has to agree with it.
    """
    config = _config(place)
    config = get(place.name).variant(config).own_names(config)
    if parse(place.name)[1]:
        expected = preset(place.name).config
        if not any(key in config for key in expected):
            config |= expected
    return config


def refuse_unknown_options(model: str, cls: type[LTSM], options: Mapping[str, Any]) -> None:
    """`InputError` for an option that this variant of a model does not take."""
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
    from sffbench.models.twin import mix_

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
    mix_(built, 0.0, built.initial(init), seed=seed)
    return built.eval()


def _empty(
    cls: type[LTSM], config: Mapping[str, Any], lookback: int | None, horizon: int | None
) -> LTSM:
    """The network of `config`, its weights unset: nothing is drawn only to be overwritten."""
    import torch

    for what, given in (("lookback", lookback), ("horizon", horizon)):
        if given is not None and given < 1:
            raise InputError(f"{what} must be >= 1, given {given}")
    wrong: str | None = None
    try:
        network = cls.variant(config)
        alike = [p.config for p in cls.presets.values() if cls.variant(p.config) is network]
        wrong = fields.wrong(config, alike)
        with torch.device("meta"):
            built = network(config, lookback=lookback, horizon=horizon)
    except InputError:  # what the model itself says is nearer to the point
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = wrong or "no network has such a config.json: " + str(e).partition("\n")[0]
        raise InputError(f"{cls.name}: {reason}") from e
    if wrong is not None:
        raise InputError(f"{cls.name}: {wrong}")
    built.to_empty(device="cpu")
    built.reset_buffers()
    return built
