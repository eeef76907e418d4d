"""From a suite to its cells: resolve names, hash inputs, name what decides each result."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sffbench import data, models, networks, strategies
from sffbench.errors import InputError
from sffbench.models.formats import WEIGHTS
from sffbench.protocol import Protocol
from sffbench.search import Search
from sffbench.strategies import Strategy
from sffbench.strategies.chain import Chain
from sffbench.suite import (
    ModelEntry,
    Places,
    RunSpec,
    Suite,
    canonical_json,
    resolved_protocol,
    unique_labels,
)

DEFAULT_LR = 1e-4  # for a checkpoint that is no preset and so has no card
_NO_MODEL: dict[str, Any] = {
    "name": "none",
    "preset": "none",
    "config": None,
    "weights": None,
    "options": {},
}


@dataclass(frozen=True)
class Entry:
    """A strategy of a suite: the strategy, its label, and the seeds it runs with.

    Where the suite searches, every trial is an entry; `search` is what its key says of that.
    """

    strategy: Strategy
    label: str
    seeds: tuple[int, ...]
    search: dict[str, Any] | None = None


def expand(suite: Suite, places: Places) -> list[RunSpec]:
    """All cells of a suite, each once: data set, horizon, strategy, seed, model, in this order."""
    specs: dict[str, RunSpec] = {}
    for spec in _generate(suite, resolved_protocol(suite), places):
        specs.setdefault(spec.key, spec)
    return list(specs.values())


def _generate(suite: Suite, protocol: Protocol, places: Places) -> Iterator[RunSpec]:
    """Yield a cell for every data set x horizon x strategy x seed x model."""
    for plugin in places.plugins:
        strategies.load_plugin(plugin)
    entries = [_entry(raw, suite.seeds) for raw in suite.strategies]
    unique_labels((e.label, canonical_json(strategies.identity(e.strategy))) for e in entries)
    if suite.search is not None:
        entries = _trials(entries, suite.strategies, suite.search, protocol)
    described = [_describe(entry) for entry in suite.models]
    for name in suite.datasets:
        series = _describe_data(name, suite.data, places.data)
        for horizon in suite.horizons:
            for entry in entries:
                for seed in entry.seeds:
                    for model in described if entry.strategy.needs_model else [None]:
                        yield _spec(suite, protocol, places, series, horizon, entry, seed, model)


def _trials(
    entries: list[Entry], raws: Sequence[dict[str, Any]], search: Search, protocol: Protocol
) -> list[Entry]:
    """Every entry that trains in as many settings as the search has trials; the others as is."""
    if not protocol.selects:
        raise InputError(f"search: protocol {protocol.name!r} has no validation to choose by")
    trained = [entry for entry in entries if entry.strategy.trains]
    search.refuse_strangers({word for e in trained for word in (e.label, e.strategy.name)})
    return [
        trial
        for entry, raw in zip(entries, raws, strict=True)
        for trial in (_tries(entry, raw, search) if entry.strategy.trains else [entry])
    ]


def _tries(entry: Entry, raw: dict[str, Any], search: Search) -> Iterator[Entry]:
    points = search.points(entry.strategy.name, entry.label)
    if fixed := sorted(raw.keys() & points[0].keys()):
        raise InputError(f"search: {entry.label!r} sets {fixed[0]!r}, and its grid varies it")
    of = {"trials": search.trials, "of": strategies.identity(entry.strategy), "points": points}
    for number, point in enumerate(points, start=1):
        strategy = _entry(raw | point, entry.seeds).strategy
        yield Entry(strategy, entry.label, entry.seeds, of | {"trial": number})


def _entry(raw: dict[str, Any], seeds: tuple[int, ...]) -> Entry:
    """`seeds` and `label` are the suite's words; every other key is a field of the strategy.

    `chain` = [...] stands for a chain of these links.
    """
    fields = dict(raw)
    if "chain" in fields:
        fields = _chain_fields(fields)
    if "name" not in fields:
        raise InputError(f"strategy entry {raw!r}: needs a `name`")
    name = str(fields.pop("name"))
    own_seeds = _own_seeds(name, fields.pop("seeds", seeds))
    label = fields.pop("label", None)
    strategy = strategies.get(name, **fields)
    label = _label(strategy, fields) if label is None else str(label)
    return Entry(strategy, label, own_seeds if strategy.seeded else own_seeds[:1])


def _chain_fields(raw: dict[str, Any]) -> dict[str, Any]:
    links = raw.pop("chain")
    if "name" in raw:
        raise InputError(f"strategy entry {raw!r}: takes a `name` or a `chain`, not both")
    if not isinstance(links, list | tuple) or not links:
        raise InputError(f"chain = {links!r}: must be a list of at least one strategy")
    return raw | {"name": "chain", "links": links}


def _own_seeds(name: str, given: Any) -> tuple[int, ...]:
    if not isinstance(given, list | tuple) or not given or {type(seed) for seed in given} != {int}:
        raise InputError(f"strategy {name!r}: seeds = {given!r}: must be a list of whole numbers")
    return tuple(given)


def _label(strategy: Strategy, fields: dict[str, Any]) -> str:
    """The name and every field that the suite sets to something else than its default."""
    if isinstance(strategy, Chain):
        return _chain_label(strategy, fields)
    declared = type(strategy).model_fields
    shown = [f"{key}={value}" for key, value in fields.items() if declared[key].default != value]
    return " ".join([strategy.name, *shown])


def _chain_label(chain: Chain, fields: dict[str, Any]) -> str:
    """The links' own labels, joined by "+", then the learning rate, where the suite sets one."""
    links = "+".join(_label(link, link.model_dump(exclude={"lr"})) for link in chain.links)
    entries = [fields, *(raw for raw in fields["links"] if isinstance(raw, dict))]
    return f"{links} lr={chain.lr}" if any("lr" in entry for entry in entries) else links


