"""Parts of a network by name, so that a strategy can treat them differently.

    groups = { head = 1.0, norms = 1.0 }                      # a field of `sff`: an alpha for each
    groups = { "model.layers.0.*" = 0.9, attention = 0.5 }

A word names one of the parts below, and every parameter belongs to exactly one of them; anything
with a dot, a star or a bracket is a pattern of parameter names, and outranks the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from sffbench.errors import InputError, unknown

if TYPE_CHECKING:
    from sffbench.models.base import LTSM

# The first that fits, on the names that the models' authors gave.
_WORDS = {
    "attention": re.compile(r"\.\w*(att|Att)\w*\."),
    "ffn": re.compile(r"\.(mlp|ffn|ffn_layer|dynamic_mlp|DenseReluDense|conv[12])\."),
    "embeddings": re.compile(r"\.\w*(emb|patcher|in_proj|input_ff|prompt|token|mask_enc|shared)"),
}
PARTS = ("head", "norms", *_WORDS, "other")


def part_of(model: LTSM) -> dict[str, str]:
    """The part (one of `PARTS`) of every parameter, by name.

    head: under the model's `head_prefixes`, whatever it is there. norms: gains and biases of
    modules that are called ...Norm. attention (TTM's gated attention too), ffn, embeddings (of
    values, positions, prompts, biases by distance): by their names. other: the rest.
    """
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        for name, _ in module.named_parameters(recurse=False)
    }
    return {name: _part(model, name, name in norms) for name, _ in model.named_parameters()}


def _part(model: LTSM, name: str, is_norm: bool) -> str:
    if model.head_prefixes and name.startswith(model.head_prefixes):
        return "head"
    if is_norm:
        return "norms"
    dotted = f".{name}"
    return next((word for word, found in _WORDS.items() if found.search(dotted)), "other")


def check_words(groups: Mapping[str, float]) -> None:
    """Raise `InputError` for a key that is neither a part nor a pattern."""
    for key in groups:
        if not _is_pattern(key) and key not in PARTS:
            raise unknown("group of parameters", key, PARTS)


def values_by_name(model: LTSM, groups: Mapping[str, float]) -> dict[str, float]:
    """The value of each parameter that `groups` speaks of.

    Raises `InputError` for a key that this model has nothing for, and for a parameter to which two
    patterns give different values: a table has no order that could decide.
    """
    parts = part_of(model)
    values: dict[str, float] = {}
    by_pattern: dict[str, str] = {}
    for key in sorted(groups, key=lambda key: (_is_pattern(key), key)):  # patterns over words
        names = list(_matches(key, parts))
        if not names:
            raise InputError(f"group {key!r}: {model.name} has no such parameter")
        for name in names:
            rival = by_pattern.get(name)
            if rival is not None and groups[rival] != groups[key]:
                raise InputError(f"groups {rival!r} and {key!r} both claim {name!r}")
            values[name] = groups[key]
            if _is_pattern(key):
                by_pattern[name] = key
    return values


def _matches(key: str, parts: Mapping[str, str]) -> Iterator[str]:
    for name, part in parts.items():
        if fnmatchcase(name, key) if _is_pattern(key) else part == key:
            yield name


def _is_pattern(key: str) -> bool:
    return any(mark in key for mark in ".*?[")
