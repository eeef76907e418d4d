"""What to run: a suite (a TOML file) becomes cells, and every cell has a key.

    suite = load("quick")                        # a shipped name or a path
    specs = cells.expand(suite, Places("data"))  # in cells.py
    specs[0].key                                 # hash of everything that decides the result

The accuracy key hashes no hardware and no path: the same cell has the same key everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sffbench import protocol as protocols
from sffbench.errors import InputError, unknown
from sffbench.models.formats import WEIGHTS
from sffbench.protocol import Budget, Protocol
from sffbench.search import Search
from sffbench.validation import from_validation

_FOLDERS = (Path(__file__).parent / "suites", Path(__file__).parent.parent / "suites")


class ModelEntry(BaseModel):
    """A model of a suite: `name[:preset]`, where its weights are, the model's own options.

    `weights` is a file of the source's folder, or "random": drawn anew, read from nowhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str | None = None
    weights: str = WEIGHTS
    options: dict[str, Any] = Field(default_factory=dict)


class Suite(BaseModel):
    """A suite file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    protocol: str
    tasks: tuple[Literal["forecast"], ...] = ("forecast",)
    data: Literal["real", "synthetic"]
    models: tuple[ModelEntry, ...]
    datasets: tuple[str, ...]
    horizons: tuple[int, ...] = (96,)
    seeds: tuple[int, ...] = (0,)
    strategies: tuple[dict[str, Any], ...]
    precision: Literal["float32"] = "float32"
    measure: Literal["accuracy", "speed"] = "accuracy"
    budget: Budget = Budget()
    search: Search | None = None

    @field_validator("models", "strategies", mode="before")
    @classmethod
    def _names_are_entries(cls, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        return [{"name": entry} if isinstance(entry, str) else entry for entry in value]

    @field_validator("tasks", "models", "datasets", "horizons", "seeds", "strategies")
    @classmethod
    def _not_empty(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("needs at least one entry")
        return value

    @field_validator("horizons")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value) < 1:
            raise ValueError(f"horizon {min(value)}: must be at least 1")
        return value


@dataclass(frozen=True)
class Places:
    """Where inputs lie on this machine; never part of a key."""

    data: str | None = None
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSpec:
    """One cell: what decides its result (`cell`, hashed) and where its inputs lie (not hashed)."""

    cell: dict[str, Any]
    label: str
    model_source: str | None = None
    weights_file: str = WEIGHTS
    places: Places = field(default_factory=Places)
    measure: Literal["accuracy", "speed"] = "accuracy"  # what makes the cell done; not hashed

    @functools.cached_property
    def key(self) -> str:
        """Accuracy key: 24 hexadecimal digits of the SHA-256 of the cell's canonical JSON."""
        return digest(self.cell)

    def describe(self) -> str:
        """A short line for people: model, data, horizon, label, seed, trial."""
        cell = self.cell
        model = f"{cell['model']['name']}:{cell['model']['preset']}"
        place = f"{cell['data']['name']} H={cell['task']['horizon']}"
        search = cell.get("search")
        trial = f" trial {search['trial']}/{search['trials']}" if search else ""
        return f"{model} {place} {self.label} seed {cell['seed']}{trial}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """24 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:24]


def names() -> list[str]:
    """Suites shipped with the package."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")})


def load(name_or_path: str) -> Suite:
    """Read a suite by shipped name or by path; bad input is one clear line."""
    try:
        raw = tomllib.loads(_find(name_or_path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"suite {name_or_path!r}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"suite {name_or_path!r}: {error.strerror}") from None
    try:
        return Suite(**raw)
    except ValidationError as error:
        raise from_validation(error, Suite, f"suite {name_or_path!r}") from None


def _find(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise InputError(f"suite {name_or_path!r}: no such file")
        return path
    for folder in _FOLDERS:
        if (folder / f"{name_or_path}.toml").is_file():
            return folder / f"{name_or_path}.toml"
    raise unknown("suite", name_or_path, names())


def resolved_protocol(suite: Suite) -> Protocol:
    """The suite's protocol with its `[budget]` applied."""
    try:
        return protocols.get(suite.protocol).with_budget(suite.budget)
    except ValidationError as error:
        raise from_validation(error, Protocol, f"budget of suite {suite.name!r}") from None


def shard(specs: list[RunSpec], part: str) -> list[RunSpec]:
    """Every n-th cell: `part` is "i/n" with 1 <= i <= n."""
    index, total = _shard_numbers(part)
    return specs[index - 1 :: total]


def _shard_numbers(part: str) -> tuple[int, int]:
    pieces = part.split("/")
    if len(pieces) != 2 or not all(piece.isdecimal() for piece in pieces):
        raise InputError(f"shard {part!r}: write i/n, for example 1/4")
    index, total = int(pieces[0]), int(pieces[1])
    if not 1 <= index <= total:
        raise InputError(f"shard {part!r}: i must lie between 1 and n")
    return index, total


def unique_labels(entries: Iterator[tuple[str, str]]) -> None:
    """Refuse two strategies of one suite under one label: the table could not tell them apart."""
    seen: dict[str, str] = {}
    for label, identity in entries:
        if seen.setdefault(label, identity) != identity:
            raise InputError(f"two strategies share the label {label!r}: give one a `label`")
