"""Fine-tuning strategies: one file each, registered by subclassing `Strategy`.

    sffbench.strategies.names()
    sffbench.strategies.get("sff", alpha=0.7)

Built-in files are found by listing this folder, installed ones by the entry-point group
`sffbench.strategies`, and a single file by `load_plugin`. None of them needs an edit elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sffbench.context import Phase
from sffbench.errors import InputError, unknown
from sffbench.strategies.base import Strategy, registry
from sffbench.validation import from_validation

__all__ = ["Phase", "Strategy", "get", "identity", "load_plugin", "names", "strategy_class"]

_LOADED: dict[str, str] = {}  # plug-in modules and the digest of each one's source as it ran


@functools.cache
def _discover() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in importlib.metadata.entry_points(group="sffbench.strategies"):
        try:
            entry.load()
        except Exception as error:  # somebody else's broken package must not stop every verb
            warnings.warn(f"strategy {entry.name!r} not loaded: {error}", stacklevel=2)


def names() -> list[str]:
    """Every registered strategy, built in or from outside."""
    _discover()
    return sorted(registry())


def strategy_class(name: str) -> type[Strategy]:
    """The class behind a name; an unknown name is an error that offers the nearest."""
    _discover()
    if name not in registry():
        raise unknown("strategy", name, names())
    return registry()[name]


def get(name: str, **fields: Any) -> Strategy:
    """The strategy `name` with these hyper-parameters; a wrong field is one clear line."""
    cls = strategy_class(name)
    try:
        return cls(**fields)
    except ValidationError as error:
        raise from_validation(error, cls, f"strategy {name!r}") from None


def load_plugin(path: str | Path) -> list[str]:
    """Run one Python file and return the names of the strategies it registers."""
    file = Path(path)
    if not file.is_file():
        raise InputError(f"plug-in {str(path)!r}: no such file")
    _discover()
    digest = _digest(file)
    module_name = f"sffbench_plugin_{digest[:12]}"
    if module_name not in _LOADED:
        _refuse_edited(file)
        _execute(file, module_name)
        _LOADED[module_name] = digest
    added = sorted(name for name, cls in registry().items() if cls.__module__ == module_name)
    if not added:
        raise InputError(f"plug-in {str(path)!r}: registers no strategy (subclass Strategy)")
    return added


def _refuse_edited(file: Path) -> None:
    """One process runs one version of a file: its keys could not tell which one gave a result."""
    for cls in registry().values():
        known = cls.__module__ in _LOADED and Path(inspect.getfile(cls))
        if known and known.resolve() == file.resolve():
            raise InputError(f"plug-in {str(file)!r}: edited since it was loaded; start again")


def _execute(file: Path, module_name: str) -> None:
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"plug-in {str(file)!r}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for data
            spec.loader.exec_module(module)
    except Exception as error:
        for name in [n for n, cls in registry().items() if cls.__module__ == module_name]:
            del registry()[name]
        del sys.modules[module_name]
        raise InputError(f"plug-in {str(file)!r}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")


def identity(strategy: Strategy) -> dict[str, Any]:
    """What a run's key says of its strategy.

    The source of a strategy from outside is hashed: its author may forget to raise `version`. A
    field that came later (`added`) is left out while it has its default.
    """
    declared = type(strategy).model_fields
    unset = {name for name in strategy.added if getattr(strategy, name) == declared[name].default}
    return {
        "name": strategy.name,
        "version": strategy.version,
        "fields": strategy.model_dump(mode="json", exclude=unset),
        "plugin": _plugin_digest(type(strategy)),
    }


def _plugin_digest(cls: type[Strategy]) -> str | None:
    if cls.__module__.startswith("sffbench.strategies."):
        return None
    return _LOADED.get(cls.__module__) or _digest(Path(inspect.getfile(cls)))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
