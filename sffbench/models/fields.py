"""Config fields of a wrong kind: one line that names the field, before anything is built from it.

A field must be of the kind that a preset of the family has: a number >= 1 where presets count, a
list where they list. `check("ttm", config, presets)`. What no preset has, and how fields depend on
each other, each model checks itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sffbench.errors import InputError

MAY_BE_0 = frozenset({"adaptive_patching_levels", "pad_token_id", "top_k", "vocab_size"})


def check(model: str, config: Mapping[str, Any], presets: Iterable[Mapping[str, Any]]) -> None:
    """`InputError` naming the first field of `config` that is of another kind than in `presets`."""
    for preset in presets:
        for key, like in preset.items():
            if key in config:
                _check(model, key, config[key], like)


def _check(model: str, key: str, given: Any, like: Any) -> None:
    if isinstance(like, Mapping) and isinstance(given, Mapping):
        for name, value in like.items():
            if name in given:
                _check(model, name, given[name], value)
    elif (wanted := _lacking(key, given, like)) is not None:
        raise InputError(f"{model}: {key}={given!r} must be {wanted}")


def _lacking(key: str, given: Any, like: Any) -> str | None:
    """What `given` should have been, None if it is."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if isinstance(like, bool):
        return None if isinstance(given, bool) else "true or false"
    if isinstance(like, int):
        least = 0 if key in MAY_BE_0 else 1
        return None if type(given) is int and given >= least else f"a whole number >= {least}"
    if isinstance(like, float):
        return _lacking_float(key, given if number else None, like)
    if isinstance(like, Mapping):
        return "an object"
    if isinstance(like, Sequence) and not isinstance(like, str):
        listed = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
        kinds = [_lacking(key, value, like[0]) for value in given] if listed else []
        return None if listed and not any(kinds) else "a list" + _of(like[0])
    return None


def _lacking_float(key: str, given: float | None, like: float) -> str | None:
    share = "dropout" in key
    least, most = 0.0 if like >= 0 else float("-inf"), 1.0 if share else float("inf")
    fits = given is not None and least <= given <= most
    return None if fits else "a number" + (" from 0 to 1" if share else " >= 0" * (like >= 0))


def _of(element: Any) -> str:
    if isinstance(element, bool) or not isinstance(element, int | float):
        return ""
    return " of whole numbers >= 1" if isinstance(element, int) else " of numbers"