@dataclass(frozen=True)
class DescribedModel:
    """A model entry with what its key says and what its card recommends."""

    entry: ModelEntry
    identity: dict[str, Any]
    lookback: int
    lr: float


def _describe(entry: ModelEntry) -> DescribedModel:
    name, preset = models.parse(entry.name)
    where = (entry.name, entry.source, entry.weights, entry.options)
    config_hash, weights_hash = networks.describe(*where)
    identity = {
        "name": name,
        "preset": preset or "custom",
        "config": config_hash,
        "weights": weights_hash,
        "options": dict(entry.options),
    }
    if preset is None:  # a folder of another size: it has no card, its config tells the context
        return DescribedModel(entry, identity, networks.build(*where).lookback, DEFAULT_LR)
    card = models.preset(entry.name)
    return DescribedModel(entry, identity, card.lookback, card.lr)


@functools.cache
def _describe_data(
    name: str, source: Literal["real", "synthetic"], root: str | None
) -> dict[str, Any]:
    if source == "real" and root is None:
        raise InputError("real data: say where it is with --data-dir or SFFBENCH_DATA")
    name = data.get(name).name
    return {"name": name, "source": source, "sha256": data.content_hash(name, root or "", source)}


def _spec(
    suite: Suite,
    protocol: Protocol,
    places: Places,
    series: dict[str, Any],
    horizon: int,
    entry: Entry,
    seed: int,
    model: DescribedModel | None,
) -> RunSpec:
    strategy = entry.strategy
    if model is None:
        own = strategy.lookback(data.get(series["name"]).season)  # type: ignore[attr-defined]
        card_lr = DEFAULT_LR
    else:
        own, card_lr = model.lookback, model.lr
    # A naive row has no context to be cut: one step or one season is what it is.
    follows = strategy.needs_model or strategy.trains
    lookback = min(protocol.lookback or own, own) if follows else own
    lr = (strategy.lr or protocol.lr or card_lr) if strategy.trains else None
    cell = {
        "model": _NO_MODEL if model is None else model.identity,
        "data": series,
        "task": {"name": "forecast", "horizon": horizon},
        "lookback": lookback,
        "strategy": strategies.identity(strategy),
        "lr": lr,
        "protocol": protocol.identity(),
        "precision": suite.precision,
        "seed": seed,
    }
    if entry.search is not None:  # absent otherwise, so that no other key changes
        cell["search"] = entry.search
    source = None if model is None else model.entry.source
    weights = WEIGHTS if model is None else model.entry.weights
    return RunSpec(cell, entry.label, source, weights, places, suite.measure)
