"""Config fields of a wrong kind: one line that names the field.

A field must be of the kind that it has in configs known to be right: an integer >= 1 where those
count, a list where they list. `check("ttm", config, presets)`. What none of them has, and how
fields depend on each other, each model checks itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sffbench.errors import InputError

MAY_BE_0 = frozenset({"adaptive_patching_levels", "pad_token_id", "top_k", "vocab_size"})
MAY_BE_NULL = frozenset({"num_heads"})  # MOIRAI then has one for each 64 features


def check(model: str, config: Mapping[str, Any], right: Sequence[Mapping[str, Any]]) -> None:
    """`InputError` naming the first field of `config` that is of another kind than in `right`."""
    if (found := wrong(config, right)) is not None:
        raise InputError(f"{model}: {found}")


def wrong(config: Mapping[str, Any], right: Sequence[Mapping[str, Any]]) -> str | None:
    """What is wrong with the first such field, or None."""
    for known in right:
        for key in [key for key in known if key in config]:
            found = _wrong(key, config[key], known[key])
            if found is not None:
                return found
    return None


def _wrong(key: str, given: Any, like: Any) -> str | None:
    if isinstance(like, Mapping) and isinstance(given, Mapping):
        return wrong(given, [like])
    if given is None and key in MAY_BE_NULL:
        return None
    wanted = _lacking(key, given, like)
    return None if wanted is None else f"{key}={given!r} must be {wanted}"


def _lacking(key: str, given: Any, like: Any) -> str | None:
    """What `given` should have been, None if it is."""
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if isinstance(like, bool):
        return None if isinstance(given, bool) else "true or false"
    if isinstance(like, int):
        least = 0 if key in MAY_BE_0 else 1
        return None if type(given) is int and given >= least else f"an integer >= {least}"
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
    return " of integers >= 1" if isinstance(element, int) else " of numbers"
